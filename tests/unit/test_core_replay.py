"""Windows, doubts and conflicts: what is written, what stays in doubt, what is tried again."""

from __future__ import annotations

import json

import pytest
from bson import Decimal128, Int64, encode

from d5agent.core.log.operation import Namespace
from d5agent.core.replay import replay
from d5agent.core.replay.replay import (
    Barrier,
    Failure,
    Unresolved,
    Window,
    Write,
    WriteBatch,
    absent,
    again,
    barrier_of,
    split_conflicts,
    split_deletes,
    waiting_for_later,
)
from d5agent.errors import OperatorError
from tests.fakes.documents import raw_id
from tests.fakes.events import ITEMS, ORDERS, at, change, operation

ONE, TWO = raw_id(1), raw_id(2)


def _window(*kinds: str) -> Window:
    """Return a window of operations on one document; `gone` is an update whose look-up found nothing."""
    window = Window()
    for increment, kind in enumerate(kinds, start=1):
        if kind == "gone":
            window.add(change("update", increment, fullDocument=None))
        else:
            window.add(change(kind, increment))
    return window


def _document(increment: int) -> bytes:
    return encode({"_id": 1, "n": increment})


@pytest.mark.parametrize(
    ("kinds", "write"),
    [
        (("insert",), Write(id=ONE, document=_document(1), is_new=True)),
        (("insert", "update"), Write(id=ONE, document=_document(2), is_new=True)),
        (("update", "replace"), Write(id=ONE, document=_document(2))),
        (("insert", "delete"), Write(id=ONE, document=None, is_new=True)),
        (("delete",), Write(id=ONE, document=None)),
        (("delete", "insert"), Write(id=ONE, document=_document(2))),
        (("gone", "delete"), Write(id=ONE, document=None)),
        (("gone", "insert"), Write(id=ONE, document=_document(2))),
    ],
)
def test_of_each_document_the_last_state_is_written(kinds: tuple[str, ...], write: Write) -> None:
    assert _window(*kinds).batches(1) == [WriteBatch(namespace=ORDERS, writes=(write,))]


def test_an_update_that_found_nothing_writes_nothing_and_leaves_a_doubt() -> None:
    window = _window("insert", "gone")
    assert window.batches(3) == []
    doubts = Unresolved()
    window.settle(doubts)
    assert doubts.documents == {ORDERS: {ONE}}
    assert list(window.touched()) == [(ORDERS, (ONE,))]


def test_a_later_window_settles_what_was_in_doubt() -> None:
    doubts = Unresolved()
    _window("gone").settle(doubts)
    _window("update").settle(doubts)
    assert len(doubts) == 0
    assert doubts.documents == {}


LOOK_ALIKES = [
    (1, 1.0),
    ({"a": 1}, {"a": 1.0}),
    ([1, {"b": Int64(2)}], [1.0, {"b": 2}]),
]


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKES)
def test_a_document_whose_id_changes_its_type_is_written_once(one: object, other: object) -> None:
    window = Window()
    window.add(change("insert", 1, one))
    window.add(change("replace", 2, one, fullDocument={"_id": other, "n": 2}))
    window.add(change("update", 3, other, fullDocument={"_id": other, "n": 3}))
    ((write,),) = [batch.writes for batch in window.batches(4)]
    assert write == Write(id=raw_id(other), document=encode({"_id": other, "n": 3}), is_new=True)
    window.take_up([Failure(namespace=ORDERS, write=Write(id=raw_id(one), document=b""), reason="", is_conflict=True)])
    window.add(change("delete", 4, other))
    assert [batch.writes for batch in window.batches(4)] == [(Write(id=raw_id(other), document=None, is_new=True),)]


def test_decimals_that_are_equal_in_28_digits_are_two_documents() -> None:
    window = Window()
    for increment, digit in enumerate("12", start=1):
        window.add(change("insert", increment, Decimal128(f"1234567890123456789012345678.{digit}")))
    assert [len(batch.writes) for batch in window.batches(1)] == [2]


def test_a_window_knows_about_how_much_it_holds() -> None:
    once, twice = _window("insert"), _window("insert", "update")
    assert twice.bytes - once.bytes < len(_document(1)) + 250
    assert (once.operations, twice.operations) == (1, 2)
    assert Window().bytes == 0


def test_lanes_share_the_documents_and_each_stays_in_one() -> None:
    window = Window()
    for number in range(1000):
        window.add(change("insert", number + 1, number))
    window.add(change("insert", 2000, namespace=ITEMS))
    batches = window.batches(4)
    orders = [batch for batch in batches if batch.namespace == ORDERS]
    assert len(orders) == 4
    assert min(len(batch.writes) for batch in orders) > 100
    assert sorted(write.id for batch in orders for write in batch.writes) == sorted(raw_id(n) for n in range(1000))
    assert [len(batch.writes) for batch in batches if batch.namespace == ITEMS] == [1]


@pytest.mark.parametrize("kind", ["shardCollection", "rename"])
def test_an_operation_that_nobody_can_replay_is_never_skipped(kind: str) -> None:
    with pytest.raises(OperatorError, match="cannot be replayed") as caught:
        barrier_of(operation(kind, 1))
    assert caught.value.facts == {"type": kind, "namespace": "shop.orders", "cluster_time": str(at(1))}


def test_a_barrier_tells_what_to_apply() -> None:
    renamed = operation("rename", 1, to={"db": "shop", "coll": "items"})
    assert barrier_of(renamed) == Barrier(kind="rename", namespace=ORDERS, rename_to=ITEMS, cluster_time=at(1))
    for kind in ("drop", "dropDatabase"):
        assert barrier_of(operation(kind, 1)).kind == kind


def test_doubts_follow_a_renamed_collection() -> None:
    doubts = Unresolved(documents={ORDERS: {ONE}, ITEMS: {TWO}})
    doubts.apply_barrier(barrier_of(operation("rename", 1, to={"db": "shop", "coll": "items"})))
    assert doubts.documents == {ITEMS: {ONE}}
    assert doubts.whole == {ITEMS}


def test_the_doubts_of_a_collection_that_a_renamed_one_replaces_are_settled() -> None:
    doubts = Unresolved(documents={ITEMS: {TWO}})
    doubts.apply_barrier(barrier_of(operation("rename", 1, to={"db": "shop", "coll": "items"})))
    assert doubts.documents == {}


def test_a_drop_settles_the_doubts_of_its_collection() -> None:
    doubts = Unresolved(documents={ORDERS: {ONE}, ITEMS: {TWO}}, whole={ORDERS, ITEMS})
    doubts.apply_barrier(barrier_of(operation("drop", 1)))
    assert doubts.documents == {ITEMS: {TWO}}
    assert doubts.whole == {ITEMS}


def test_a_dropped_database_settles_all_of_its_doubts() -> None:
    other = Namespace("stock", "items")
    # An older version kept the database as a whole.
    doubts = Unresolved(documents={ORDERS: {ONE}, ITEMS: {TWO}, other: {ONE}}, whole={Namespace("shop"), ITEMS, other})
    doubts.apply_barrier(barrier_of(operation("dropDatabase", 1, namespace=Namespace("shop"))))
    assert doubts.documents == {other: {ONE}}
    assert doubts.whole == {other}


def test_one_settled_document_leaves_the_others_in_doubt() -> None:
    doubts = Unresolved(documents={ORDERS: {ONE, TWO}})
    doubts.remove(ORDERS, ONE)
    doubts.remove(ITEMS, ONE)
    assert doubts.documents == {ORDERS: {TWO}}


def test_too_many_doubts_put_the_namespace_in_doubt() -> None:
    doubts = Unresolved(documents={ORDERS: {raw_id(n) for n in range(replay._MANY_DOUBTS)}})
    doubts.add(ORDERS, raw_id("one more"))
    assert (doubts.documents, doubts.whole) == ({}, {ORDERS})


def test_a_document_of_a_renamed_collection_may_be_in_doubt_by_itself() -> None:
    doubts = Unresolved(whole={ORDERS})
    doubts.add(ORDERS, ONE)
    assert doubts.documents == {ORDERS: {ONE}}


def test_doubts_come_back_from_a_checkpoint() -> None:
    doubts = Unresolved(documents={ORDERS: {ONE, TWO}, ITEMS: {raw_id("x")}}, whole={Namespace("shop"), ITEMS})
    assert Unresolved.from_json(json.loads(json.dumps(doubts.to_json()))) == doubts


def _failure(id_: object, *, namespace: Namespace = ORDERS, is_conflict: bool = True) -> Failure:
    write = Write(id=raw_id(id_), document=encode({"_id": id_}))
    return Failure(namespace=namespace, write=write, reason="held", is_conflict=is_conflict)


def test_conflicts_are_tried_again_and_refusals_are_not() -> None:
    conflict, refusal = _failure(1), _failure(2, is_conflict=False)
    assert split_conflicts([conflict, refusal]) == ([conflict], [refusal])


def test_a_window_tries_again_what_waits_unless_it_knows_better() -> None:
    window = _window("update")
    window.take_up([_failure(1), _failure(2)])
    (batch,) = window.batches(1)
    assert {write.id: write.document for write in batch.writes} == {ONE: _document(1), TWO: encode({"_id": 2})}
    gone = _window("gone")
    gone.take_up([_failure(1)])
    assert gone.batches(1) == []


def test_what_waits_for_a_later_window_is_bounded() -> None:
    failures = [_failure(number) for number in range(600)]
    size = len(failures[0].write.document or b"")
    assert waiting_for_later([_failure(1, is_conflict=False), *failures], max_bytes=3 * size) == failures[:3]
    assert len(waiting_for_later(failures, max_bytes=600 * size)) == 500


def test_failed_writes_become_batches_by_namespace() -> None:
    failures = [_failure(1), _failure(2, namespace=ITEMS), _failure(3)]
    assert [(batch.namespace, [w.id for w in batch.writes]) for batch in again(failures)] == [
        (ORDERS, [raw_id(1), raw_id(3)]),
        (ITEMS, [raw_id(2)]),
    ]


def test_refused_documents_may_leave_the_target() -> None:
    assert absent([_failure(1), _failure(2)]) == [
        WriteBatch(namespace=ORDERS, writes=(Write(id=ONE, document=None), Write(id=TWO, document=None)))
    ]


def test_deletes_are_told_from_the_rest() -> None:
    gone, there = Write(id=ONE, document=None), Write(id=TWO, document=_document(1))
    batches = [
        WriteBatch(namespace=ORDERS, writes=(there, gone)),
        WriteBatch(namespace=ITEMS, writes=(there,)),
        WriteBatch(namespace=ITEMS, writes=(gone,)),
    ]
    assert split_deletes(batches) == (
        [WriteBatch(namespace=ORDERS, writes=(gone,)), WriteBatch(namespace=ITEMS, writes=(gone,))],
        [WriteBatch(namespace=ORDERS, writes=(there,)), WriteBatch(namespace=ITEMS, writes=(there,))],
    )
