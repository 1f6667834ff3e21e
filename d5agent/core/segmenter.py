"""Operations in, segments and commits out: cut by size, by age and at the borders that the log's order rests on.

The borders: events of one cluster time stay in one commit (a transaction's writes share theirs), and an event that
concerns more than one document (drop, rename, dropDatabase, or a type not known) stands in a commit of its own. Memory
stays bounded in a transaction of any size: full segments are handed out at once, and the commit that publishes them
follows when the time has passed.

A busy collection gets segments of its own, and so do the largest of the quiet ones, up to a number. The rest share one,
or each would cost a request a second (ADR 39).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.operation import Namespace, Operation, Position
from d5agent.core.segment import Segment, encode_segment, mixed_segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.glance import Event

OWN_SEGMENTS: Final = 32
"""Quiet collections of one cut that get a segment each, unless the configuration says otherwise."""

_BUSY_SHARE: Final = 16
"""A collection with this part of `max_bytes` in one cut is busy; so there are at most 16 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Segments to store; with a position, everything handed out so far is to be committed at it."""

    segments: tuple[Segment, ...]
    position: Position | None


_NOTHING: Final[tuple[Cut, ...]] = ()


@dataclass(slots=True, kw_only=True)
class Segmenter:
    """Collects operations in the order of the stream. `max_age_seconds` is how long one may wait for its commit.

    `own_segments`: so many quiet collections of a cut get a segment each; what is beyond them shares one.
    """

    max_bytes: int
    max_age_seconds: float
    own_segments: int = OWN_SEGMENTS
    _open: dict[Namespace, list[Operation | Event]] = field(default_factory=dict)
    _open_bytes: int = 0
    _uncommitted_bytes: int = 0
    _oldest: float | None = None
    _last: Operation | Event | None = None
    _before: Operation | Event | None = None
    """The last operation of an earlier cluster time than the newest: up to it all may be committed at any moment."""
    _is_ordered: bool = True
    """Whether no operation came with an earlier cluster time than the one before it."""
    _sealed: Position | None = None

    @property
    def is_empty(self) -> bool:
        """Whether everything that came in has been handed out for a commit."""
        return self._last is None

    @property
    def is_sealed(self) -> bool:
        """Whether all that came in may be committed."""
        return self._sealed is not None

    @property
    def bytes(self) -> int:
        """What it holds."""
        return self._open_bytes

    def add(self, operation: Operation | Event, *, now: float) -> Sequence[Cut]:
        """Take the next operation; return what is to be stored, in order."""
        cuts = _NOTHING
        last = self._last
        if last is not None:
            has_passed = operation.cluster_time > last.cluster_time
            if operation.is_barrier or last.is_barrier or (has_passed and self._is_due(now)):
                cuts = (self._close(_after(last)),)
            elif has_passed:
                self._before = last
            elif operation.cluster_time < last.cluster_time:
                self._is_ordered = False
        operations = self._open.get(operation.namespace)
        if operations is None:
            operations = self._open[operation.namespace] = []
        operations.append(operation)
        size = len(operation.raw)
        self._open_bytes += size
        self._uncommitted_bytes += size
        if self._oldest is None:
            self._oldest = now
        self._last, self._sealed = operation, None
        if self._open_bytes >= self.max_bytes:
            cuts = (*cuts, Cut(segments=self._take_segments(), position=None))
        return cuts

    def seal(self, position: Position | None) -> None:
        """Note that the stream has nothing more at this moment: all that came in may be committed.

        At `position`, if the server names one, else right after the last operation.
        """
        if position is not None:
            self._sealed = position
        elif self._last is not None:
            self._sealed = _after(self._last)

    def tick(self, *, now: float) -> Cut | None:
        """Return the commit that is due, if it may be cut: it is old enough, or large enough to be worth its requests.

        So a burst that has ended need not wait for its age. It costs a request for each collection, up to a number.
        """
        if self._sealed is None or self._oldest is None:
            return None
        requests = max(1, min(len(self._open), self.own_segments + 1))
        is_worth_it = self._uncommitted_bytes * _BUSY_SHARE >= self.max_bytes * requests
        is_due = is_worth_it or now - self._oldest >= self.max_age_seconds
        return self._close(self._sealed) if is_due else None

    def drain(self) -> Cut | None:
        """Return the last commit of a stream that is given up; None: there is nothing that may be committed.

        What has not been sealed is left out only where a further event could share its cluster time; it comes again.
        """
        if self._last is None:
            return None
        if self._sealed is not None:
            return self._close(self._sealed)
        if self._last.is_barrier:
            return self._close(_after(self._last))
        if self._before is None or not self._is_ordered or self._uncommitted_bytes != self._open_bytes:
            return None  # one cluster time and no more, or perhaps some of the newest is handed out already
        newest = self._last.cluster_time
        for namespace, operations in list(self._open.items()):
            older = [operation for operation in operations if operation.cluster_time < newest]
            if older:
                self._open[namespace] = older
            else:
                del self._open[namespace]
        return self._close(_after(self._before))

    def _is_due(self, now: float) -> bool:
        return self._uncommitted_bytes >= self.max_bytes or (
            self._oldest is not None and now - self._oldest >= self.max_age_seconds
        )

    def _take_segments(self) -> tuple[Segment, ...]:
        parts = list(self._open.values())
        self._open.clear()
        self._open_bytes = 0
        shared = self._shared(parts) if len(parts) > self.own_segments else []
        if not shared:
            return tuple(encode_segment(part) for part in parts)
        is_shared = {id(part) for part in shared}
        return (*(encode_segment(part) for part in parts if id(part) not in is_shared), mixed_segment(shared))

    def _shared(self, parts: Sequence[list[Operation | Event]]) -> list[list[Operation | Event]]:
        """Return what is to share one segment: the smallest of the quiet collections, in order.

        The agent's own marks are kept apart: they are looked for by key.
        """
        sizes = {id(part): sum([len(operation.raw) for operation in part]) for part in parts}
        quiet = [part for part in parts if sizes[id(part)] * _BUSY_SHARE < self.max_bytes and not part[0].is_ours]
        largest = sorted(quiet, key=lambda part: sizes[id(part)], reverse=True)
        own = {id(part) for part in largest[: self.own_segments]}
        return [part for part in quiet if id(part) not in own]

    def _close(self, position: Position) -> Cut:
        cut = Cut(segments=self._take_segments(), position=position)
        self._uncommitted_bytes = 0
        self._oldest = self._last = self._before = self._sealed = None
        self._is_ordered = True
        return cut


def _after(operation: Operation | Event) -> Position:
    return Position(cluster_time=operation.cluster_time, token=operation.token)
