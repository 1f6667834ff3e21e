"""Events parsed: what the log needs to know, and the bytes as they came."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Timestamp, decode, encode
from hypothesis import given
from hypothesis import strategies as st

from d5agent.core.log.glance import Change, change_at, glance, touch_at
from d5agent.core.log.naming import parse_segment_key
from d5agent.core.log.operation import OWN_DATABASE, UNNAMED, ClusterTime, Namespace, parse_event
from d5agent.core.log.segment import encode_segment
from d5agent.core.replay.replay import barrier_of
from d5agent.errors import CorruptDataError, OperatorError
from tests.fakes.documents import raw_id
from tests.fakes.events import ORDERS, at, operation, raw_event


def test_an_event_keeps_its_bytes_and_tells_what_it_is() -> None:
    raw = raw_event("insert", 3, "id")
    parsed = parse_event(raw)
    assert parsed.raw is raw
    assert (parsed.kind, parsed.namespace, parsed.cluster_time) == ("insert", ORDERS, at(3))
    assert parsed.document_id == raw_id("id")
    assert parsed.document == encode({"_id": "id", "n": 3})
    assert decode(parsed.token) == {"_data": "00000003"}
    assert not parsed.is_barrier
    assert not parsed.is_ours


def test_an_update_whose_document_was_gone_has_none() -> None:
    assert operation("update", 1, fullDocument=None).document is None


def test_a_delete_has_an_id_and_no_document() -> None:
    deleted = operation("delete", 1, 5)
    assert (deleted.document_id, deleted.document) == (raw_id(5), None)


def test_a_rename_tells_both_names_and_is_a_barrier() -> None:
    renamed = operation("rename", 1, to={"db": "shop", "coll": "new"})
    assert (renamed.namespace, renamed.rename_to) == (ORDERS, Namespace("shop", "new"))
    assert renamed.is_barrier
    assert renamed.document_id is None


def test_a_database_event_has_no_collection() -> None:
    assert operation("dropDatabase", 1, namespace=Namespace("shop")).namespace == Namespace("shop", None)


def test_an_unknown_kind_is_captured_and_stands_alone() -> None:
    assert operation("shardCollection", 1).is_barrier


def test_what_happens_in_our_own_database_is_ours() -> None:
    assert operation("insert", 1, namespace=Namespace(OWN_DATABASE, "marks")).is_ours


@pytest.mark.parametrize("field", ["_id", "clusterTime"])
def test_an_event_without_a_place_in_the_stream_is_corrupt(field: str) -> None:
    event = decode(raw_event("insert", 1))
    del event[field]
    with pytest.raises(CorruptDataError, match="lacks a field") as caught:
        parse_event(encode(event))
    assert caught.value.facts == {"field": field}


@pytest.mark.parametrize("field", ["_id", "clusterTime"])
def test_an_event_whose_place_is_of_another_type_is_corrupt(field: str) -> None:
    with pytest.raises(CorruptDataError, match="another type"):
        parse_event(encode({**decode(raw_event("insert", 1)), field: 1}))


@pytest.mark.parametrize(
    "ns",
    [
        *(None, 1, {}, {"coll": "orders", "more": 1}, {"db": 1}, {"db": "shop", "coll": 1}, {"db": ""}),
        *({"db": ".log"}, {"db": "shop", "coll": ""}, {"db": "shop", "coll": ".database"}),
    ],
)
def test_an_event_that_does_not_say_where_is_captured_alone_and_never_replayed(ns: object) -> None:
    event = raw_event("insert", 1, ns=ns)
    seen, parsed = glance(event), parse_event(event)
    assert seen == (True, UNNAMED, at(1), event)
    assert (parsed.kind, parsed.is_barrier) == ("insert without a namespace", True)
    assert change_at(event, 0, len(event)) == parsed
    segment = encode_segment([seen])
    assert segment.key().startswith("replication/.unnamed/.database/")
    assert parse_segment_key(segment.key()).namespace == UNNAMED
    with pytest.raises(OperatorError, match="cannot be replayed"):
        barrier_of(parsed)


def test_an_event_without_a_type_is_captured_alone() -> None:
    event = decode(raw_event("insert", 1))
    del event["operationType"]
    assert parse_event(encode(event)).kind == "unknown"
    assert glance(encode(event)).is_barrier


def test_an_event_whose_key_has_no_id_is_captured_without_one() -> None:
    event = raw_event("insert", 1, documentKey={"shard": 1})
    assert encode_segment([glance(event)]).document_id is None
    assert change_at(event, 0, len(event)) == parse_event(event)
    assert touch_at(event, 0, len(event)).document_id is None


def test_a_rename_to_a_name_that_is_none_is_never_replayed() -> None:
    with pytest.raises(OperatorError, match="cannot be replayed"):
        barrier_of(operation("rename", 1, to={"db": ".log"}))


def test_times_and_names_print_as_they_stand_in_keys() -> None:
    assert str(ClusterTime(5, 12)) == "0000000005-0000000012"
    assert (str(ORDERS), str(Namespace("shop"))) == ("shop.orders", "shop")
    assert ClusterTime(5, 12) < ClusterTime(6, 1)


_FIELDS = {
    "_id": {"_data": "8263"},
    "operationType": "insert",
    "clusterTime": Timestamp(5, 6),
    "wallTime": None,
    "fullDocument": {"ns": {"db": "not this", "coll": "one"}, "clusterTime": Timestamp(1, 1)},
    "ns": {"db": "shop", "coll": "orders"},
    "documentKey": {"_id": 1},
    "updateDescription": {"updatedFields": {"ns": 1}},
}


@given(
    order=st.permutations(sorted(_FIELDS)),
    kind=st.sampled_from(["insert", "update", "replace", "delete", "drop", "dropDatabase", "unheardOf"]),
    document=st.sampled_from([None, {}, {"a": "x" * 300}, _FIELDS["fullDocument"]]),
    token=st.sampled_from([{"_data": "8263"}, {"_data": "00ff", "_typeBits": b"1"}, {"other": 1}]),
    left_out=st.sets(st.sampled_from(["wallTime", "fullDocument", "documentKey", "updateDescription"])),
)
def test_a_glance_sees_what_parsing_sees_in_whatever_order(
    order: list[str], kind: str, document: object, token: object, left_out: set[str]
) -> None:
    changed = {"operationType": kind, "fullDocument": document, "_id": token}
    raw = encode({name: changed.get(name, _FIELDS[name]) for name in order if name not in left_out})
    seen, parsed = glance(raw), parse_event(raw)
    assert seen.raw is raw
    assert (seen.namespace, seen.cluster_time) == (parsed.namespace, parsed.cluster_time)
    assert (seen.is_barrier, seen.is_ours) == (parsed.is_barrier, parsed.is_ours)
    assert (seen.token, seen.document_id) == (parsed.token, parsed.document_id)
    _require_same_touch(raw)


def _require_same_touch(raw: bytes) -> None:
    """What is touched is what parsing says, wherever the event lies."""
    parsed, begin = parse_event(raw), 7
    seen = touch_at(b"before!" + raw + b"after", begin, begin + len(raw))
    assert seen.size == len(raw)
    assert (seen.namespace, seen.cluster_time, seen.kind) == (parsed.namespace, parsed.cluster_time, parsed.kind)
    assert (seen.document_id, seen.rename_to) == (parsed.document_id, parsed.rename_to)
    assert seen.has_document == (parsed.kind == "delete" or parsed.document is not None)


@pytest.mark.parametrize("id_", [1, "a", {"z": 1}, None, b"x" * 300])
@pytest.mark.parametrize("kind", ["insert", "update", "replace", "delete", "drop", "rename"])
@pytest.mark.parametrize("is_null", [True, False])
def test_what_an_event_touches_is_seen_without_taking_it_out(id_: object, kind: str, is_null: bool) -> None:  # noqa: FBT001 -- a row of the table
    changed: dict[str, Any] = {"fullDocument": None} if is_null else {}
    if kind == "rename":
        changed["to"] = {"db": "shop", "coll": "new"}
    raw = raw_event(kind, 3, id_, **changed)
    _require_same_touch(raw)
    fields = decode(raw)  # as servers order them: the document before the namespace
    as_sent = [n for n in (*_FIELDS, "to") if n in fields]
    _require_same_touch(encode({name: fields[name] for name in as_sent}))


@pytest.mark.parametrize(
    "order",
    [
        "_id operationType clusterTime ns documentKey",
        "_id operationType clusterTime wallTime ns documentKey updateDescription",
        "_id operationType clusterTime fullDocument ns documentKey",
        "_id operationType clusterTime wallTime fullDocument ns documentKey updateDescription",
        "_id operationType clusterTime wallTime ns documentKey fullDocument",
    ],
)
@pytest.mark.parametrize("document", [None, {}, {"a": "x" * 300}, _FIELDS["fullDocument"], {"ns": {"db": 1}}])
@pytest.mark.parametrize("kind", ["update", "drop"])
def test_a_glance_at_an_event_as_servers_send_it_sees_what_parsing_sees(
    order: str, document: object, kind: str
) -> None:
    changed = {"operationType": kind, "fullDocument": document, "wallTime": datetime(2026, 11, 2, tzinfo=UTC)}
    raw = encode({name: changed.get(name, _FIELDS[name]) for name in order.split()})
    seen, parsed = glance(raw), parse_event(raw)
    assert (seen.namespace, seen.cluster_time) == (parsed.namespace, parsed.cluster_time) == (ORDERS, ClusterTime(5, 6))
    assert (seen.is_barrier, seen.token) == (parsed.is_barrier, parsed.token)
    _require_same_touch(raw)


@pytest.mark.parametrize("size", range(4, len(raw_event("update", 3, "id")), 7))
def test_a_cut_event_is_corrupt_at_a_glance_too_or_seen_as_far_as_needed(size: int) -> None:
    raw = raw_event("update", 3, "id")[:size]
    try:
        seen = glance(raw)
    except CorruptDataError:
        return
    assert (seen.namespace, seen.cluster_time) == (ORDERS, at(3))


@pytest.mark.parametrize("kind", ["insert", "update", "replace", "delete"])
@pytest.mark.parametrize("order", ["mongodb", "documentdb", "another"])
def test_what_replay_needs_is_the_same_however_the_fields_are_ordered(kind: str, order: str) -> None:
    whole = decode(raw_event(kind, 7, "größe", fullDocument=None if kind == "update" else {"_id": "größe", "n": [1]}))
    names = {
        "mongodb": ("_id", "operationType", "clusterTime", "fullDocument", "ns", "documentKey"),
        "documentdb": ("_id", "operationType", "clusterTime", "ns", "documentKey", "fullDocument"),
        "another": ("fullDocument", "documentKey", "ns", "clusterTime", "operationType", "_id"),
    }[order]
    if kind == "delete":
        del whole["fullDocument"]
    event = encode({name: whole[name] for name in names if name in whole})
    parsed = parse_event(event)
    around = b"before" + event + event
    found = change_at(around, 6, 6 + len(event))
    assert found == Change(parsed.kind, parsed.namespace, parsed.document_id or raw_id(0), parsed.document)
    assert (found.document is None) == (kind in {"update", "delete"})


def test_what_concerns_more_than_a_document_is_an_operation() -> None:
    event = raw_event("drop", 1)
    assert change_at(event, 0, len(event)) == parse_event(event)


@pytest.mark.parametrize("length", [20, 90, 120, 150])
def test_a_torn_event_is_corrupt_and_no_change(length: int) -> None:
    event = raw_event("insert", 1)[:length]
    with pytest.raises(CorruptDataError):
        change_at(event, 0, len(event))


@pytest.mark.parametrize("size", range(5, len(raw_event("update", 3, "id")), 7))
def test_a_cut_event_touches_nothing_or_what_is_seen_of_it(size: int) -> None:
    fields = decode(raw_event("update", 3, "id"))
    raw = encode({name: fields[name] for name in _FIELDS if name in fields})[:size]
    try:
        seen = touch_at(raw, 0, len(raw))
    except CorruptDataError:
        return
    assert (seen.namespace, seen.document_id) == (ORDERS, raw_id("id"))


def test_an_event_whose_sizes_are_wrong_is_corrupt() -> None:
    fields = decode(raw_event("update", 3, "id"))
    raw = encode({name: fields[name] for name in _FIELDS if name in fields})
    at = raw.index(b"fullDocument") + 13
    for size in (b"\xff\xff\xff\x7f", b"\xff\xff\x00\x00"):
        with pytest.raises(CorruptDataError):
            touch_at(raw[:at] + size + raw[at + 4 :], 0, len(raw))
