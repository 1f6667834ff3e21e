"""The retention horizon: lag, what is left, when it ends, and who is told of it once."""

from __future__ import annotations

import pytest

from d5agent.core.run.horizon import Basis, Crossing, Horizon, HorizonTracker, Level, Retention

HOUR = 3_600
BEGAN = 1_800_000_000  # a cluster time


def horizon(*, lag: float = 0, age: float = 0, retention: int | None = 4 * HOUR, rate: float | None = None) -> Horizon:
    return Horizon(lag_seconds=lag, age_seconds=age, retention_seconds=retention, catch_up_rate=rate)


def tracker(retention: int | None = 4 * HOUR) -> HorizonTracker:
    return HorizonTracker(retention=Retention(seconds=retention, basis=Basis.SETTING))


@pytest.mark.parametrize(
    ("age", "level"),
    [
        (0, Level.FINE),
        (2 * HOUR - 1, Level.FINE),
        (2 * HOUR, Level.HALF),
        (3 * HOUR - 1, Level.HALF),
        (3 * HOUR, Level.QUARTER),
        (4 * HOUR - 1, Level.QUARTER),
        (4 * HOUR, Level.LOST),
        (9 * HOUR, Level.LOST),
    ],
)
def test_a_half_and_a_quarter_are_reached_when_so_much_is_left(age: int, level: Level) -> None:
    assert horizon(age=age).level is level


def test_what_is_left_of_the_retention_is_never_negative() -> None:
    assert horizon(age=HOUR).safe_seconds == 3 * HOUR
    assert horizon(age=5 * HOUR).safe_seconds == 0


def test_without_a_retention_nothing_is_said_of_safety() -> None:
    unknown = horizon(age=9 * HOUR, retention=None)
    assert unknown.safe_seconds is None
    assert unknown.level is Level.FINE


@pytest.mark.parametrize(
    ("lag", "rate", "seconds"),
    [
        (600, 3.0, 300),  # each second brings three of history, and one passes
        (600, 1.0, None),
        (600, 0.0, None),
        (600, None, None),
        (10, 0.5, 0),
        (0, None, 0),
    ],
)
def test_the_end_of_catching_up_is_told_while_it_is_catching_up(
    lag: float, rate: float | None, seconds: float | None
) -> None:
    assert horizon(lag=lag, rate=rate).caught_up_in_seconds == seconds


def test_nothing_is_said_before_position_and_cluster_time_are_known() -> None:
    follower = tracker()
    assert follower.at(0) is None
    follower.observe_position(now=0, seconds=BEGAN)
    assert follower.at(0) is None
    follower.observe_cluster(now=0, seconds=BEGAN + 60)
    found = follower.at(0)
    assert found is not None
    assert (found.lag_seconds, found.age_seconds, found.safe_seconds) == (60, 60, 4 * HOUR - 60)


def test_a_position_ages_though_nothing_is_heard_of_cluster_or_stream() -> None:
    follower = tracker()
    follower.observe_cluster(now=100, seconds=BEGAN)
    follower.observe_position(now=100, seconds=BEGAN, caught_up_at=100)
    found = follower.at(100 + HOUR)
    assert found is not None
    assert (found.lag_seconds, found.age_seconds, found.catch_up_rate) == (HOUR, HOUR, 0)


def test_the_clusters_time_is_the_latest_that_it_told_of_late() -> None:
    follower = tracker()
    follower.observe_cluster(now=0, seconds=BEGAN)
    follower.observe_cluster(now=9, seconds=BEGAN)  # an idle server moves its time every ten seconds
    assert follower.cluster_now(9) == BEGAN + 9
    follower.observe_cluster(now=100, seconds=BEGAN + 40)  # its clock was set back: believed after a minute
    assert follower.cluster_now(100) == BEGAN + 40


def test_who_found_the_end_of_the_stream_is_not_behind_though_its_position_is_older() -> None:
    follower = tracker()
    follower.observe_cluster(now=0, seconds=BEGAN)
    follower.observe_position(now=50, seconds=BEGAN, caught_up_at=50)
    found = follower.at(51)
    assert found is not None
    assert (found.lag_seconds, found.age_seconds) == (1, 51)


def test_a_position_ahead_of_what_is_known_of_the_cluster_is_no_negative_lag() -> None:
    follower = tracker()
    follower.observe_cluster(now=0, seconds=BEGAN)
    follower.observe_position(now=0, seconds=BEGAN + 7)
    found = follower.at(0)
    assert found is not None
    assert (found.lag_seconds, found.age_seconds) == (0, 0)


def read_at(rate: float, *, seconds: int, follower: HorizonTracker, since: int = 0, position: float = BEGAN) -> float:
    """Let the position move at a rate, a sample each second; return where it is then."""
    for second in range(since, since + seconds + 1):
        follower.observe_position(now=second, seconds=position + rate * (second - since))
    return position + rate * seconds


def test_the_rate_is_that_of_the_last_minute() -> None:
    follower = tracker()
    follower.observe_cluster(now=0, seconds=BEGAN + HOUR)
    position = read_at(3.0, seconds=600, follower=follower)
    found = follower.at(600)
    assert found is not None
    assert found.catch_up_rate == pytest.approx(3.0)
    assert found.caught_up_in_seconds == pytest.approx((HOUR - 1200) / 2)
    read_at(0.5, seconds=61, follower=follower, since=600, position=position)
    found = follower.at(661)
    assert found is not None
    assert found.catch_up_rate == pytest.approx(0.5)


def test_a_rate_over_a_few_seconds_is_not_told() -> None:
    follower = tracker()
    follower.observe_cluster(now=0, seconds=BEGAN + HOUR)
    read_at(3.0, seconds=4, follower=follower)
    found = follower.at(4)
    assert found is not None
    assert found.catch_up_rate is None


def test_a_stream_that_does_not_move_has_the_rate_nought_within_a_minute() -> None:
    follower = tracker()
    follower.observe_cluster(now=0, seconds=BEGAN + HOUR)
    read_at(3.0, seconds=30, follower=follower)
    rates = [found.catch_up_rate or 0 for found in map(follower.at, (30, 60, 90, 3000)) if found is not None]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(3.0)
    assert rates[-2:] == [0, 0]


def told(follower: HorizonTracker, *ages: float) -> list[tuple[Level, bool]]:
    """Return what is told while the position has these ages, one after another."""
    crossings = [follower.crossing(horizon(age=age)) for age in ages]
    return [(found.level, found.is_worse) for found in crossings if found is not None]


def test_each_level_is_told_once_on_the_way_down() -> None:
    steps = [minutes * 60.0 for minutes in range(300)]
    assert told(tracker(), *steps) == [(Level.HALF, True), (Level.QUARTER, True), (Level.LOST, True)]


def test_a_jump_over_a_level_is_told_as_where_it_ended() -> None:
    assert told(tracker(), 0, 3.5 * HOUR) == [(Level.QUARTER, True)]


def test_a_position_that_dances_on_a_threshold_is_told_of_once() -> None:
    assert told(tracker(), *[2 * HOUR + second for second in (-1, 0, -1, 1, -2, 5, -60, 3)]) == [(Level.HALF, True)]


def test_after_a_recovery_it_is_told_again() -> None:
    follower = tracker()
    assert told(follower, 2 * HOUR, 1.5 * HOUR, 2 * HOUR) == [
        (Level.HALF, True),
        (Level.FINE, False),
        (Level.HALF, True),
    ]
    assert told(follower, 3 * HOUR, 2.5 * HOUR) == [(Level.QUARTER, True), (Level.HALF, False)]


def test_a_retention_that_grows_is_a_recovery() -> None:
    follower = tracker()
    assert follower.crossing(horizon(age=3 * HOUR)) == Crossing(level=Level.QUARTER, is_worse=True)
    grown = horizon(age=3 * HOUR, retention=48 * HOUR)
    assert follower.crossing(grown) == Crossing(level=Level.FINE, is_worse=False)
    unknown = horizon(age=3 * HOUR, retention=None)
    assert follower.crossing(unknown) is None


def test_a_forgotten_position_says_nothing_and_the_next_one_is_told_of_anew() -> None:
    follower = tracker()
    follower.observe_cluster(now=0, seconds=BEGAN + 3 * HOUR)
    follower.observe_position(now=0, seconds=BEGAN)
    had_position = follower.has_position
    first = follower.at(0)
    assert first is not None
    assert follower.crossing(first)
    assert had_position
    follower.forget()
    assert not follower.has_position
    assert follower.at(0) is None
    follower.observe_position(now=0, seconds=BEGAN - 60)
    again = follower.at(0)
    assert again is not None
    assert again.lag_seconds == 3 * HOUR + 60
    assert follower.crossing(again) == Crossing(level=Level.QUARTER, is_worse=True)
