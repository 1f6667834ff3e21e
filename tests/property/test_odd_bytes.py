"""Nothing that a server may store or send stops a stage: ids, names, documents and events from their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from d5agent.core.compare.compare import difference_of, differing_fields
from d5agent.core.compare.touched import Touched
from d5agent.core.log.extended_json import to_text, value_to_readable
from d5agent.core.log.glance import change_at, glance, touch_at
from d5agent.core.log.identity import identity_of
from d5agent.core.log.naming import id_to_text, parse_segment_key, segment_key, text_to_id
from d5agent.core.log.operation import ClusterTime, Namespace, parse_event
from d5agent.core.log.raw import DocumentId, document_id, elements, id_document
from d5agent.core.log.segment import decode_changes, decode_segment, mixed_segment, touches_of
from d5agent.core.log.segmenter import Segmenter
from d5agent.core.replay.replay import Unresolved, Window
from d5agent.core.replay.unique_key import UniqueIndex, comparable, key_to_text, keys_of
from d5agent.errors import CorruptDataError
from tests.property.bson_bytes import DOCUMENTS, IDS, TEXTS, document, events, string

if TYPE_CHECKING:
    from d5agent.core.log.segment import Segment
    from d5agent.core.log.segmenter import Cut

TIME = ClusterTime(1, 1)
_DECIMAL = (0x03, document(((b"$numberDecimal", (2, string(b"x"))),)))
STOPPED_CAPTURE = DocumentId(b"\x03" + document(((b"$ref", (2, string(b"c"))), (b"$id", _DECIMAL))))


@given(id_=IDS)
@example(id_=STOPPED_CAPTURE)
def test_every_id_has_a_key_that_can_be_read_back(id_: DocumentId) -> None:
    text = id_to_text(id_)
    assert text_to_id(text) == id_
    key = segment_key(Namespace("shop", "orders"), TIME, id_)
    assert key.isascii()
    assert parse_segment_key(key).document_id in {id_, None}


@given(database=TEXTS, collection=TEXTS | st.none())
def test_every_name_has_a_key_that_can_be_read_back(database: bytes, collection: bytes | None) -> None:
    event = document(
        (
            (b"_id", (3, document(()))),
            (b"operationType", (2, string(b"drop"))),
            (b"clusterTime", (0x11, bytes(8))),
            (b"ns", (3, document([(b"db", (2, string(database))), *_named(collection)]))),
        )
    )
    namespace = parse_event(event).namespace
    key = segment_key(namespace, TIME, None)
    assert key.isascii()
    if "~" not in key.removesuffix("~none.bson"):
        assert parse_segment_key(key).namespace == namespace


def _named(collection: bytes | None) -> list[tuple[bytes, tuple[int, bytes]]]:
    return [] if collection is None else [(b"coll", (2, string(collection)))]


@given(body=DOCUMENTS, other=DOCUMENTS)
def test_every_document_can_be_printed_compared_and_indexed(body: bytes, other: bytes) -> None:
    to_text(body).encode()
    differing_fields(body, other)
    index = UniqueIndex(name="i", fields=("a.b", "_id"), partial={"a": {"$gt": 1}}, collation={"strength": 1})
    for key in keys_of(index, body, is_in=True) + keys_of(index, body):
        comparable(index, key)
        key_to_text(index, key).encode()
    for element in elements(body):
        value = DocumentId(bytes((element.type,)) + body[element.start : element.end])
        identity_of(value)
        value_to_readable(value).encode()


@given(one=IDS, other=IDS)
def test_different_ids_are_named_as_two(one: DocumentId, other: DocumentId) -> None:
    found = difference_of(Namespace("a", "b"), one, id_document(one), None)
    assert found is not None
    assert (id_to_text(one) == id_to_text(other)) == (one == other)
    if one == other:
        assert identity_of(one) == identity_of(other)


@given(found=st.lists(events(), min_size=1, max_size=4))
def test_every_event_is_captured_and_read_again(found: list[bytes]) -> None:
    segmenter = Segmenter(max_bytes=10_000, max_age_seconds=1)
    cuts: list[Cut] = []
    for number, event in enumerate(found):
        seen, parsed = glance(event), parse_event(event)
        assert seen == (parsed.is_barrier, parsed.namespace, parsed.cluster_time, event)
        assert seen.token == parsed.token
        cuts += segmenter.add(seen, now=number)
    segmenter.seal(None)
    last = segmenter.drain()
    assert last is not None
    segments = [segment for cut in [*cuts, last] for segment in cut.segments]
    assert sum(segment.count for segment in segments) == len(found)
    for segment in [*segments, mixed_segment([[parse_event(event)] for event in found])]:
        _read_again(segment)


def _read_again(segment: Segment) -> None:
    ref = segment.ref(segment.key())
    assert parse_segment_key(ref.key).first == segment.first
    operations = list(decode_segment(ref, segment.body))
    assert b"".join(operation.raw for operation in operations) == segment.body
    window, doubts = Window(), Unresolved()
    for change in decode_changes(ref, segment.body):
        if not hasattr(change, "is_barrier"):
            window.add(change)
    window.settle(doubts)
    doubts.to_json()
    touches = list(touches_of(ref, segment.body))
    assert [touch.document_id for touch in touches] == [operation.document_id for operation in operations]
    assert len(list(Touched().add(0, ref, segment.body))) == 0


@given(event=events(), at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), is_cut=st.booleans())
def test_a_damaged_event_is_an_event_or_corrupt_data(event: bytes, at: float, byte: int, *, is_cut: bool) -> None:
    place = int(at * len(event))
    damaged = event[:place] + (b"" if is_cut else bytes((byte,)) + event[place + 1 :])
    for look in (parse_event, glance, lambda e: change_at(e, 0, len(e)), lambda e: touch_at(e, 0, len(e)), document_id):
        try:
            look(damaged)
        except CorruptDataError:
            continue


@pytest.mark.parametrize("size", [0, 4, 5, 100])
def test_no_bytes_are_no_event(size: int) -> None:
    with pytest.raises(CorruptDataError):
        parse_event(bytes(size))
