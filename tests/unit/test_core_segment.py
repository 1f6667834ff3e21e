"""Segments: the events as they came, and a check before the first is believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from d5agent.core.operation import ClusterTime
from d5agent.core.segment import SegmentRef, decode_segment, encode_segment
from d5agent.errors import CorruptDataError
from tests.fakes.documents import raw_id
from tests.fakes.events import ORDERS, at, operation, raw_event

DATA = Path(__file__).parents[1] / "data"
GOLDEN = SegmentRef(
    key="replication/shop/orders/1793600000-0000000001_1.bson",
    count=4,
    bytes=753,
    sha256="8ff59a6eb08c2d84b4e2a9d2d92945b53f0ffd91ebbd0d68f9fb69de1d8cde33",
    first=ClusterTime(1_793_600_000, 1),
    last=ClusterTime(1_793_600_000, 4),
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
    operations = list(decode_segment(GOLDEN, (DATA / "segment-1.bson").read_bytes()))
    assert [(o.kind, o.cluster_time.increment, o.document_id) for o in operations] == [
        ("insert", 1, raw_id(1)),
        ("update", 2, raw_id(1)),
        ("update", 3, raw_id("é")),
        ("delete", 4, raw_id(1)),
    ]
    assert encode_segment(operations).ref(GOLDEN.key) == GOLDEN


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
