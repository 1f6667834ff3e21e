"""The retention horizon: how far capture is behind, how long its position stays safe, and when somebody must be told.

The database keeps its log of changes for some time only. A position that grows older than that is lost, and with it
what happened after it. Times of the source are the source's own: seconds since 1970 by the cluster's clock. `now` is a
monotonic time of this machine, which only measures how much time has passed: its time of day may be an hour wrong.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

DEFAULT_RETENTION_SECONDS: Final = 10_800
"""DocumentDB's own default of change_stream_log_retention_duration."""

LEAST_RETENTION_SECONDS: Final = 3_600
MOST_RETENTION_SECONDS: Final = 604_800
"""The range that DocumentDB takes."""

CAUGHT_UP_SECONDS: Final = 10
"""Nearer to now than this is not behind: cluster times are whole seconds, and an idle server may move its own late."""

_WINDOW_SECONDS: Final = 60
_SHORTEST_SECONDS: Final = 5  # a rate over less than this is noise
_RECOVERY: Final = 0.05  # of the retention: what must be won back, so that a position on a threshold is told of once
_HALF: Final = 0.5
_QUARTER: Final = 0.25


class Basis(StrEnum):
    """Where the retention is known from."""

    AWS = "aws"
    SETTING = "setting"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long the source keeps its log of changes; None: not known. `reason` says why it could not be read."""

    seconds: int | None = None
    basis: Basis | None = None
    reason: str = ""
    hint: str = ""


class Level(IntEnum):
    """How urgent it is: how much of the retention is left. A larger one is worse."""

    FINE = 0
    HALF = 1
    QUARTER = 2
    LOST = 3


_LEFT_AT: Final = {Level.FINE: 1.0, Level.HALF: _HALF, Level.QUARTER: _QUARTER, Level.LOST: 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """How things stand at one moment.

    `lag_seconds`: how far reading is behind the source. `age_seconds`: how old the saved position is, which is what the
    source must still have in its log. `catch_up_rate`: seconds of history read in a second; None: not known yet.
    """

    lag_seconds: float
    age_seconds: float
    retention_seconds: int | None
    catch_up_rate: float | None

    @property
    def safe_seconds(self) -> float | None:
        """How long the saved position can still be resumed from, if nothing moves it; None: not known."""
        return None if self.retention_seconds is None else max(0.0, self.retention_seconds - self.age_seconds)

    @property
    def level(self) -> Level:
        """How urgent it is; fine, too, when it is not known."""
        left = self._left()
        if left is None or left > _HALF:
            return Level.FINE
        if left > _QUARTER:
            return Level.HALF
        return Level.QUARTER if left > 0 else Level.LOST

    @property
    def caught_up_in_seconds(self) -> float | None:
        """When reading will have caught up, if it goes on like this; 0: it has. None: it is not catching up."""
        if self.lag_seconds <= CAUGHT_UP_SECONDS:
            return 0.0
        rate = self.catch_up_rate
        return self.lag_seconds / (rate - 1) if rate is not None and rate > 1 else None

    def has_left(self, share: float) -> bool:
        """Whether at least that share of the retention is left."""
        left = self._left()
        return left is None or left >= share

    def _left(self) -> float | None:
        return None if not self.retention_seconds else (self.safe_seconds or 0.0) / self.retention_seconds


def may_try_again(horizon: Horizon | None) -> bool:
    """Whether capture may try again what fails for a reason that nobody knows: while a person can still act in time.

    So it may while it is not known how long the position is safe.
    """
    return horizon is None or horizon.level < Level.QUARTER


def left_near_the_end(horizon: Horizon | None) -> float | None:
    """Return for how many seconds the position is still safe, once a quarter of the retention is left; else None."""
    return None if may_try_again(horizon) or horizon is None else horizon.safe_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A change of level that deserves a line in the journal."""

    level: Level
    is_worse: bool


@dataclass(slots=True, kw_only=True)
class HorizonTracker:
    """Follows one position. It is told what is observed, and answers for any later moment."""

    retention: Retention = field(default_factory=Retention)
    _clock_readings: deque[tuple[float, float]] = field(default_factory=deque)  # when, and cluster time less `when`
    _position: float | None = None
    _reached: deque[tuple[float, float]] = field(default_factory=deque)  # when, and up to where all had been read
    _told: Level = Level.FINE

    @property
    def has_position(self) -> bool:
        """Whether a position is known."""
        return self._position is not None

    def observe_cluster(self, *, now: float, seconds: float) -> None:
        """Note the cluster's time. It may tell too little (an idle server moves its own seldom), never too much."""
        self._clock_readings.append((now, seconds - now))
        while len(self._clock_readings) > 1 and self._clock_readings[0][0] < now - _WINDOW_SECONDS:
            self._clock_readings.popleft()

    def cluster_now(self, now: float) -> float | None:
        """Return the cluster's time, carried on from when it was last heard; None: it never was."""
        return max(offset for _, offset in self._clock_readings) + now if self._clock_readings else None

    def observe_position(self, *, now: float, seconds: float, caught_up_at: float | None = None) -> None:
        """Note the saved position; and, if reading found the end of the stream, when: all before is read then."""
        self._position = seconds
        end = None if caught_up_at is None else self.cluster_now(caught_up_at)
        known = self._reached[-1][1] if self._reached else seconds
        self._reached.append((now, max(known, seconds, seconds if end is None else end)))
        # One sample stays from before the window: with it the window is a whole one.
        while len(self._reached) > 1 and self._reached[1][0] <= now - _WINDOW_SECONDS:
            self._reached.popleft()

    def forget(self) -> None:
        """Forget the position: it is of no use any more."""
        self._position = None
        self._reached.clear()
        self._told = Level.FINE

    def at(self, now: float) -> Horizon | None:
        """Return how things stand; None while position or cluster time are not known."""
        cluster_now = self.cluster_now(now)
        if cluster_now is None or self._position is None:
            return None
        return Horizon(
            lag_seconds=max(0.0, cluster_now - self._reached[-1][1]),
            age_seconds=max(0.0, cluster_now - self._position),
            retention_seconds=self.retention.seconds,
            catch_up_rate=self._rate(now),
        )

    def crossing(self, horizon: Horizon) -> Crossing | None:
        """Return the change of level since the last one that was returned, if it is worth telling.

        Each level is told once on the way down, and again only after some of the retention has been won back.
        """
        level, told = horizon.level, self._told
        if level == told or (level < told and not horizon.has_left(_LEFT_AT[told] + _RECOVERY)):
            return None
        self._told = level
        return Crossing(level=level, is_worse=level > told)

    def _rate(self, now: float) -> float | None:
        """Return the seconds of history read in a second, over the last minute."""
        began, reached = self._reached[0]
        for at, seconds in self._reached:
            if at > now - _WINDOW_SECONDS:
                break
            began, reached = at, seconds
        elapsed = now - began
        return None if elapsed < _SHORTEST_SECONDS else (self._reached[-1][1] - reached) / elapsed
