"""The gateway's decisions: raw BSON, tokens, scopes, refusals, and the table of facts."""

from __future__ import annotations

import asyncio
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import pytest
from bson.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from d5agent.drill.gateway import facts
from d5agent.drill.gateway.bsonwalk import elements, find, without
from d5agent.drill.gateway.cluster import Cluster
from d5agent.drill.gateway.events import token_document
from d5agent.drill.gateway.listings import shape_databases, shape_hello
from d5agent.drill.gateway.refusals import read_request
from d5agent.drill.gateway.replies import Replies
from d5agent.drill.gateway.router import Answer, Forward, Router
from d5agent.drill.gateway.scopes import WHOLE_CLUSTER, Scope, StreamLog
from d5agent.drill.gateway.streams import Stream
from d5agent.drill.gateway.tokens import (
    InvalidTokenError,
    Position,
    TokenCodec,
    upstream_position,
)
from d5agent.drill.gateway.wire import (
    CHECKSUM_PRESENT,
    Message,
    ProtocolError,
    read_message,
    with_body,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

PROJECT = Path(__file__).parents[2]

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.builds(bson.ObjectId, st.binary(min_size=12, max_size=12)),
    st.builds(bson.Regex, st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.just("im")),
    st.builds(Timestamp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.builds(bson.Code, st.text(), st.none()),
    st.builds(bson.Code, st.text(), st.dictionaries(st.just("x"), st.integers(0, 9))),
    st.sampled_from([bson.MinKey(), bson.MaxKey(), bson.Decimal128("1.5")]),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=10,
)
_documents = st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), _values, max_size=8)


@given(_documents)
def test_the_walk_finds_every_element_where_it_is(document: dict[str, Any]) -> None:
    raw = b"junk" + bson.encode(document)
    walked = list(elements(raw, 4))
    assert [name.decode() for _, name, _, _, _ in walked] == list(document)
    assert b"".join(raw[begin:end] for _, _, begin, _, end in walked) == raw[8:-1]


@given(_documents, st.data())
def test_cutting_fields_leaves_the_others_as_they_are(document: dict[str, Any], data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(document)))) if document else set()
    raw = bson.encode(document)
    kept = {key: value for key, value in document.items() if key not in names}
    assert b"".join(without(raw, 0, {name.encode() for name in names})) == bson.encode(kept)


def test_an_unknown_type_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(ValueError, match="0x20"):
        list(elements(b"\x08\0\0\0\x20a\0\0", 0))


_positions = st.builds(
    lambda seconds, increment, ordinal: Position((seconds << 32) | increment, ordinal),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**20 - 1),
    st.integers(0, 2**20 - 1),
)


@given(_positions)
def test_a_token_tells_its_position(position: Position) -> None:
    codec = TokenCodec(b"abcdef")
    event, post_batch = codec.event_token(position), codec.post_batch_token(position)
    assert (len(event), len(post_batch)) == (36, 20)
    assert codec.read(event.decode()) == codec.read(post_batch.decode()) == position


@given(_positions, st.integers(0, 35), st.sampled_from("0123456789abcdef"))
def test_a_damaged_event_token_is_invalid(position: Position, at: int, digit: str) -> None:
    codec = TokenCodec(b"abcdef")
    token = codec.event_token(position).decode()
    damaged = token[:at] + digit + token[at + 1 :]
    if damaged != token:
        with pytest.raises(InvalidTokenError):
            codec.read(damaged)
    with pytest.raises(InvalidTokenError):
        TokenCodec(b"fedcba").read(token)


@pytest.mark.parametrize("token", [None, 7, "", "82", "zz" * 18, "zz" * 10, b"00" * 18])
def test_what_is_no_token_is_invalid(token: object) -> None:
    with pytest.raises(InvalidTokenError):
        TokenCodec(b"abcdef").read(token)


def test_a_post_batch_token_never_points_past_what_it_cannot_hold() -> None:
    codec = TokenCodec(b"abcdef")
    for position in (Position((7 << 32) | 2**21, 5), Position((7 << 32) | 3, 2**21)):
        assert codec.read(codec.post_batch_token(position).decode()) < position


@pytest.mark.parametrize(
    ("token", "ordinal"),
    [
        ("826B050854000000192B0229296E04", 0),
        ("826B050854000000192B022C0100296E5A1004", 1),
        ("826B050854000000192B022C0100296F5A1004", 2),
        ("826B050854000000192B022C01002B026E5A1004", 3),
        ("826B050854000000192B022C01002B086E5A1004", 9),
        ("826B050854000000192B022C01002C01046E5A1004", 261),
        ("826B050854000000192B022C01002D0186A06E5A1004", 1 + 2 * 50_000),
    ],
)
def test_an_upstream_token_tells_its_position(token: str, ordinal: int) -> None:
    expected = Position((0x6B050854 << 32) | 0x19, ordinal)
    assert upstream_position(token.encode()) == expected


def test_a_token_document_is_bson() -> None:
    assert bson.decode(token_document(b"82ab")) == {"_data": "82ab"}


D, C = Scope("d", ""), Scope("d", "c")


def test_a_scope_shows_what_comes_after_it_was_enabled() -> None:
    log = StreamLog()
    log.modify(D, enable=True, at=10)
    log.modify(D, enable=True, at=12)
    log.modify(D, enable=False, at=20)
    shown = [time for time in (10, 11, 20, 21) if log.shows(C, time)]
    assert shown == [11, 20]
    assert not log.shows(Scope("e", "c"), 15)
    assert log.enabled() == []


def test_off_and_on_loses_what_nothing_else_covered() -> None:
    log = StreamLog()
    log.modify(WHOLE_CLUSTER, enable=True, at=10)
    log.modify(D, enable=True, at=15)
    log.modify(WHOLE_CLUSTER, enable=False, at=20)
    assert log.has_lost(WHOLE_CLUSTER, 19)
    log.modify(WHOLE_CLUSTER, enable=True, at=30)
    lost = [time for time in (19, 25, 30) if log.has_lost(WHOLE_CLUSTER, time)]
    assert lost == [19, 25]
    assert not log.has_lost(C, 19)
    log.expire(40)
    assert log.has_lost(C, 39)
    assert not log.has_lost(C, 40)


def test_a_stream_is_silent_when_nothing_inside_it_is_on() -> None:
    log = StreamLog()
    assert log.is_silent(WHOLE_CLUSTER)
    log.modify(C, enable=True, at=1)
    assert not log.is_silent(WHOLE_CLUSTER)
    assert not log.is_silent(D)
    assert log.is_silent(Scope("d", "other"))
    assert log.is_silent(Scope("e", ""))


def test_the_log_remembers_itself(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    log = StreamLog.load(path)
    log.modify(C, enable=True, at=2**63)
    log.expire(7)
    again = StreamLog.load(path)
    assert again == log
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def _message(
    body: dict[str, Any],
    *,
    sequence: Sequence[dict[str, Any]] = (),
    sequence_first: bool = False,
    flags: int = 0,
) -> Message:
    kind0 = b"\0" + bson.encode(body)
    kind1 = b""
    if sequence:
        rows = b"documents\0" + b"".join(map(bson.encode, sequence))
        kind1 = b"\1" + struct.pack("<i", len(rows) + 4) + rows
    sections = kind1 + kind0 if sequence_first else kind0 + kind1
    tail = b"sum!" if flags & CHECKSUM_PRESENT else b""
    size = 20 + len(sections) + len(tail)
    raw = struct.pack("<iiiiI", size, 7, 0, 2013, flags) + sections + tail
    message = asyncio.run(_read(raw))
    assert message is not None
    return message


async def _read(raw: bytes) -> Message | None:
    reader = asyncio.StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    return await read_message(reader)


@pytest.mark.parametrize("sequence_first", [True, False])
@pytest.mark.parametrize("flags", [0, CHECKSUM_PRESENT])
def test_a_request_is_read_wherever_its_body_stands(*, sequence_first: bool, flags: int) -> None:
    body = {"insert": "a", "txnNumber": bson.Int64(1), "$db": "d"}
    message = _message(body, sequence=[{"_id": 1}], sequence_first=sequence_first, flags=flags)
    request = read_request(message)
    assert (request.command, request.database, request.retryable) == ("insert", "d", True)
    other = with_body(message, [bson.encode({"insert": "b", "$db": "d"})])
    again = asyncio.run(_read(other))
    assert again is not None
    assert again.decode() == {"insert": "b", "$db": "d"}
    assert not again.flags & CHECKSUM_PRESENT
    assert b"sum!" not in other
    assert bson.encode({"_id": 1}) in other


def test_a_broken_message_is_a_protocol_error() -> None:
    header = struct.Struct("<iiii")
    for raw in (
        header.pack(2**30, 1, 0, 2013),
        header.pack(24, 1, 0, 2012) + b"\0" * 8,
        header.pack(21 + 5, 1, 0, 2013) + b"\0\0\0\0\1\5\0\0\0\0",
    ):
        with pytest.raises(ProtocolError):
            asyncio.run(_read(raw))
    assert asyncio.run(_read(b"\x40\0\0")) is None


def _router(*, allow: frozenset[str] = frozenset()) -> Router:
    return Router(
        Cluster(
            upstream="nowhere:1",
            set_name="rs0",
            allow=allow,
            log=StreamLog(),
            sends_post_batch_token=True,
            log_seconds=None,
        )
    )


def test_a_transaction_is_no_retryable_write() -> None:
    number = bson.Int64(1)
    retried = {"insert": "a", "txnNumber": number, "$db": "d"}
    assert _code(_router().decide(_message(retried))) == 301
    inside = {**retried, "autocommit": False}
    decision = _router().decide(_message(inside))
    assert isinstance(decision, Forward)
    assert decision.raw == _message(inside).raw


def _code(decision: object) -> object:
    assert isinstance(decision, Answer)
    return decision.document["code"]


@pytest.mark.parametrize("name", sorted(facts.UNSUPPORTED_COMMANDS))
def test_each_unsupported_command_can_be_allowed(name: str) -> None:
    message = _message({name: 1, "$db": "admin"})
    assert _code(_router().decide(message)) == 303
    assert isinstance(_router(allow=frozenset({name})).decide(message), Forward)


@pytest.mark.parametrize(("code", "expected"), [(280, 136), (286, 136), (43, 43), (11600, 11600)])
def test_an_upstream_that_lost_its_oplog_says_136(code: int, expected: int) -> None:
    replies = Replies()
    log = StreamLog()
    stream = Stream(scope=WHOLE_CLUSTER, log=log, codec=TokenCodec(log.cluster_id), sends_post_batch_token=True)
    replies.streams[5] = stream
    reply = {"ok": 0.0, "code": code, "errmsg": "x", "operationTime": Timestamp(9, 1)}
    told = bson.decode(b"".join(replies.stream(stream, 5)(bson.encode(reply), 0)))
    assert told["code"] == expected
    assert told["operationTime"] == Timestamp(9, 1)
    assert bool(replies.streams) == (code == 11600)


def test_hello_of_a_secondary_names_no_primary() -> None:
    hello: dict[str, Any] = {"hosts": ["a:1", "b:2"], "primary": "b:2", "isWritablePrimary": False}
    shape_hello(hello, "g:1", "rs0", failing=False)
    assert hello == {
        "hosts": ["g:1"],
        "me": "g:1",
        "setName": "rs0",
        "isWritablePrimary": False,
    }


def test_databases_without_local_add_up() -> None:
    rows = [{"name": name, "sizeOnDisk": 2**20} for name in ("a", "local", "config")]
    reply: dict[str, Any] = {"databases": rows, "totalSize": 3 * 2**20, "totalSizeMb": 3}
    shape_databases(reply)
    assert reply == {"databases": rows[:1], "totalSize": 2**20, "totalSizeMb": 1}


def test_every_fact_has_its_test_and_its_row() -> None:
    tests = "".join(each.read_text() for each in PROJECT.joinpath("tests/integration").glob("test_gateway_*.py"))
    page = PROJECT.joinpath("docs/gateway.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \|(.* `test_.*)\|$", page, re.MULTILINE))
    assert set(rows) == {fact.name for fact in facts.FACTS}
    for fact in facts.FACTS:
        assert f"async def {fact.test}(" in tests
        assert f"`{fact.test}`" in rows[fact.name]
        assert f"| {', '.join(fact.basis)} |" in rows[fact.name]


def test_a_found_element_is_the_first_of_its_name() -> None:
    raw = bson.encode({"a": 1, "b": {"a": 2}})
    found = find(raw, 0, b"b")
    assert found is not None
    assert bson.decode(raw[found[3] : found[4]]) == {"a": 2}
    assert find(raw, 0, b"c") is None
