"""Cuts the log into what is written at a time: windows of compacted operations, and renames between them."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from d5agent.core.log.operation import OWN_DATABASE, Operation
from d5agent.core.log.segment import decode_changes
from d5agent.core.replay.replay import Window, barrier_of, is_known_barrier
from d5agent.steps.parallel import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Iterable

    from d5agent.core.log.chain import Commit, Link
    from d5agent.core.log.operation import Namespace
    from d5agent.core.replay.replay import Barrier
    from d5agent.steps.log.reader import LogReader, StoredSegment

_HELD: Final = 2  # windows: one fills up while the other is written
_BREATH: Final = 1_000  # operations between two moments in which writes may go on


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayStep:
    """What is applied at a time: a window, or alone a barrier that no window can take.

    Once it is applied, all commits up to `reached` are (None: none of those that are read now), and `within` operations
    of the one after it.
    """

    window: Window = field(default_factory=Window)
    barrier: Operation | None = None
    reached: Commit | None
    within: int = 0


@dataclass(slots=True, kw_only=True)
class Windows:
    """Reads commits into portions while the one before is being written. `window_bytes`: what both may hold.

    `skipped`: operations of the first commit that are applied already. `known`: which collections the target may hold.
    `kept`: names whose indexes and options are built again. The target performs a rename of them, or onto them: the
    indexes go with a collection, and one that cannot be built on it is refused by name, with its documents in place.
    """

    reader: LogReader
    window_bytes: int
    known: KnownNames
    kept: Container[Namespace] = ()
    skipped: int = 0
    _window: Window = field(default_factory=Window)
    _reached: Commit | None = None
    _within: int = 0

    @asynccontextmanager
    async def of(self, links: AsyncIterator[Link]) -> AsyncGenerator[AsyncGenerator[ReplayStep]]:
        """Read commits beside the block, one portion ahead of it; the block gets the portions, in order."""
        ready: asyncio.Queue[ReplayStep | None] = asyncio.Queue(1)

        async def read() -> None:
            async with aclosing(self._portions(links)) as portions:
                async for portion in portions:
                    await ready.put(portion)
                    await ready.join()  # taken: the next one may fill up
            await ready.put(None)

        async def taken() -> AsyncGenerator[ReplayStep]:
            while (portion := await ready.get()) is not None:
                ready.task_done()
                yield portion

        async with beside(read()):
            yield taken()

    async def _portions(self, links: AsyncIterator[Link]) -> AsyncGenerator[ReplayStep]:
        async with aclosing(self.reader.segments_of(links)) as segments:
            async for link, segment in segments:
                if segment is None:
                    self._reached, self._within, self.skipped = link.commit, 0, 0
                    continue
                async for portion in self._portions_of(segment, link.commit):
                    yield portion
        yield self._cut()

    async def _portions_of(self, segment: StoredSegment, commit: Commit) -> AsyncGenerator[ReplayStep]:
        """Take a segment's operations; they are numbered through their commit, as it lists its segments."""
        before, skipped = self._within, max(0, self.skipped - self._within)
        for number, change in islice(enumerate(decode_changes(*segment), before + 1), skipped, None):
            if isinstance(change, Operation):
                async for portion in self._barrier(change, commit, number):
                    yield portion
            elif change.namespace.database != OWN_DATABASE:
                if change.namespace in self._window.absorbed:
                    yield self._cut_at(number - 1)
                self._window.add(change)
            if self._window.bytes >= self.window_bytes // _HELD or self._window.is_full:
                yield self._cut_at(number)
            if number % _BREATH == 0:
                await _breathe()
        self._within = before + segment[0].count

    async def _barrier(self, operation: Operation, commit: Commit, number: int) -> AsyncGenerator[ReplayStep]:
        """Take a barrier into the window; where it cannot be taken, yield what came before, then the barrier alone."""
        if operation.is_ours:
            return
        if operation.rename_to in self._window.absorbed:
            yield self._cut_at(number - 1)
        if is_known_barrier(operation) and await self._is_taken(barrier_of(operation)):
            return
        yield self._cut_at(number - 1)
        if number == sum(ref.count for ref in commit.segments):
            self._reached, self._within = commit, 0
        else:
            self._within = number
        if is_known_barrier(operation):
            self.known.rename(barrier_of(operation))
        yield ReplayStep(barrier=operation, reached=self._reached, within=self._within)

    async def _is_taken(self, barrier: Barrier) -> bool:
        window, name = self._window, barrier.namespace
        if window.take(barrier):
            return True
        if not window.touches(name) or name in self.kept or barrier.rename_to in self.kept:
            return False
        return await self.known.lack(name) and window.take(barrier, is_lacking=True)

    def _cut_at(self, within: int) -> ReplayStep:
        self._within = within
        return self._cut()

    def _cut(self) -> ReplayStep:
        window, self._window = self._window, Window()
        self.known.follow(window)
        return ReplayStep(window=window, reached=self._reached, within=self._within)


@dataclass(slots=True)
class KnownNames:
    """Which collections the target may hold once all windows so far are applied. It is asked when that is needed first.

    `list_names` returns the target's collections, and others that count as held; None: nobody can tell.
    """

    list_names: Callable[[], Awaitable[Iterable[Namespace] | None]]
    _names: set[Namespace] | None = None
    _is_unknown: bool = False
    _recent: deque[set[Namespace]] = field(default_factory=lambda: deque(maxlen=_HELD))
    """Of the windows that may be under way while the target is asked."""

    async def lack(self, namespace: Namespace) -> bool:
        """Whether the target lacks a collection."""
        if self._names is None and not self._is_unknown:
            found = await self.list_names()
            self._is_unknown = found is None
            self._names = None if found is None else set(found).union(*self._recent)
        return self._names is not None and namespace not in self._names

    def follow(self, window: Window) -> None:
        """Take the next window."""
        for barrier in window.removals():
            self._remove(barrier.namespace)
        self._add(window.names())

    def rename(self, barrier: Barrier) -> None:
        """Take a rename that the target performs."""
        self._remove(barrier.namespace)
        self._add({barrier.rename_to} if barrier.rename_to is not None else set())

    def _add(self, names: set[Namespace]) -> None:
        self._recent.append(names)
        if self._names is not None:
            self._names |= names

    def _remove(self, name: Namespace) -> None:
        if self._names is None:
            return
        if name.collection is None:
            self._names = {known for known in self._names if known.database != name.database}
        else:
            self._names.discard(name)


async def _breathe() -> None:
    """Let others have the loop: taking a segment apart may take long."""
    await asyncio.sleep(0)  # noqa: TID251 -- no time passes
