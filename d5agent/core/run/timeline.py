"""What happened when, for the certificate: which services worked, how far capture was behind, how fast restore was.

All of it is bounded: when a series is full, every two points become one and its step doubles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

VERSION: Final = 1
TIMELINE: Final = "timeline"
"""The name of the timeline in a StateStore."""

_MOST_POINTS: Final = 512
_MOST_SPANS: Final = 200
_GAP_SECONDS: Final = 2.0  # a service that pauses for a moment is still at it
# What restore says of its step, in the words of a timeline; while it follows the log it takes turns of a second.
_STEPS: Final = {
    "checking the log": "restore: check of the log",
    "replaying": "restore: replay",
    "settling doubts": "restore: settling doubts",
    "verifying": "restore: verify",
}
_LIVE: Final = "restore: live, beside the application"


@dataclass(slots=True)
class Series:
    """Points of (seconds since 1970, values …), at least `step` seconds apart; of merged points, the largest values."""

    step: float = 1.0
    points: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, at: float, *values: float) -> None:
        """Take a point, if the last one is old enough."""
        if self.points and at - self.points[-1][0] < self.step:
            return
        self.points.append((round(at, 1), *values))
        if len(self.points) > _MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            self.points = [tuple(map(max, one, other)) for one, other in pairs]
            self.step *= 2

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"step_seconds": self.step, "points": [list(point) for point in self.points]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Series:
        """Return what `to_json` wrote."""
        return cls(step=float(value["step_seconds"]), points=[tuple(point) for point in value["points"]])


@dataclass(slots=True)
class Span:
    """Something that went on for a while; `ended`: until when it was seen."""

    what: str
    began: float
    ended: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"what": self.what, "began": round(self.began, 1), "seconds": round(self.ended - self.began, 1)}


@dataclass(slots=True)
class Timeline:
    """The history of one run. `capture`: (lag in seconds, operations); `restore`: (operations applied, compared)."""

    run_id: str = ""
    spans: list[Span] = field(default_factory=list)
    capture: Series = field(default_factory=Series)
    restore: Series = field(default_factory=Series)

    def begin(self, run_id: str) -> None:
        """Forget all of another run."""
        if run_id != self.run_id:
            self.run_id, self.spans, self.capture, self.restore = run_id, [], Series(), Series()

    def see(self, at: float, active: Collection[str]) -> None:
        """Note what is at work at this moment."""
        for what in active:
            last = next((span for span in reversed(self.spans) if span.what == what), None)
            if last is not None and at - last.ended <= _GAP_SECONDS:
                last.ended = at
            else:
                self.spans.append(Span(what, at, at))
        del self.spans[:-_MOST_SPANS]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "version": VERSION,
            "run_id": self.run_id,
            "spans": [span.to_json() for span in self.spans],
            "capture": self.capture.to_json(),
            "restore": self.restore.to_json(),
        }

    def take(self, value: Mapping[str, Any]) -> None:
        """Go on from what `to_json` wrote. KeyError, TypeError, ValueError: it is something else."""
        spans = [Span(row["what"], row["began"], row["began"] + row["seconds"]) for row in value["spans"]]
        capture, restore = Series.from_json(value["capture"]), Series.from_json(value["restore"])
        self.run_id, self.spans, self.capture, self.restore = str(value["run_id"]), spans, capture, restore


def activity(service: str, step: object, *, has_fence: bool) -> str:
    """Return the name of what a service at work does; `step`: what restore says of it."""
    if service != "restore" or step is None:
        return service
    if not has_fence and step != "checking the log":
        return _LIVE
    return _STEPS.get(str(step), service)
