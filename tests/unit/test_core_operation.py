"""Events parsed: what the log needs to know, and the bytes as they came."""

from __future__ import annotations

import pytest
from bson import decode, encode

from d5agent.core.operation import OWN_DATABASE, ClusterTime, Namespace, parse_event
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
