"""How hard the target may be written to: lanes by its latency and its tickets, and a limit of writes a second.

The target is somebody's production database. Additive increase, multiplicative decrease: a lane more for each second in
which all is well, half of them as soon as it is not, one always.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from d5agent.core.replay.replay import WriteBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEP_SECONDS: Final = 1.0  # between two changes of the number of lanes
_ROUND_TRIP: Final = 100  # writes: what a command costs by itself, with its journal and its majority
_UNIT_BYTES: Final = 4096  # a write of so many bytes costs as much again as one without
_LEAST_SECONDS: Final = 0.0001  # a clock may not have moved
_SMOOTHING: Final = 0.2  # the weight of the newest command
_FORGETTING: Final = 1.01  # a server that is slower for good is as usual after some hundred commands
_TOO_SLOW: Final = 2.0  # times what the lanes in use may explain
_FEW_TICKETS: Final = 0.25  # of all; with fewer left, others wait soon
_BURST_SECONDS: Final = 0.25  # a limit of writes a second is kept over this time


class Tickets(NamedTuple):
    """How many writes a server lets in at the same time, and how many more it would at this moment."""

    free: int
    total: int


@dataclass(slots=True, kw_only=True)
class Pace:
    """How many of `lanes` may write now. All of them may, until there is a reason against it.

    A server that does one thing at a time answers N lanes in N times the time it takes for one: so much of its latency
    may be ours. What is beyond it comes from somebody else, who was there before us.
    """

    lanes: int
    _allowed: float = field(init=False)
    _changed_at: float | None = None
    _usual: float = 0.0
    _recent: float = 0.0
    _stretch: float = 1.0

    def __post_init__(self) -> None:
        """Begin with all lanes."""
        self._allowed = float(self.lanes)

    @property
    def allowed(self) -> int:
        """How many lanes may write now."""
        return int(self._allowed)

    def note(self, *, seconds: float, writes: int, size: int, busy: int, now: float) -> None:
        """Learn from a batch: how long it took while `busy` lanes wrote, this one among them; `size` in bytes."""
        cost = max(seconds, _LEAST_SECONDS) / (_ROUND_TRIP + writes + size / _UNIT_BYTES)
        if not self._usual:
            self._usual = self._recent = cost
        self._recent += _SMOOTHING * (cost - self._recent)
        self._stretch += _SMOOTHING * (cost / self._usual / busy - self._stretch)
        self._usual = min(self._usual * _FORGETTING, self._recent)
        self._change(is_well=self._stretch <= _TOO_SLOW, now=now)

    def note_tickets(self, tickets: Tickets, *, now: float) -> None:
        """Learn from the server's tickets; only against it: many free ones may mean that nobody else writes."""
        if tickets.free < _FEW_TICKETS * tickets.total:
            self._change(is_well=False, now=now)

    def _change(self, *, is_well: bool, now: float) -> None:
        is_early = self._changed_at is not None and now - self._changed_at < _STEP_SECONDS
        if is_early or (is_well and self.allowed == self.lanes):
            return
        self._changed_at = now
        self._allowed = min(self._allowed + 1, self.lanes) if is_well else max(self._allowed // 2, 1.0)


@dataclass(slots=True, kw_only=True)
class RateLimit:
    """At most so many writes a second, over all lanes; None: as many as may be."""

    per_second: float | None
    _free_at: float = 0.0

    def wait_seconds(self, writes: int, *, now: float) -> float:
        """Return how long to wait before these writes are sent; their place is taken with this call."""
        if self.per_second is None:
            return 0.0
        begin = max(now, self._free_at)
        self._free_at = begin + writes / self.per_second
        return begin - now

    def portions(self, batch: WriteBatch) -> Iterator[WriteBatch]:
        """Yield a batch in pieces that are small beside the limit: it holds within a second, not over minutes."""
        step = len(batch.writes) if self.per_second is None else max(1, int(self.per_second * _BURST_SECONDS))
        if len(batch.writes) <= step:
            yield batch
            return
        for at in range(0, len(batch.writes), step):
            yield WriteBatch(namespace=batch.namespace, writes=batch.writes[at : at + step])
