"""Operations in, segments and commits out: cut by size, by age and at the borders that the log's order rests on.

The borders: events of one cluster time stay in one commit (a transaction's writes share theirs), and an event that
concerns more than one document (drop, rename, dropDatabase, or a type not known) stands in a commit of its own. Memory
stays bounded in a transaction of any size: full segments are handed out at once, and the commit that publishes them
follows when the time has passed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from d5agent.core.operation import Namespace, Operation, Position
from d5agent.core.segment import Segment, encode_segment

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Segments to store; with a position, everything handed out so far is to be committed at it."""

    segments: tuple[Segment, ...]
    position: Position | None


@dataclass(slots=True, kw_only=True)
class Segmenter:
    """Collects operations in the order of the stream. `max_age_seconds` is how long one may wait for its commit."""

    max_bytes: int
    max_age_seconds: float
    _open: dict[Namespace, list[Operation]] = field(default_factory=dict)
    _open_bytes: int = 0
    _uncommitted_bytes: int = 0
    _oldest: float | None = None
    _last: Operation | None = None
    _sealed: Position | None = None

    @property
    def is_empty(self) -> bool:
        """Whether everything that came in has been handed out for a commit."""
        return self._last is None

    @property
    def is_sealed(self) -> bool:
        """Whether all that came in may be committed."""
        return self._sealed is not None

    def add(self, operation: Operation, *, now: float) -> Iterator[Cut]:
        """Take the next operation; yield what is to be stored, in order."""
        last = self._last
        if last is not None and self._ends_between(last, operation, now=now):
            yield self._close(Position(cluster_time=last.cluster_time, token=last.token))
        self._open.setdefault(operation.namespace, []).append(operation)
        self._open_bytes += len(operation.raw)
        self._uncommitted_bytes += len(operation.raw)
        self._oldest = now if self._oldest is None else self._oldest
        self._last, self._sealed = operation, None
        if self._open_bytes >= self.max_bytes:
            yield Cut(segments=self._take_segments(), position=None)

    def seal(self, position: Position | None) -> None:
        """Note that the stream has nothing more at this moment: all that came in may be committed.

        At `position`, if the server names one, else right after the last operation.
        """
        if position is not None:
            self._sealed = position
        elif self._last is not None:
            self._sealed = Position(cluster_time=self._last.cluster_time, token=self._last.token)

    def tick(self, *, now: float) -> Cut | None:
        """Return the commit that is due because its oldest operation has waited long enough, if it may be cut."""
        if self._sealed is None or self._oldest is None or now - self._oldest < self.max_age_seconds:
            return None
        return self._close(self._sealed)

    def drain(self) -> Cut | None:
        """Return the last commit of a stream that is given up.

        What has not been sealed is left out only where a further event could share its cluster time; it comes again.
        """
        if self._last is None or self._sealed is None:
            return None
        return self._close(self._sealed)

    def _ends_between(self, last: Operation, operation: Operation, *, now: float) -> bool:
        if operation.is_barrier or last.is_barrier:
            return True
        full = self._uncommitted_bytes >= self.max_bytes
        old = self._oldest is not None and now - self._oldest >= self.max_age_seconds
        return operation.cluster_time > last.cluster_time and (full or old)

    def _take_segments(self) -> tuple[Segment, ...]:
        segments = tuple(encode_segment(operations) for operations in self._open.values())
        self._open.clear()
        self._open_bytes = 0
        return segments

    def _close(self, position: Position) -> Cut:
        cut = Cut(segments=self._take_segments(), position=position)
        self._uncommitted_bytes = 0
        self._oldest = self._last = self._sealed = None
        return cut
