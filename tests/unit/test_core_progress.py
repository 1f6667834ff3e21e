"""Counts and times become shares, rates and what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.core.log.chain import Total
from d5agent.core.run.replay_progress import BusyLanes, RecentRate, ReplayCounts

if TYPE_CHECKING:
    from d5agent.core.run.progress import ReplayProgress

MIB = 1024 * 1024


def at(counts: ReplayCounts, now: float) -> ReplayProgress:
    return counts.at(now, lanes=None, lanes_allowed=1)


def test_a_rate_is_that_of_the_last_ten_seconds() -> None:
    rate = RecentRate()
    for second in range(31):
        rate.note(second, 1_000 * min(second, 20) + 10 * max(0, second - 20))
    assert rate.per_second(30) == 10


def test_a_rate_falls_to_nought_when_nothing_comes_any_more() -> None:
    rate = RecentRate()
    rate.note(0, 0)
    rate.note(5, 500)
    assert rate.per_second(5) == 100
    assert rate.per_second(10) == 50
    assert rate.per_second(16) == 0


def test_one_look_is_no_rate() -> None:
    rate = RecentRate()
    assert rate.per_second(1) is None
    rate.note(1, 400)
    assert rate.per_second(1.1) is None


def test_counts_that_come_close_together_are_not_all_kept_and_none_is_lost() -> None:
    rate = RecentRate()
    for number in range(10_001):
        rate.note(number / 1_000, number)
    assert rate.per_second(10) == 1_000
    assert len(rate._samples) < 50


def test_the_whole_is_known_before_the_first_operation_is_applied() -> None:
    counts = ReplayCounts()
    counts.expect(Total(operations=400, bytes=8_000, segments=3))
    found = at(counts, 0)
    assert (found.operations_total, found.operations_applied) == (400, 0)
    assert (found.bytes_total, found.bytes_applied) == (8_000, 0)
    assert (found.operations_per_second, found.eta_seconds) == (None, None)


def test_the_end_is_foreseen_from_the_rate() -> None:
    counts = ReplayCounts()
    counts.expect(Total(operations=1_000))
    counts.advance(now=0, sequence=0, operations=0, documents=0)
    counts.advance(now=4, sequence=1, operations=200, documents=90)
    found = at(counts, 4)
    assert (found.operations_per_second, found.eta_seconds, found.documents_written) == (50, 16, 90)
    counts.advance(now=8, sequence=2, operations=1_000, documents=100)
    assert at(counts, 8).eta_seconds == 0
    assert at(counts, 60).eta_seconds == 0


def test_a_target_that_stands_still_has_no_foreseen_end() -> None:
    counts = ReplayCounts()
    counts.expect(Total(operations=1_000))
    counts.advance(now=0, sequence=0, operations=0, documents=0)
    counts.advance(now=1, sequence=1, operations=200, documents=90)
    found = at(counts, 30)
    assert (found.operations_per_second, found.eta_seconds) == (0, None)


def test_bytes_follow_the_commits_that_are_applied() -> None:
    counts = ReplayCounts()
    for sequence, bytes_ in enumerate((0, MIB, 3 * MIB, 3 * MIB)):
        counts.expect(Total(operations=sequence, bytes=bytes_), sequence=sequence)
    counts.advance(now=0, sequence=1, operations=1, documents=1)
    found = at(counts, 0)
    assert (found.bytes_applied, found.bytes_total) == (MIB, 3 * MIB)
    counts.advance(now=0, sequence=2, operations=2, documents=2)
    counts.advance(now=0, sequence=3, operations=3, documents=3)
    assert at(counts, 0).bytes_applied == 3 * MIB


def test_many_small_commits_take_little_memory_and_all_their_bytes_count() -> None:
    counts = ReplayCounts()
    for sequence in range(100_000):
        counts.expect(Total(operations=sequence, bytes=10 * sequence), sequence=sequence)
    assert len(counts._ahead) <= 1_024
    counts.advance(now=0, sequence=99_999, operations=99_999, documents=0)
    assert at(counts, 0).bytes_applied == 999_990


def test_a_log_that_grows_is_not_applied_to_more_than_a_hundred_percent() -> None:
    counts = ReplayCounts()
    counts.expect(Total(operations=10, bytes=100))
    counts.expect(Total(operations=15, bytes=150), sequence=7)
    assert at(counts, 0).operations_total == 15
    counts.advance(now=1, sequence=8, operations=20, documents=1)
    assert at(counts, 1).operations_total == 20
    assert counts.share == 1


def test_an_empty_log_is_no_progress() -> None:
    assert ReplayCounts().share == 0
    assert at(ReplayCounts(), 0).eta_seconds == 0


def test_busy_lanes_are_an_average_of_the_last_ten_seconds() -> None:
    busy = BusyLanes()
    assert busy.average(0) is None
    busy.change(0, 1)
    busy.change(0, 1)
    assert busy.average(4) == 2
    busy.change(5, -1)
    assert busy.average(10) == 1.5
    busy.change(10, -1)
    for second in range(11, 25):
        busy.average(second)
    assert busy.average(25) == 0


def test_a_line_is_due_every_half_minute_and_at_every_tenth() -> None:
    counts = ReplayCounts()
    counts.expect(Total(operations=1_000))
    due = []
    for second in range(100):
        counts.advance(now=second, sequence=second, operations=50 * min(second, 10), documents=0)
        if counts.is_line_due(second):
            due.append(second)
    assert due == [2, 4, 6, 8, 10, 40, 70]


def test_a_tenth_is_reached_once_although_the_whole_grows() -> None:
    counts = ReplayCounts()
    lines = 0
    for second in range(25):
        counts.expect(Total(operations=second + 1))
        lines += counts.is_line_due(second)
        counts.advance(now=second, sequence=second, operations=second + 1, documents=0)
        lines += counts.is_line_due(second)
    assert lines == 1
