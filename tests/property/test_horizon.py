"""Whatever a position does, each level is told once on the way down, and again only after a recovery."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from d5agent.core.run.horizon import Horizon, HorizonTracker, Level

RETENTION = 10_800
ages = st.lists(st.integers(min_value=0, max_value=RETENTION + 600), min_size=1, max_size=60)
steps = st.lists(st.tuples(st.floats(0, 400), st.floats(-50, 2_000)), min_size=1, max_size=40)


@given(ages)
def test_what_is_told_follows_the_level_and_never_repeats_itself(walk: list[int]) -> None:
    tracker, told = HorizonTracker(), Level.FINE
    for age in walk:
        horizon = Horizon(lag_seconds=age, age_seconds=age, retention_seconds=RETENTION, catch_up_rate=None)
        crossing = tracker.crossing(horizon)
        if crossing is not None:
            assert crossing.level is horizon.level
            assert crossing.level is not told
            assert crossing.is_worse is (crossing.level > told)
            told = crossing.level
        assert horizon.level <= told  # nothing worse has gone untold


@given(steps)
def test_what_is_said_of_a_position_is_never_negative_and_never_more_than_there_is(
    walk: list[tuple[float, float]],
) -> None:
    tracker = HorizonTracker()
    now, position = 0.0, 1_800_000_000.0
    tracker.observe_cluster(now=0, seconds=position)
    for elapsed, gained in walk:
        now, position = now + elapsed, position + gained
        tracker.observe_position(now=now, seconds=position)
        found = tracker.at(now)
        assert found is not None
        assert 0 <= found.lag_seconds <= now + 50 * len(walk)
        assert found.age_seconds >= found.lag_seconds  # a position is never newer than what was read
        assert found.catch_up_rate is None or found.catch_up_rate >= 0
        assert found.caught_up_in_seconds is None or found.caught_up_in_seconds >= 0
