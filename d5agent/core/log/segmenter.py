"""Operations in, segments and commits out: cut by size, by age and at the borders that the log's order rests on.

The borders: events of one cluster time stay in one commit (a transaction's writes share theirs), and an event of a type
that is not known stands in a commit of its own. A drop keeps its place among its collection's events. A rename or a
dropDatabase orders several collections: in its cut they share a segment, in the order of the stream (ADR 46). Memory
stays bounded in a transaction of any size: full segments are handed out at once, and the commit that publishes them
follows when the time has passed.

A busy collection gets segments of its own, and so do the largest of the quiet ones, up to a number. The rest share one,
or each would cost a request a second (ADR 39).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.log.operation import OWN_DATABASE, Namespace, Operation, Position, parse_event
from d5agent.core.log.segment import Segment, encode_segment, mixed_segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from d5agent.core.log.glance import Event

OWN_SEGMENTS: Final = 32
"""Quiet collections of one cut that get a segment each, unless the configuration says otherwise."""

_BUSY_SHARE: Final = 16
"""A collection with this part of `max_bytes` in one cut is busy; so there are at most 16 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Segments to store; with a position, everything handed out so far is to be committed at it.

    `renames_within`: the commit holds a rename and other operations.
    """

    segments: tuple[Segment, ...]
    position: Position | None
    renames_within: bool = False


_NOTHING: Final[tuple[Cut, ...]] = ()


@dataclass(slots=True)
class _Part:
    """Operations whose order among each other counts: of one collection, or of those that a barrier has to do with."""

    operations: list[Operation | Event] = field(default_factory=list)
    names: list[Namespace] = field(default_factory=list)
    is_joined: bool = False
    """Whether it has a rename or a dropDatabase, which no collection's key could tell."""


@dataclass(slots=True, kw_only=True)
class Segmenter:
    """Collects operations in the order of the stream. `max_age_seconds` is how long one may wait for its commit.

    `own_segments`: so many quiet collections of a cut get a segment each; what is beyond them shares one.
    """

    max_bytes: int
    max_age_seconds: float
    own_segments: int = OWN_SEGMENTS
    _open: dict[Namespace, _Part] = field(default_factory=dict)
    """By collection. By database as well after a dropDatabase: what comes of its collections belongs to that part."""
    _databases: dict[str, list[Namespace]] = field(default_factory=dict)
    _open_bytes: int = 0
    _uncommitted_bytes: int = 0
    _oldest: float | None = None
    _last: Operation | Event | None = None
    _before: Operation | Event | None = None
    """The last operation of an earlier cluster time than the newest: up to it all may be committed at any moment."""
    _is_ordered: bool = True
    """Whether no operation came with an earlier cluster time than the one before it."""
    _sealed: Position | None = None
    _is_alone: bool = False
    """Whether the newest operation stands in a commit of its own."""
    _count: int = 0
    _has_rename: bool = False

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
        barrier = _parsed(operation) if operation.is_barrier else None
        is_alone = barrier is not None and not _is_orderly(barrier)
        cuts = self._cut_before(operation, is_alone=is_alone, now=now)
        if barrier is None or is_alone:
            part = self._open.get(operation.namespace) or self._part(operation.namespace)
        else:
            part = self._part_of(barrier)
        part.operations.append(operation)
        size = len(operation.raw)
        self._open_bytes += size
        self._uncommitted_bytes += size
        self._count += 1
        if self._oldest is None:
            self._oldest = now
        self._last, self._is_alone, self._sealed = operation, is_alone, None
        if self._open_bytes >= self.max_bytes:
            cuts = (*cuts, Cut(segments=self._take_segments(), position=None))
        return cuts

    def _cut_before(self, operation: Operation | Event, *, is_alone: bool, now: float) -> tuple[Cut, ...]:
        """Return the commit that ends before an operation, if one does."""
        last = self._last
        if last is None:
            return _NOTHING
        has_passed = operation.cluster_time > last.cluster_time
        if is_alone or self._is_alone or (has_passed and self._is_due(now)):
            return (self._close(_after(last)),)
        if has_passed:
            self._before = last
        elif operation.cluster_time < last.cluster_time:
            self._is_ordered = False
        return _NOTHING

    def _part(self, name: Namespace) -> _Part:
        """Return the part that a collection's operations belong to."""
        part = self._open.get(name)
        if part is None:
            part = self._open.get(Namespace(name.database)) or _Part()
            self._put(name, part)
        return part

    def _put(self, name: Namespace, part: _Part) -> None:
        self._open[name] = part
        part.names.append(name)
        self._databases.setdefault(name.database, []).append(name)

    def _part_of(self, barrier: Operation) -> _Part:
        """Return the part that a barrier belongs to, with all that it has to do with."""
        name, to = barrier.namespace, barrier.rename_to
        if name.collection is None:
            part = self._open.get(name)
            if part is None:
                part = self._joined(list(self._databases.get(name.database, ())))
                self._put(name, part)
        elif to is not None:
            part = self._joined([name, to])
            self._has_rename = True
        else:
            part = self._part(name)
        return part

    def _joined(self, names: Iterable[Namespace]) -> _Part:
        """Return one part of several; between these no order counts, or they would be one already."""
        joined = _Part()
        for name in names:
            part = self._part(name)
            if part is joined:
                continue
            joined, smaller = (joined, part) if len(joined.operations) > len(part.operations) else (part, joined)
            joined.operations += smaller.operations
            joined.names += smaller.names
            self._open.update(dict.fromkeys(smaller.names, joined))
        joined.is_joined = True
        return joined

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
        for part in self._parts():
            part.operations = [operation for operation in part.operations if operation.cluster_time < newest]
        return self._close(_after(self._before))

    def _is_due(self, now: float) -> bool:
        return self._uncommitted_bytes >= self.max_bytes or (
            self._oldest is not None and now - self._oldest >= self.max_age_seconds
        )

    def _parts(self) -> list[_Part]:
        return list({id(part): part for part in self._open.values()}.values())

    def _take_segments(self) -> tuple[Segment, ...]:
        parts = [part for part in self._parts() if part.operations]
        self._open.clear()
        self._databases.clear()
        self._open_bytes = 0
        shared = self._shared(parts)
        if not shared:
            return tuple(encode_segment(part.operations) for part in parts)
        is_shared = {id(part) for part in shared}
        own = [encode_segment(part.operations) for part in parts if id(part) not in is_shared]
        return (*own, mixed_segment([part.operations for part in shared]))

    def _shared(self, parts: Sequence[_Part]) -> Sequence[_Part]:
        """Return what is to share one segment: what a barrier has joined, and the smallest of the quiet collections.

        The agent's own marks are kept apart: they are looked for by key.
        """
        joined = [part for part in parts if part.is_joined and self._count > 1]
        if len(parts) - len(joined) <= self.own_segments:
            return joined
        sizes = {id(part): sum([len(operation.raw) for operation in part.operations]) for part in parts}
        quiet = [
            part
            for part in parts
            if sizes[id(part)] * _BUSY_SHARE < self.max_bytes and not part.operations[0].is_ours and not part.is_joined
        ]
        largest = sorted(quiet, key=lambda part: sizes[id(part)], reverse=True)
        own = {id(part) for part in largest[: self.own_segments]}
        return [*joined, *(part for part in quiet if id(part) not in own)]

    def _close(self, position: Position) -> Cut:
        segments = self._take_segments()
        cut = Cut(segments=segments, position=position, renames_within=self._has_rename and self._count > 1)
        self._uncommitted_bytes = self._count = 0
        self._oldest = self._last = self._before = self._sealed = None
        self._is_ordered, self._is_alone, self._has_rename = True, False, False
        return cut


def _parsed(operation: Operation | Event) -> Operation:
    return operation if isinstance(operation, Operation) else parse_event(operation.raw)


def _is_orderly(barrier: Operation) -> bool:
    """Whether it is known what a barrier has to do with: else it stands in a commit of its own.

    So does what touches the agent's own database, whose marks are looked for by key.
    """
    name, to = barrier.namespace, barrier.rename_to
    if OWN_DATABASE in {name.database, to.database if to else ""}:
        return False
    match barrier.kind:
        case "drop":
            return name.collection is not None
        case "rename":
            return name.collection is not None and to is not None and to.collection is not None
        case _:
            return barrier.kind == "dropDatabase" and name.collection is None


def _after(operation: Operation | Event) -> Position:
    return Position(cluster_time=operation.cluster_time, token=operation.token)
