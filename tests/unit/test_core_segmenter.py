"""Where the stream is cut: by size, by age, and at the borders that the log's order rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.core.operation import Namespace, Position
from d5agent.core.segmenter import Cut, Segmenter
from tests.fakes.events import ITEMS, ORDERS, at, operation

if TYPE_CHECKING:
    from d5agent.core.operation import Operation

LARGE = 1_000_000


def _segmenter(*, max_bytes: int = LARGE, max_age_seconds: float = 1) -> Segmenter:
    return Segmenter(max_bytes=max_bytes, max_age_seconds=max_age_seconds)


def _after(last: Operation) -> Position:
    return Position(cluster_time=last.cluster_time, token=last.token)


def _counts(cut: Cut) -> list[tuple[Namespace | None, int]]:
    return [(segment.namespace, segment.count) for segment in cut.segments]


def test_operations_are_collected_by_namespace() -> None:
    segmenter = _segmenter()
    for increment, namespace in enumerate((ORDERS, ITEMS, ORDERS), start=1):
        assert not list(segmenter.add(operation("insert", increment, namespace=namespace), now=0))
    segmenter.seal(None)
    cut = segmenter.drain()
    assert cut is not None
    assert _counts(cut) == [(ORDERS, 2), (ITEMS, 1)]


def test_a_new_one_is_empty_and_has_nothing_to_give() -> None:
    segmenter = _segmenter()
    segmenter.seal(None)
    assert segmenter.is_empty
    assert not segmenter.is_sealed
    assert segmenter.tick(now=100) is None
    assert segmenter.drain() is None


def test_old_operations_are_committed_when_the_time_has_passed() -> None:
    segmenter = _segmenter()
    first = operation("insert", 1)
    list(segmenter.add(first, now=0))
    (cut,) = segmenter.add(operation("insert", 2), now=1)
    assert cut.position == _after(first)
    assert _counts(cut) == [(ORDERS, 1)]


def test_events_of_one_cluster_time_stay_in_one_commit_however_old() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1, 1), now=0))
    assert not list(segmenter.add(operation("insert", 1, 2), now=50))
    (cut,) = segmenter.add(operation("insert", 2, 3), now=51)
    assert _counts(cut) == [(ORDERS, 2)]


@pytest.mark.parametrize("kind", ["drop", "rename", "dropDatabase", "unheardOf"])
def test_a_barrier_stands_in_a_commit_of_its_own(kind: str) -> None:
    segmenter = _segmenter()
    before, barrier, after = operation("insert", 1), operation(kind, 1), operation("insert", 1)
    assert not list(segmenter.add(before, now=0))
    (first,) = segmenter.add(barrier, now=0)
    (second,) = segmenter.add(after, now=0)
    segmenter.seal(None)
    third = segmenter.drain()
    assert third is not None
    assert [cut.position for cut in (first, second, third)] == [_after(before), _after(barrier), _after(after)]
    assert [_counts(cut) for cut in (first, second, third)] == [[(ORDERS, 1)]] * 3


def test_a_commit_is_cut_by_size_when_the_time_has_passed() -> None:
    one = operation("insert", 1)
    segmenter = _segmenter(max_bytes=2 * len(one.raw))
    list(segmenter.add(one, now=0))
    (segments,) = segmenter.add(operation("insert", 2), now=0)
    assert segments.position is None
    (commit,) = segmenter.add(operation("insert", 3), now=0)
    assert commit.segments == ()
    assert commit.position == _after(operation("insert", 2))


def test_a_huge_transaction_gives_segments_at_once_and_its_commit_at_the_end() -> None:
    segmenter = _segmenter(max_bytes=2 * len(operation("insert", 1).raw))
    cuts = [cut for number in range(6) for cut in segmenter.add(operation("insert", 1, number), now=0)]
    assert [cut.position for cut in cuts] == [None, None, None]
    assert [_counts(cut) for cut in cuts] == [[(ORDERS, 2)]] * 3
    (commit,) = segmenter.add(operation("insert", 2), now=0)
    assert (commit.segments, commit.position) == ((), _after(operation("insert", 1, 5)))


def test_a_sealed_stream_is_committed_at_its_tick_once_it_is_old_enough() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1), now=0))
    assert segmenter.tick(now=5) is None
    position = Position(cluster_time=at(9), token=b"token")
    segmenter.seal(position)
    assert segmenter.is_sealed
    assert segmenter.tick(now=0.9) is None
    cut = segmenter.tick(now=1)
    assert cut is not None
    assert cut.position == position
    assert segmenter.is_empty


def test_a_further_operation_breaks_the_seal() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1), now=0))
    segmenter.seal(None)
    list(segmenter.add(operation("insert", 1, 2), now=0))
    assert not segmenter.is_sealed
    assert segmenter.tick(now=5) is None
    assert segmenter.drain() is None


def test_a_seal_alone_is_no_commit() -> None:
    segmenter = _segmenter()
    segmenter.seal(Position(cluster_time=at(1), token=b"token"))
    assert segmenter.tick(now=5) is None
    assert segmenter.drain() is None


def test_after_a_commit_the_next_operation_begins_anew() -> None:
    segmenter = _segmenter()
    list(segmenter.add(operation("insert", 1), now=0))
    segmenter.seal(None)
    assert segmenter.drain() is not None
    list(segmenter.add(operation("insert", 2), now=10))
    segmenter.seal(None)
    assert segmenter.tick(now=10.5) is None
    assert segmenter.tick(now=11) is not None
