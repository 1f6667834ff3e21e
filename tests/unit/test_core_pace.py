"""How many lanes may write, and how many writes a second."""

from __future__ import annotations

import itertools

import pytest

from d5agent.core.replay.pace import Pace, RateLimit, Tickets
from d5agent.core.replay.replay import Write, WriteBatch
from tests.fakes.documents import raw_id
from tests.fakes.events import ORDERS

USUAL = 0.05


def after(pace: Pace, *batches: tuple[float, int], begin: int = 0, busy: int | None = None) -> int:
    """Return how many lanes may write after batches, one a second, of (seconds, writes)."""
    for now, (seconds, writes) in enumerate(batches, begin):
        pace.note(seconds=seconds, writes=writes, size=1000 * writes, busy=busy or pace.allowed, now=now)
    return pace.allowed


def test_all_lanes_write_while_nothing_is_wrong() -> None:
    assert after(Pace(lanes=8), *[(USUAL, 1000)] * 50) == 8


def test_a_target_that_becomes_slow_gets_fewer_lanes_and_one_always() -> None:
    pace = Pace(lanes=8)
    after(pace, *[(USUAL, 1000)] * 20)
    seen = [after(pace, (100 * USUAL, 1000), begin=20 + n) for n in range(8)]
    assert seen[0] == 4
    assert seen[-1] == 1


def test_once_it_is_quick_again_the_lanes_come_back_one_by_one() -> None:
    pace = Pace(lanes=4)
    after(pace, *[(USUAL, 1000)] * 20)
    assert after(pace, *[(100 * USUAL, 1000)] * 5, begin=20) == 1
    seen = [after(pace, (USUAL, 1000), begin=30 + n) for n in range(30)]
    assert seen == sorted(seen)
    assert max(b - a for a, b in itertools.pairwise(seen)) == 1
    assert seen[-1] == 4


def test_what_is_slow_for_good_is_usual_in_the_end() -> None:
    pace = Pace(lanes=4)
    after(pace, *[(USUAL, 1000)] * 20)
    assert after(pace, *[(20 * USUAL, 1000)] * 400, begin=20) == 4


def test_what_the_lanes_in_use_explain_is_no_reason() -> None:
    pace = Pace(lanes=4)
    after(pace, *[(USUAL, 1000)] * 20, busy=1)
    assert after(pace, *[(4 * USUAL, 1000)] * 20, begin=20, busy=4) == 4


@pytest.mark.parametrize(("writes", "seconds"), [(1, USUAL / 8), (10_000, 9 * USUAL)])
def test_large_and_small_batches_are_measured_by_what_is_in_them(writes: int, seconds: float) -> None:
    pace = Pace(lanes=4)
    after(pace, *[(USUAL, 1000)] * 20)
    assert after(pace, *[(seconds, writes)] * 20, begin=20) == 4


def test_many_slow_batches_at_once_halve_the_lanes_once() -> None:
    pace = Pace(lanes=8)
    after(pace, *[(USUAL, 1000)] * 20)
    for _ in range(10):
        pace.note(seconds=100 * USUAL, writes=1000, size=0, busy=8, now=30.0)
    assert pace.allowed == 4


def test_a_clock_that_stands_still_is_no_harm() -> None:
    assert after(Pace(lanes=2), *[(0.0, 1)] * 10) == 2


def test_few_free_tickets_take_lanes_and_many_give_none_back() -> None:
    pace = Pace(lanes=4)
    pace.note_tickets(Tickets(free=33, total=128), now=0)
    assert pace.allowed == 4
    pace.note_tickets(Tickets(free=31, total=128), now=0)
    assert pace.allowed == 2
    pace.note_tickets(Tickets(free=128, total=128), now=5)
    assert pace.allowed == 2


def test_a_limit_is_kept_over_all_lanes() -> None:
    limit = RateLimit(per_second=100)
    assert [limit.wait_seconds(25, now=0.0) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert limit.wait_seconds(25, now=10.0) == 0.0  # what was not used is no credit
    assert limit.wait_seconds(25, now=10.0) == 0.25


def test_without_a_limit_nobody_waits_and_no_batch_is_cut() -> None:
    limit = RateLimit(per_second=None)
    batch = _batch(5000)
    assert [limit.wait_seconds(5000, now=0.0) for _ in range(3)] == [0.0] * 3
    assert list(limit.portions(batch)) == [batch]


@pytest.mark.parametrize(("per_second", "sizes"), [(40, [10, 10, 5]), (1, [1] * 25), (1000, [25])])
def test_a_batch_is_cut_so_that_a_limit_holds_within_a_second(per_second: float, sizes: list[int]) -> None:
    portions = list(RateLimit(per_second=per_second).portions(_batch(25)))
    assert [len(portion.writes) for portion in portions] == sizes
    assert tuple(write for portion in portions for write in portion.writes) == _batch(25).writes


def _batch(count: int) -> WriteBatch:
    return WriteBatch(namespace=ORDERS, writes=tuple(Write(id=raw_id(n), document=None) for n in range(count)))
