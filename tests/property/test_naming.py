"""Keys of segments: whatever a database, a collection or an `_id` is called, its key can be read back."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from hypothesis import given
from hypothesis import strategies as st

from d5agent.core.log.naming import id_to_text, parse_segment_key, segment_key, text_to_id
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.log.raw import DocumentId
from tests.fakes.documents import raw_id

_LONGEST_KEY = 1024
_HARD_CHARACTERS = "/_~%.\"'{}[]\\ \x01\t\n+&=#?:;,aé漢字𝄞ابת️\u202e"
_HARD_TEXTS = (
    *("", "null", "true", "false", "NaN", "Infinity", "-Infinity", "0", "-0", "1", "-1", "007", "1.0", "1e5"),
    *("2147483647", "2147483648", "-2147483649", "9999999999", "12345678901", "507f1f77bcf86cd799439011"),
    *(
        "507F1F77BCF86CD799439011",
        "{}",
        "[]",
        '{"$oid":"507f1f77bcf86cd799439011"}',
        '"quoted"',
        '"',
        "~none",
        ".database",
    ),
    *('{"$bson":"AA=="}', '{"a":1}', "%2F", "a/b", "../..", "a_2", "a~b", "x" * 1000, "漢" * 1000, "/" * 1000),
)
_texts = st.one_of(
    st.sampled_from(_HARD_TEXTS),
    st.text(max_size=20),
    st.text(alphabet=_HARD_CHARACTERS, max_size=400),
    st.from_regex(r"-?[0-9]{1,24}", fullmatch=True),
    st.from_regex(r"[0-9a-fA-F]{24}", fullmatch=True),
)
_dates = st.integers(-(2**63), 2**63 - 1).map(DatetimeMS)
_c_strings = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_scalars = st.one_of(
    _texts,
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    st.floats(),
    st.binary(min_size=12, max_size=12).map(ObjectId),
    st.builds(Binary, st.binary(max_size=300), st.integers(0, 255)),
    st.binary(min_size=16, max_size=16).map(Decimal128.from_bid),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**20), max_value=10**20).map(
        lambda value: Decimal128(Decimal(value))
    ),
    _dates,
    st.datetimes(timezones=st.just(dt.UTC)),
    st.builds(Timestamp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.builds(Regex, _c_strings, st.integers(0, 0xFF).map(lambda flags: flags & 0b1011010)),
    _texts.map(Code),
    st.builds(Code, _texts, st.dictionaries(_c_strings, st.integers(0, 9), max_size=2)),
    st.builds(DBRef, _c_strings, st.integers(0, 9)),
    st.just(MinKey()),
    st.just(MaxKey()),
)
_values = st.one_of(_scalars, st.dictionaries(_c_strings, _scalars, max_size=4))


def _raw(value: object) -> DocumentId:
    return raw_id(value)


# Undefined, DBPointer and symbol are deprecated, but a database that is old enough holds them.
_deprecated = st.sampled_from(
    (
        DocumentId(b"\x06"),
        DocumentId(b"\x0c\x02\x00\x00\x00a\x00" + bytes(range(12))),
        DocumentId(b"\x0e\x03\x00\x00\x00ab\x00"),
    )
)
_not_utf8 = st.binary(min_size=1, max_size=6).map(
    lambda text: DocumentId(b"\x02" + (len(text) + 1).to_bytes(4, "little") + text + b"\0")
)
_ids = st.one_of(_values.map(_raw), _deprecated, _not_utf8)
_names = st.one_of(_texts, _c_strings).filter(lambda name: name != "" and not name.startswith("."))
_times = st.builds(ClusterTime, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


@given(id_=_ids)
def test_an_id_as_text_can_be_read_back(id_: DocumentId) -> None:
    assert text_to_id(id_to_text(id_)) == id_


@given(one=_ids, other=_ids)
def test_different_ids_never_share_a_key(one: DocumentId, other: DocumentId) -> None:
    namespace, time = Namespace("shop", "orders"), ClusterTime(1, 1)
    assert (segment_key(namespace, time, one) == segment_key(namespace, time, other)) == (one == other)


_namespaces = st.none() | st.builds(Namespace, _names, st.none() | _names)
_suffixes = st.sampled_from((".bson", ".bson.zst"))


@given(namespace=_namespaces, id_=st.none() | _ids, time=_times, ordinal=st.integers(1, 20_000), suffix=_suffixes)
def test_a_key_can_be_read_back(
    namespace: Namespace | None, id_: DocumentId | None, time: ClusterTime, ordinal: int, suffix: str
) -> None:
    key = segment_key(namespace, time, id_, ordinal=ordinal, suffix=suffix)
    assert key.endswith(suffix)
    assert len(key.encode()) < _LONGEST_KEY
    assert key.isascii()
    parts = parse_segment_key(key)
    assert (parts.first, parts.ordinal) == (time, ordinal)
    if "~" not in key:
        assert (parts.namespace, parts.document_id) == (namespace, id_)
    if id_ is None:
        assert parts.document_id is None


@given(one=_names, other=_names)
def test_different_collections_never_share_a_folder(one: str, other: str) -> None:
    keys = [segment_key(Namespace("shop", name), ClusterTime(1, 1), None) for name in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


@given(one=_namespaces, other=_namespaces, id_=_ids, suffixes=st.tuples(_suffixes, _suffixes))
def test_a_key_belongs_to_one_namespace_and_one_kind_of_content(
    one: Namespace | None, other: Namespace | None, id_: DocumentId, suffixes: tuple[str, str]
) -> None:
    keys = [
        segment_key(name, ClusterTime(1, 1), id_, suffix=suffix)
        for name, suffix in zip((one, other), suffixes, strict=True)
    ]
    assert (keys[0] == keys[1]) == ((one, suffixes[0]) == (other, suffixes[1]))


@given(times=st.lists(_times, max_size=10))
def test_keys_are_listed_in_the_order_of_time(times: list[ClusterTime]) -> None:
    keys = [segment_key(Namespace("shop", "orders"), time, None) for time in sorted(times)]
    assert keys == sorted(keys)
