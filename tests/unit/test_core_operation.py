"""Events parsed: what the log needs to know, and the bytes as they came."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from bson import Timestamp, decode, encode
from hypothesis import given
from hypothesis import strategies as st

from d5agent.core.operation import OWN_DATABASE, ClusterTime, Namespace, glance, parse_event
from d5agent.errors import CorruptDataError
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


@pytest.mark.parametrize("field", ["_id", "operationType", "clusterTime", "ns"])
def test_an_event_without_a_field_that_each_has_is_corrupt(field: str) -> None:
    event = decode(raw_event("insert", 1))
    del event[field]
    with pytest.raises(CorruptDataError, match="lacks a field") as caught:
        parse_event(encode(event))
    assert caught.value.facts == {"field": field}


def test_a_namespace_without_a_database_is_corrupt() -> None:
    with pytest.raises(CorruptDataError, match="no database"):
        operation("insert", 1, ns={"coll": "orders", "more": 1})


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


@pytest.mark.parametrize("size", range(4, len(raw_event("update", 3, "id")), 7))
def test_a_cut_event_is_corrupt_at_a_glance_too_or_seen_as_far_as_needed(size: int) -> None:
    raw = raw_event("update", 3, "id")[:size]
    try:
        seen = glance(raw)
    except CorruptDataError:
        return
    assert (seen.namespace, seen.cluster_time) == (ORDERS, at(3))
