"""Cuts the log into what is written at a time: windows of compacted operations, and renames between them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.log.operation import OWN_DATABASE, Operation
from d5agent.core.log.segment import decode_changes
from d5agent.core.replay.replay import Window, barrier_of, is_known_barrier
from d5agent.steps.parallel import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from d5agent.core.log.chain import Commit, Link
    from d5agent.core.log.glance import Change
    from d5agent.steps.log.reader import LogReader

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
    """Reads commits into steps while the one before is being written. `window_bytes`: what both may hold.

    `skipped`: operations of the first commit that are applied already.
    """

    reader: LogReader
    window_bytes: int
    skipped: int = 0
    _window: Window = field(default_factory=Window)
    _reached: Commit | None = None
    _within: int = 0

    @asynccontextmanager
    async def of(self, links: AsyncIterator[Link]) -> AsyncGenerator[AsyncGenerator[ReplayStep]]:
        """Read commits beside the block, one step ahead of it; the block gets the steps, in order."""
        ready: asyncio.Queue[ReplayStep | None] = asyncio.Queue(1)

        async def read() -> None:
            async with aclosing(self._steps(links)) as steps:
                async for step in steps:
                    await ready.put(step)
                    await ready.join()  # taken: the next one may fill up
            await ready.put(None)

        async def taken() -> AsyncGenerator[ReplayStep]:
            while (step := await ready.get()) is not None:
                ready.task_done()
                yield step

        async with beside(read()):
            yield taken()

    async def _steps(self, links: AsyncIterator[Link]) -> AsyncGenerator[ReplayStep]:
        async with aclosing(self.reader.segments_of(links)) as segments:
            async for link, segment in segments:
                if segment is None:
                    self._reached, self._within, self.skipped = link.commit, 0, 0
                    continue
                async for step in self._steps_of(decode_changes(*segment), link.commit):
                    yield step
        yield self._cut()

    async def _steps_of(self, changes: Iterator[Change | Operation], commit: Commit) -> AsyncGenerator[ReplayStep]:
        """Take a segment's operations; they are numbered through their commit, as it lists its segments."""
        skipped = max(0, self.skipped - self._within)
        before, number = self._within, 0
        for number, change in enumerate(changes, 1):
            if number <= skipped:
                continue
            if isinstance(change, Operation):
                async for step in self._barrier(change, commit, before + number):
                    yield step
            elif change.namespace.database != OWN_DATABASE:
                self._window.add(change)
            if self._window.bytes >= self.window_bytes // _HELD or self._window.is_full:
                self._within = before + number
                yield self._cut()
            if number % _BREATH == 0:
                await _breathe()
        self._within = before + number

    async def _barrier(self, operation: Operation, commit: Commit, number: int) -> AsyncGenerator[ReplayStep]:
        """Take a barrier into the window; where it cannot be taken, yield what came before, then the barrier alone."""
        if operation.is_ours or (is_known_barrier(operation) and self._window.take(barrier_of(operation))):
            return
        self._within = number - 1
        yield self._cut()
        if number == sum(ref.count for ref in commit.segments):
            self._reached, self._within = commit, 0
        else:
            self._within = number
        yield ReplayStep(barrier=operation, reached=self._reached, within=self._within)

    def _cut(self) -> ReplayStep:
        window, self._window = self._window, Window()
        return ReplayStep(window=window, reached=self._reached, within=self._within)


async def _breathe() -> None:
    """Let others have the loop: taking a segment apart may take long."""
    await asyncio.sleep(0)  # noqa: TID251 -- no time passes
