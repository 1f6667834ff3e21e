"""Who waits for whose unique value: who may be written when, and who leaves for a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bson import Decimal128, Int64
from hypothesis import given
from hypothesis import strategies as st

from d5agent.core.replay.replay import Failure, Write
from d5agent.core.replay.tangle import RefusedWrite, place_of, untangle
from tests.fakes.documents import raw_id
from tests.fakes.events import ITEMS, ORDERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId

OUTSIDE = 1000


def conflict(id_: object, *holders: object, namespace: Namespace = ORDERS) -> RefusedWrite:
    """Return a refused document, and who holds its values."""
    failure = Failure(
        namespace=namespace, write=Write(id=raw_id(id_), document=b"new"), reason="held", is_conflict=True, index="u_1"
    )
    return RefusedWrite(failure=failure, holders=tuple(raw_id(holder) for holder in holders))


def ids(failures: Iterable[Failure]) -> list[DocumentId]:
    return [failure.write.id for failure in failures]


def raw(*values: object) -> list[DocumentId]:
    return [raw_id(value) for value in values]


def test_who_waits_for_a_refused_document_is_written_after_it_and_nobody_leaves() -> None:
    plan = untangle([conflict(1, 2), conflict(2, 3), conflict(3)])
    assert (ids(plan.ready), plan.parked, plan.waiting) == (raw(3, 2, 1), (), ())


def test_of_a_circle_one_document_leaves_for_a_moment_and_the_others_follow_in_order() -> None:
    plan = untangle([conflict(number, (number + 1) % 50) for number in range(50)])
    assert len(plan.parked) == 1
    assert ids(plan.ready) == raw(*range(49, -1, -1))
    assert plan.waiting == ()


def test_two_circles_are_broken_each_by_itself() -> None:
    plan = untangle([conflict(1, 2), conflict(2, 1), conflict(3, 4), conflict(4, 3)])
    assert len(plan.parked) == 2


def test_who_needs_a_value_of_a_document_that_is_not_refused_waits_with_all_who_wait_for_it() -> None:
    plan = untangle([conflict(1, 2), conflict(2, OUTSIDE), conflict(3, 4), conflict(4, 3)])
    assert sorted(ids(plan.waiting)) == raw(1, 2)
    assert len(plan.parked) == 1
    assert sorted(ids(plan.ready)) == raw(3, 4)


def test_a_circle_of_which_one_document_waits_for_somebody_else_is_left_as_it_is() -> None:
    plan = untangle([conflict(1, 2), conflict(2, 3, OUTSIDE), conflict(3, 1)])
    assert (plan.parked, plan.ready) == ((), ())
    assert sorted(ids(plan.waiting)) == raw(1, 2, 3)


@pytest.mark.parametrize("same", [1.0, Int64(1), Decimal128("1.0")])
def test_an_id_of_an_equal_number_of_another_type_is_the_same_document(same: object) -> None:
    plan = untangle([conflict(1, 2), conflict(2, same)])
    assert (len(plan.parked), plan.waiting) == (1, ())


def test_documents_of_different_collections_do_not_wait_for_each_other() -> None:
    plan = untangle([conflict(1, 2), conflict(2, 1, namespace=ITEMS)])
    assert (plan.parked, len(plan.waiting)) == ((), 2)


def test_a_chain_of_ten_thousand_is_walked() -> None:
    plan = untangle([conflict(number, number + 1) for number in range(10_000)] + [conflict(10_000)])
    assert (len(plan.ready), plan.parked) == (10_001, ())


GRAPHS = st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 12), max_size=3, unique=True), max_size=10)


@given(graph=GRAPHS)
def test_what_is_ready_can_be_written_in_its_order_and_the_rest_waits_for_somebody_else(
    graph: Mapping[int, list[int]],
) -> None:
    plan = untangle([conflict(id_, *[h for h in holders if h != id_]) for id_, holders in graph.items()])
    away = set(ids(plan.parked))
    for failure in plan.ready:
        number = next(n for n in graph if raw_id(n) == failure.write.id)
        assert not {raw_id(holder) for holder in graph[number] if holder != number} - away
        away.add(failure.write.id)
    places = [place_of(failure) for failure in (*plan.ready, *plan.waiting)]
    assert len(places) == len(set(places)) == len(graph)
    assert set(ids(plan.parked)) <= set(ids(plan.ready))
    for failure in plan.waiting:
        number = next(n for n in graph if raw_id(n) == failure.write.id)
        assert _reaches_outside(graph, number)


def _reaches_outside(graph: Mapping[int, list[int]], start: int) -> bool:
    seen, front = {start}, [start]
    while front:
        for holder in graph.get(front.pop(), ()):
            if holder not in graph:
                return True
            if holder not in seen:
                seen.add(holder)
                front.append(holder)
    return False


def test_decimals_that_differ_in_their_last_digits_are_two_places() -> None:
    one, other = (conflict(Decimal128(f"1234567890123456789012345678.{digit}"), OUTSIDE) for digit in "12")
    assert place_of(one.failure) != place_of(other.failure)
    assert len(untangle([one, other]).waiting) == 2


def test_documents_of_equal_numbers_are_one_place() -> None:
    assert place_of(conflict({"a": 1}).failure) == place_of(conflict({"a": 1.0}).failure)
