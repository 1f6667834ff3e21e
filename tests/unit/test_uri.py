"""Connection strings: what the driver takes is taken, what it refuses is named, and no piece of one is shown."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.common import URI_OPTIONS_VALIDATOR_MAP
from pymongo.uri_parser import parse_uri

from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.uri import IGNORED, USED, read_uri
from d5agent.errors import OperatorError

HUSH = "hush"


def dumped(text: str, **dns: str) -> str:
    return read_uri(text, "target").text_for_dump(dns)


@pytest.mark.parametrize(
    ("uri", "for_dump"),
    [
        ("mongodb://a:b@host:27017/?replicaSet=rs0", "mongodb://a:b@host:27017/?replicaset=rs0&authsource=admin"),
        ("mongodb://a:b@host", "mongodb://a:b@host/?authsource=admin"),
        ("mongodb://a:b@host/?authSource=users", "mongodb://a:b@host/?authsource=users"),
        ("mongodb://host", "mongodb://host/"),
        ("mongodb://host/shop", "mongodb://host/"),
        ("mongodb://a:b@one:1,two:2/shop", "mongodb://a:b@one:1,two:2/?authsource=shop"),
        ("mongodb://a:b@host/shop?authSource=users&tls=true", "mongodb://a:b@host/?authsource=users&tls=true"),
        ("mongodb://a:b@host/shop.orders", "mongodb://a:b@host/?authsource=shop"),
        ("mongodb://a:p%2Fw@host/", "mongodb://a:p%2Fw@host/?authsource=admin"),
        ("mongodb://a:p+w@host/", "mongodb://a:p%20w@host/?authsource=admin"),  # the driver's +, which Go takes as one
        ("mongodb://a@host/?authMechanism=PLAIN", "mongodb://a@host/?authmechanism=PLAIN&authsource=%24external"),
        ("mongodb://a:b@h/ldap?authMechanism=PLAIN", "mongodb://a:b@h/?authmechanism=PLAIN&authsource=ldap"),
        (
            "mongodb://host/?authMechanism=MONGODB-X509&tls=true",
            "mongodb://host/?authmechanism=MONGODB-X509&tls=true&authsource=%24external",
        ),
        ("mongodb://a:b@[::1]:27017/", "mongodb://a:b@[::1]:27017/?authsource=admin"),
        (
            "mongodb://a:b@h/?authMechanismProperties=SERVICE_NAME:x%20y",
            "mongodb://a:b@h/?authmechanismproperties=SERVICE_NAME:x%20y&authsource=admin",
        ),
    ],
)
def test_dump_logs_in_where_the_driver_does(uri: str, for_dump: str) -> None:
    assert dumped(uri) == for_dump


def test_dump_logs_in_where_the_dns_says() -> None:
    uri = "mongodb+srv://a:b@host.example.com/shop"
    assert dumped(uri, authSource="users") == "mongodb+srv://a:b@host.example.com/?authsource=users"
    assert dumped(uri) == "mongodb+srv://a:b@host.example.com/?authsource=shop"


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        (f"mongo://user:{HUSH}@host", "it must begin with mongodb:// or mongodb\\+srv://"),
        (HUSH, "it must begin with"),
        ("mongodb://", "a host or a port cannot be one"),
        (f"mongodb://user:{HUSH}/x@host/", "its user or password is not percent-encoded"),
        (f"mongodb://user:12/{HUSH}@host/", "its user or password is not percent-encoded"),
        (f"mongodb://user:{HUSH}?x@host/", "a host or a port cannot be one"),
        (f"mongodb://user:12?{HUSH}@host/", "its options are no KEY=VALUE pairs"),
        (f"mongodb://user:12?{HUSH}=x@host/", "d5agent does not know its option 1 of 1"),
        (f"mongodb://user:{HUSH}@x@host/", "its user or password is not percent-encoded"),
        (f"mongodb://user:{HUSH}:x@host/", "its user or password is not percent-encoded"),
        (f"mongodb://user:{HUSH}%x@host/", "its user or password is not percent-encoded"),
        (f"mongodb://host/?tls=true&{HUSH}=1&w=1", "d5agent does not know its option 2 of 3"),
        (f"mongodb://host/?connectTimeoutMS={HUSH}", "the value of its option connecttimeoutms cannot be one"),
        (f"mongodb://host/?authMechanism={HUSH}", "the value of its option authmechanism cannot be one"),
        (f"mongodb://host/?tls={HUSH}", "the value of its option tls cannot be one"),
        (f'mongodb://host/"{HUSH}', "the name of its database cannot be one"),
        ("mongodb://host/?tls=true&ssl=false", "its options are no KEY=VALUE pairs, or contradict"),
        ("mongodb://one,two/?directConnection=true", "two of its parts contradict"),
        ("mongodb://host/?srvMaxHosts=2", "two of its parts contradict"),
        ("mongodb://host/?authSource=", "two of its parts contradict"),
    ],
)
def test_wrong_uri_is_named_and_not_shown(uri: str, fault: str) -> None:
    with pytest.raises(OperatorError, match=f"the source's URI is wrong: ({fault})") as refused:
        read_uri(uri, "source")
    assert HUSH not in f"{refused.value} {refused.value.hint} {refused.value.facts}"
    assert "correct [source] uri" in refused.value.hint
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.pem"
    with pytest.raises(OperatorError, match="a file that the target's URI names cannot be read") as refused:
        read_uri(f"mongodb://a:{HUSH}@host/?tls=true&tlsCAFile={path}", "target")
    assert refused.value.facts["path"] == str(path)
    assert HUSH not in f"{refused.value} {refused.value.hint}"


_PIECES = st.lists(
    st.sampled_from([HUSH, "/", "?", "@", ":", "%", "&", "=", ",", "#", "[", "]", ";", "12", "tls", '"', "'"])
)


@given(user=_PIECES, password=_PIECES)
def test_no_piece_of_a_login_is_ever_shown(user: list[str], password: list[str]) -> None:
    text = f"mongodb://{''.join(user)}:{''.join(password)}@host:27017/?replicaSet=rs0"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            said = repr(read_uri(text, "source"))
        except OperatorError as error:
            said = f"{error} {error.hint}"
    assert HUSH not in said
    assert not warned


@given(user=st.text(min_size=1).filter(lambda text: text.isprintable()), password=st.text(min_size=1))
def test_encoded_login_arrives_as_it_is(user: str, password: str) -> None:
    uri = read_uri(f"mongodb://{quote(user, safe='')}:{quote(password, safe='')}@host/?tls=true", "source")
    assert (uri.user, uri.password) == (user, password)
    for text in (uri.text, uri.text_for_dump({}), *uri.host_texts):
        parsed = parse_uri(text)
        assert (parsed["username"], parsed["password"]) == (user, password)
    assert password in uri.secrets


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://a:b@One:1,two:2/shop?authSource=u&tls=true&heartbeatFrequencyMS=500&replicaSet=x%26y",
        "mongodb://%2Ftmp%2Fmongo.sock/",
        "mongodb://h?tls=true",
        "mongodb://h/?connectTimeoutMS=1;tls=true",
        "mongodb://h/?ssl=true",
    ],
)
def test_driver_reads_the_same_from_what_it_is_given(uri: str) -> None:
    assert parse_uri(read_uri(uri, "source").text) == parse_uri(uri)


def test_every_option_of_the_driver_has_a_verdict() -> None:
    assert not USED & IGNORED
    assert URI_OPTIONS_VALIDATOR_MAP.keys() == USED | IGNORED


def test_table_in_the_documents_has_every_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:3] for row in text.splitlines() if row.startswith("| `") and row.count("|") == 4]
    for verdict, options in (("used", USED), ("ignored", IGNORED)):
        named = [found for cell, said in rows if said.split()[0] == verdict for found in re.findall("`([^`]+)`", cell)]
        assert sorted(name.lower() for name in named) == sorted(options)


async def test_no_option_changes_how_the_agent_reads_writes_and_waits() -> None:
    options = (
        "timeoutMS=100&w=0&journal=false&readConcernLevel=linearizable&socketTimeoutMS=1&compressors=zlib,snappy"
        "&retryReads=false&retryWrites=true&maxPoolSize=1&minPoolSize=50&waitQueueTimeoutMS=1&readPreference=secondary"
        "&readPreferenceTags=a:b&readPreferenceTags=&maxStalenessSeconds=120&wTimeoutMS=1&tz_aware=true&tls=true&tls=true"
    )
    uri = read_uri(f"mongodb://a:b@h/?{options}", "source")
    assert uri.text == "mongodb://a:b@h/?tls=true"
    assert uri.text_for_dump({}) == "mongodb://a:b@h/?tls=true&authsource=admin"
    assert {"timeoutms", "w", "compressors", "readpreferencetags"} <= set(uri.ignored)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with (
            open_mongo(f"mongodb://h/?{options}", side="source", pool_size=7) as one,
            open_mongo("mongodb://h/?tls=true", side="source", pool_size=7) as other,
        ):
            assert repr(one) == repr(other)
            for client in (one, other):
                assert client.options.timeout is None
                assert client.write_concern.document == {}
                assert client.read_concern.document == {}
    assert not warned


def test_load_balancer_is_refused() -> None:
    with pytest.raises(OperatorError, match="loadBalanced=true") as refused:
        read_uri("mongodb://h/?loadBalanced=true", "target")
    assert "remove loadBalanced from [target] uri" in refused.value.hint
    assert read_uri("mongodb://h/?loadBalanced=false", "target").hosts == "h"


def test_each_host_can_be_asked_alone() -> None:
    uri = read_uri("mongodb://a:b@one:1,two:2/shop?replicaSet=x&tls=true", "target")
    assert uri.host_texts == (
        "mongodb://a:b@one:1/shop?tls=true&directconnection=true",
        "mongodb://a:b@two:2/shop?tls=true&directconnection=true",
    )
    assert read_uri("mongodb+srv://a:b@one.example.com/", "target").host_texts == ()
