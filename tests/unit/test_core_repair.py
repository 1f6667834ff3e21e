"""Why a document had to be repaired: the event that explains it, or that none does."""

from __future__ import annotations

import pytest
from bson import encode

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.compare.repair import EXPLANATIONS, Cause, KnownEvents, LastEvent, Repair
from d5agent.core.log.operation import ClusterTime, Namespace
from tests.fakes.documents import raw_id
from tests.fakes.events import ORDERS

DOCUMENT = encode({"_id": 1, "n": 1})
TIME = ClusterTime(7, 8)
DIFFERENCE = Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.MISSING)


def _event(kind: str, *, sequence: int = 5, has_document: bool = True) -> LastEvent:
    return LastEvent(sequence, TIME, kind, has_document)


MOVED = _event("rename", has_document=False)
NULL = _event("update", has_document=False)


@pytest.mark.parametrize(
    ("event", "moved", "told", "cause"),
    [
        (NULL, None, None, Cause.EVENT_WITHOUT_DOCUMENT),
        (NULL, MOVED, None, Cause.EVENT_WITHOUT_DOCUMENT),
        (_event("update"), MOVED, DOCUMENT, Cause.NAME_MOVED),
        (None, MOVED, None, Cause.NAME_MOVED),
        (_event("update", sequence=6), None, DOCUMENT, Cause.CAME_LATER),
        (_event("update"), None, b"other", Cause.SOURCE_MOVED_ON),
        (_event("delete"), None, None, Cause.SOURCE_MOVED_ON),
        (_event("update"), None, DOCUMENT, Cause.UNEXPLAINED),
        (None, None, None, Cause.UNEXPLAINED),
    ],
)
def test_each_repair_has_its_cause(
    event: LastEvent | None, moved: LastEvent | None, told: bytes | None, cause: Cause
) -> None:
    repair = Repair(
        difference=DIFFERENCE,
        written_hash=hash(DOCUMENT),
        event=event,
        moved=moved,
        applied=5,
        segment="replication/shop/orders/1_1.bson",
        event_hash=None if told is None else hash(told),
    )
    assert repair.cause is cause
    values = repair.to_json()
    assert (values["cause"], values["explanation"]) == (cause.value, EXPLANATIONS[cause])
    assert (values["namespace"], values["id"], values["kind"]) == ("shop.orders", "1", "missing")
    pointed_at = moved if cause is Cause.NAME_MOVED else event
    segment = None if pointed_at is moved else "replication/shop/orders/1_1.bson"
    expected = pointed_at and {**pointed_at.to_json(), "segment": segment}
    assert values["last_event"] == expected


def test_what_was_not_looked_into_is_not_called_a_defect() -> None:
    repair = Repair(difference=DIFFERENCE, written_hash=None, event=_event("update"))
    assert repair.cause is Cause.NOT_LOOKED_INTO
    assert repair.to_json()["last_event"]["segment"] is None


def test_a_last_event_tells_where_it_stands_in_the_log() -> None:
    assert NULL.to_json() == {
        "commit": "replication/.log/000000000005.json",
        "cluster_time": [7, 8],
        "kind": "update",
        "has_document": False,
    }


def test_later_events_take_the_place_of_those_known() -> None:
    known, later = KnownEvents(), _event("update", sequence=9)
    repair = Repair(difference=DIFFERENCE, written_hash=None, event=NULL, segment="old")
    known.repairs[ORDERS] = {DIFFERENCE.id: repair}
    known.remember(DIFFERENCE, NULL)
    known.remember(DIFFERENCE, None)
    assert known.of(ORDERS) == {DIFFERENCE.id: NULL}
    known.tell_later(ORDERS, {DIFFERENCE.id: later, raw_id(2): later})
    assert known.of(ORDERS) == {DIFFERENCE.id: later}
    assert (repair.event, repair.segment) == (later, "")


def test_a_move_of_the_database_moves_its_collections() -> None:
    known = KnownEvents(moved={Namespace("shop"): MOVED})
    assert known.move_of(ORDERS) == MOVED
    assert known.move_of(Namespace("other", "orders")) is None
