"""Segments: the events as they came, and a check before the first is believed."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bson import encode

from d5agent.core.log.segment import SegmentRef, compressed, decode_segment, encode_segment, mixed_segment, touches_of
from d5agent.errors import CorruptDataError
from tests.fakes.commits import GOLDEN_SEGMENT
from tests.fakes.documents import raw_id
from tests.fakes.events import ITEMS, ORDERS, at, operation, raw_event

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).parents[1] / "data"
GOLDEN_COMPRESSED = replace(
    GOLDEN_SEGMENT,
    key=f"{GOLDEN_SEGMENT.key}.zst",
    bytes=251,
    sha256="ceae98b565eb739ffb21bd62cff52a3045b60a2b563d00472dc71bf60708f0ea",
)


def test_a_segment_is_its_events_joined() -> None:
    operations = [operation("insert", 1, 5), operation("update", 2, 6), operation("delete", 2, 5)]
    segment = encode_segment(operations)
    assert segment.body == raw_event("insert", 1, 5) + raw_event("update", 2, 6) + raw_event("delete", 2, 5)
    assert (segment.namespace, segment.document_id, segment.count) == (ORDERS, raw_id(5), 3)
    assert (segment.first, segment.last) == (at(1), at(2))
    assert segment.key() == "replication/shop/orders/1793600000-0000000001_5.bson"
    assert segment.key(ordinal=3).endswith("_5_3.bson")


def test_what_was_encoded_is_decoded() -> None:
    operations = [operation("insert", 1), operation("delete", 2)]
    segment = encode_segment(operations)
    assert list(decode_segment(segment.ref("key"), segment.body)) == operations


def test_yesterdays_segment_is_read() -> None:
    operations = list(decode_segment(GOLDEN_SEGMENT, (DATA / "segment-1.bson").read_bytes()))
    assert [(o.kind, o.cluster_time.increment, o.document_id) for o in operations] == [
        ("insert", 1, raw_id(1)),
        ("update", 2, raw_id(1)),
        ("update", 3, raw_id("é")),
        ("delete", 4, raw_id(1)),
    ]
    assert encode_segment(operations).ref(GOLDEN_SEGMENT.key) == GOLDEN_SEGMENT


@pytest.mark.parametrize("end", [b"", b"\x01\x00"], ids=["cut", "changed"])
def test_a_segment_of_other_bytes_is_corrupt_before_its_first_operation(end: bytes) -> None:
    segment = encode_segment([operation("insert", 1)])
    with pytest.raises(CorruptDataError, match="not what its commit says") as caught:
        next(decode_segment(segment.ref("key"), segment.body[:-2] + end))
    assert caught.value.facts["key"] == "key"
    assert "versioning" in caught.value.hint


def test_a_segment_of_another_count_is_corrupt() -> None:
    segment = encode_segment([operation("insert", 1)])
    with pytest.raises(CorruptDataError, match="another number of operations") as caught:
        next(decode_segment(replace(segment.ref("key"), count=2), segment.body))
    assert (caught.value.facts["count"], caught.value.facts["expected"]) == (1, 2)


def test_a_mixed_segment_is_the_events_of_one_collection_after_those_of_another() -> None:
    orders = [operation("insert", 2, 5), operation("update", 9, 6)]
    items = [operation("insert", 1, 7, namespace=ITEMS), operation("insert", 3, 8, namespace=ITEMS)]
    segment = mixed_segment([orders, items])
    assert segment.body == b"".join(o.raw for o in (*orders, *items))
    assert (segment.namespace, segment.document_id, segment.count) == (None, raw_id(7), 4)
    assert (segment.first, segment.last) == (at(1), at(9))
    assert segment.key() == "replication/.mixed/1793600000-0000000001_7.bson"
    assert list(decode_segment(segment.ref("key"), segment.body)) == [*orders, *items]


def test_a_compressed_segment_is_one_frame_of_the_same_events() -> None:
    plain = encode_segment([operation("insert", n) for n in range(50)])
    segment = compressed(plain)
    assert zstd.decompress(segment.body) == plain.body
    assert zstd.get_frame_info(segment.body).decompressed_size == len(plain.body)
    assert len(segment.body) < len(plain.body) / 2
    assert segment.key() == f"{plain.key()}.zst"
    assert segment.key(ordinal=2) == f"{plain.key(ordinal=2)}.zst"
    assert (segment.count, segment.first, segment.last) == (plain.count, plain.first, plain.last)


def test_a_commit_tells_size_and_hash_of_the_compressed_object() -> None:
    plain = encode_segment([operation("insert", 1), operation("delete", 2)])
    segment = compressed(plain)
    ref = segment.ref(segment.key())
    assert (ref.bytes, ref.sha256) == (len(segment.body), hashlib.sha256(segment.body).hexdigest())
    assert list(decode_segment(ref, segment.body)) == list(decode_segment(plain.ref(plain.key()), plain.body))
    with pytest.raises(CorruptDataError, match="not what its commit says"):
        next(decode_segment(ref, plain.body))


def test_yesterdays_compressed_segment_is_read() -> None:
    body = (DATA / "segment-1.bson.zst").read_bytes()
    plain = decode_segment(GOLDEN_SEGMENT, (DATA / "segment-1.bson").read_bytes())
    assert list(decode_segment(GOLDEN_COMPRESSED, body)) == list(plain)


def _ref_of(body: bytes, *, key: str) -> SegmentRef:
    """Return what a commit would say of bytes, whatever they are."""
    return replace(GOLDEN_SEGMENT, key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize(
    "damaged",
    [lambda frame: frame[:-3], lambda frame: b"\0" + frame[1:], lambda frame: frame + b"more", lambda _: b"no frame"],
    ids=["cut", "changed", "longer", "none"],
)
def test_a_frame_that_cannot_be_read_is_corrupt(damaged: Callable[[bytes], bytes]) -> None:
    body = damaged(compressed(encode_segment([operation("insert", 1)])).body)
    with pytest.raises(CorruptDataError, match="a compressed segment cannot be read") as caught:
        next(decode_segment(_ref_of(body, key="key.bson.zst"), body))
    assert caught.value.facts["key"] == "key.bson.zst"
    assert "d5agent log verify" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        raw_event("insert", 1),
        raw_event("insert", 1)[:-1],
        b"no events at all",
        encode({}) * 4,
        b"\x05\0\0\0\1" * 4,
    ],
    ids=["nothing", "another number", "a part", "other bytes", "other documents", "no documents"],
)
@pytest.mark.parametrize("key", ["key.bson", "key.bson.zst"])
def test_other_content_is_corrupt_and_the_error_names_the_segment(content: bytes, key: str) -> None:
    body = zstd.compress(content) if key.endswith(".zst") else content
    with pytest.raises(CorruptDataError) as caught:
        list(decode_segment(_ref_of(body, key=key), body))
    assert caught.value.facts["key"] == key
    assert caught.value.hint


def test_what_a_segment_touches_is_what_its_operations_do() -> None:
    operations = [operation("insert", 1, 5), operation("update", 2, 6, fullDocument=None), operation("delete", 3, 5)]
    plain = encode_segment(operations)
    for segment in (plain, compressed(plain)):
        found = list(touches_of(segment.ref(segment.key()), segment.body))
        assert [(f.kind, f.document_id, f.has_document) for f in found] == [
            ("insert", raw_id(5), True),
            ("update", raw_id(6), False),
            ("delete", raw_id(5), True),
        ]


def test_a_segment_that_is_not_whole_touches_nothing() -> None:
    segment = encode_segment([operation("insert", 1)])
    with pytest.raises(CorruptDataError, match="not what its commit says"):
        next(touches_of(segment.ref("key"), segment.body[:-1]))
    with pytest.raises(CorruptDataError, match="another number of operations"):
        list(touches_of(replace(segment.ref("key"), count=2), segment.body))


@pytest.mark.parametrize(
    "body",
    [b"\0\0\0\0\0", b"\x05\0", raw_event("insert", 1)[:-1], encode({"a": 1}), b"\xff\xff\xff\xff" + b"\0" * 60],
    ids=["no size", "cut size", "cut event", "no event", "negative size"],
)
def test_what_is_no_event_is_named_with_its_segment(body: bytes) -> None:
    with pytest.raises(CorruptDataError, match="no event") as caught:
        list(touches_of(replace(_ref_of(body, key="the key"), count=1), body))
    assert caught.value.facts["key"] == "the key"
