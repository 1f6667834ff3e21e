"""Capture's flow: the stream is read ahead, segments are stored side by side, commits follow in order.

Both ends are bounded in bytes: a reader that is ahead waits, and so does the segmenter while the store is slow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.errors import AgentError, TransientError
from d5agent.steps.parallel import beside, task_group

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from d5agent.core.log.chain import Commit
    from d5agent.core.log.operation import Position
    from d5agent.core.log.segment import Segment, SegmentRef
    from d5agent.core.log.segmenter import Cut
    from d5agent.ports import EventBatch
    from d5agent.steps.log.writer import LogWriter

_PARALLEL_PUTS: Final = 16
_MOST_COMMITS_WAITING: Final = 64


@dataclass(slots=True, kw_only=True)
class ByteBudget:
    """So many bytes may be held at once. What is larger than all of the room is let in alone."""

    max_bytes: int
    held: int = 0
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(self, size: int) -> None:
        """Wait until there is room, and take it."""
        while self.held and self.held + size > self.max_bytes:
            self._freed.clear()
            await self._freed.wait()
        self.held += size

    def leave(self, size: int) -> None:
        """Give room back."""
        self.held -= size
        self._freed.set()


class Inbox:
    """Batches that were read and not yet worked on."""

    def __init__(self, room: ByteBudget) -> None:
        self._room = room
        self._batches: deque[EventBatch] = deque()
        self._arrived = asyncio.Event()
        self._error: AgentError | None = None

    def __len__(self) -> int:
        """How many batches wait here."""
        return len(self._batches)

    async def fill(self, batches: AsyncGenerator[EventBatch]) -> None:
        """Read on while there is room. The stream's error is kept until what came before it is worked on."""
        try:
            async for batch in batches:
                self._batches.append(batch)
                self._arrived.set()
                # After the batch is in, not before: the next one is asked for while this one is worked on.
                await self._room.enter(_size(batch))
        except AgentError as error:
            self._error = error
            self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[EventBatch]:
        """Yield the batches in order, then raise the stream's error."""
        while True:
            while self._batches:
                batch = self._batches.popleft()
                yield batch
                self._room.leave(_size(batch))
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()


@asynccontextmanager
async def read_ahead(batches: AsyncGenerator[EventBatch], room: ByteBudget) -> AsyncGenerator[Inbox]:
    """Read a stream beside the block, ahead of it."""
    inbox = Inbox(room)
    async with beside(inbox.fill(batches)):
        yield inbox


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """Stores what was cut, several segments at once, and publishes it in the order in which it was cut."""

    writer: LogWriter
    room: ByteBudget
    on_commit: Callable[[Commit], Awaitable[None]]
    _uploads: list[asyncio.Task[SegmentRef]] = field(default_factory=list)
    _commits: asyncio.Queue[tuple[list[asyncio.Task[SegmentRef]], Position, bool]] = field(
        default_factory=lambda: asyncio.Queue(_MOST_COMMITS_WAITING)
    )
    _puts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PARALLEL_PUTS))
    _group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Work beside the block; at its end all that was taken is published. An error ends the block."""
        async with task_group() as group:
            self._group = group
            publisher = group.create_task(self._publish(), name="commits")
            yield
            await self._commits.join()
            publisher.cancel()

    async def take(self, cut: Cut) -> None:
        """Begin to store what was cut; with a position, it is published once all before it is."""
        assert self._group is not None  # noqa: S101 -- inside `open`
        for segment in cut.segments:
            await self.room.enter(len(segment.body))
            self._uploads.append(self._group.create_task(self._store(segment), name="segment"))
        if cut.position is not None:
            await self._commits.put((self._uploads, cut.position, cut.renames_within))
            self._uploads = []

    async def _store(self, segment: Segment) -> SegmentRef:
        async with self._puts:
            ref = await self.writer.store_segment(segment)
        self.room.leave(len(segment.body))
        return ref

    async def _publish(self) -> None:
        while True:
            uploads, position, renames_within = await self._commits.get()
            try:
                commit = await self.writer.publish(uploads, position, renames_within=renames_within)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # Not by us. A task group takes it for nothing, and who waits for this commit would wait for ever.
                raise TransientError("an upload was cancelled", hint="it is begun again; report it") from error
            await self.on_commit(commit)
            self._commits.task_done()


def _size(batch: EventBatch) -> int:
    return sum(map(len, batch.events)) if batch.size is None else batch.size
