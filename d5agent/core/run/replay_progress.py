"""How far a restore is: what is known of the log, what is applied, how fast lately, and what that leaves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.run.progress import ReplayProgress

if TYPE_CHECKING:
    from d5agent.core.log.chain import Total

_SPAN_SECONDS: Final = 10.0
_SAMPLE_SECONDS: Final = 0.25  # two counts closer than this are one
_LINE_SECONDS: Final = 30.0
_TENTHS: Final = 10
_MARKS: Final = 1024  # commits read ahead of which each is remembered; of more, every second one


@dataclass(slots=True)
class RecentRate:
    """How fast a count grows: over the last ten seconds, since a start, or a stall long past, says nothing of now."""

    _samples: deque[tuple[float, float]] = field(default_factory=deque)

    def note(self, now: float, count: float) -> None:
        """Take the count at a moment."""
        if len(self._samples) > 1 and now - self._samples[-2][0] < _SAMPLE_SECONDS:
            self._samples.pop()
        self._samples.append((now, count))

    def per_second(self, now: float) -> float | None:
        """Return the growth a second; None: too little was seen. It falls to nought when nothing comes any more."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - _SPAN_SECONDS:
            self._samples.popleft()
        if not self._samples or now - self._samples[0][0] < _SAMPLE_SECONDS:
            return None
        (began, before), (_, count) = self._samples[0], self._samples[-1]
        return (count - before) / (now - began)


@dataclass(slots=True)
class BusyLanes:
    """How many lanes write at the same time, on average over the last ten seconds: a look at one moment says little."""

    active: int = 0
    """At this moment."""
    _since: float = 0.0
    _lane_seconds: float = 0.0
    _rate: RecentRate = field(default_factory=RecentRate)

    def change(self, now: float, by: int) -> None:
        """Take note that so many more lanes write from now on, or fewer."""
        self._lane_seconds += self.active * (now - self._since)
        self.active, self._since = self.active + by, now

    def average(self, now: float) -> float | None:
        """Return the average; None: too little was seen."""
        self.change(now, 0)
        self._rate.note(now, self._lane_seconds)
        return self._rate.per_second(now)


@dataclass(slots=True)
class ReplayCounts:
    """Counts of one restore. What it knows of the whole grows with the log: a live restore is never told its end."""

    operations_total: int = 0
    bytes_total: int = 0
    operations: int = 0
    bytes: int = 0
    documents: int = 0
    _rate: RecentRate = field(default_factory=RecentRate)
    _ahead: deque[tuple[int, int]] = field(default_factory=deque)
    """Commits that were read and are not applied yet: sequence, and bytes of the log up to there."""
    _line: tuple[float, int] | None = None
    """When there was a line last, and how many tenths were done then."""

    def expect(self, total: Total, *, sequence: int | None = None) -> None:
        """Take what the log holds up to a commit. `sequence`: the commit's, if it is to be applied."""
        self.operations_total = max(self.operations_total, total.operations)
        self.bytes_total = max(self.bytes_total, total.bytes)
        if sequence is None:
            return
        self._ahead.append((sequence, total.bytes))
        if len(self._ahead) == _MARKS:
            self._ahead = deque(list(self._ahead)[1::2])

    def advance(self, *, now: float, sequence: int, operations: int, documents: int) -> None:
        """Take how far the target is: everything up to commit `sequence`, in seconds of a clock that never goes back.

        `documents`: written so far.
        """
        while self._ahead and self._ahead[0][0] <= sequence:
            self.bytes = self._ahead.popleft()[1]
        self.operations, self.documents = operations, documents
        self.operations_total = max(self.operations_total, operations)
        self._rate.note(now, operations)

    @property
    def share(self) -> float:
        """How much of what is known is applied, from 0 to 1."""
        return min(1.0, self.operations / self.operations_total) if self.operations_total else 0.0

    def at(self, now: float, *, lanes: float | None, lanes_allowed: int) -> ReplayProgress:
        """Return how things stand; `lanes` are busy on average, None: too little was seen."""
        rate = self._rate.per_second(now)
        left = self.operations_total - self.operations
        return ReplayProgress(
            operations_total=self.operations_total,
            operations_applied=self.operations,
            documents_written=self.documents,
            bytes_total=self.bytes_total,
            bytes_applied=self.bytes,
            operations_per_second=None if rate is None else round(rate, 1),
            eta_seconds=round(left / rate, 1) if rate else None if left else 0.0,
            lanes=None if lanes is None else round(lanes, 1),
            lanes_allowed=lanes_allowed,
        )

    def is_line_due(self, now: float) -> bool:
        """Whether the journal is to have a line: after half a minute, and at each tenth. It has it then."""
        tenths = self.operations * _TENTHS // max(1, self.operations_total)
        seconds, before = self._line or (now, tenths)
        is_due = now - seconds >= _LINE_SECONDS or tenths > before
        if is_due or self._line is None:
            self._line = (now, max(tenths, before))  # the whole grows: a tenth is reached once
        return is_due
