"""The change stream of a cluster in memory."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bson import decode, encode
from typing_extensions import override

from d5agent.core.log.operation import OWN_DATABASE, ClusterTime, Namespace, Position
from d5agent.errors import NotKeptError
from d5agent.ports import EventBatch
from tests.fakes.cluster import BEFORE_ALL, FakeCluster, drop_database, insert, token_data

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from d5agent.ports import Clock

MARKS: Final = Namespace(OWN_DATABASE, "marks")
_AWAIT_SECONDS: Final = 0.5


@dataclass(slots=True, kw_only=True)
class FakeChangeSource:
    """Reads a FakeCluster. `batch_sizes` go round; `opened` and `closed` count the streams.

    `may_write`: whether a mark may be written. `writes`: what `running_writes` tells. `is_enabled`: whether changes
    are kept; `enables`: whether a check may switch that on. `names_positions`: not DocumentDB 4.0, which names none.
    """

    cluster: FakeCluster
    clock: Clock
    batch_sizes: Sequence[int] = (1000,)
    may_write: bool = True
    is_enabled: bool = True
    enables: bool = False
    names_positions: bool = True
    writes: list[str] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    _off_at: int = 0
    _untold: list[range] = field(default_factory=list)
    _on_since: ClusterTime = BEFORE_ALL

    def switch(self, *, is_on: bool) -> None:
        """Switch the stream off, or on again: what happens in between is never told, and what was before is lost.

        A stream that is open goes on, without an error.
        """
        self.is_enabled = is_on
        if is_on:
            self._untold.append(range(self._off_at, len(self.cluster)))
            self._on_since = self.cluster.pass_time()
        else:
            self._off_at = len(self.cluster)

    async def check_kept(self, since: ClusterTime | None) -> ClusterTime:
        until = self.cluster.now()
        self._first_after(Position(cluster_time=since or until, token=None))
        return until

    async def check(self, *, before_enabling: Callable[[], Awaitable[None]] | None) -> None:
        if before_enabling is not None and self.enables and not self.is_enabled:
            await before_enabling()
            self.is_enabled = True
        if not self.is_enabled:
            raise NotKeptError("change streams are not enabled", hint="enable them")

    @asynccontextmanager
    async def stream(self, after: Position | None) -> AsyncGenerator[AsyncGenerator[EventBatch]]:
        if after is None:
            after = Position(cluster_time=self.cluster.now(), token=None)
        self.opened += 1
        try:
            async with aclosing(self._batches(after)) as batches:
                yield batches
        finally:
            self.closed += 1

    async def mark(self, mark_id: str) -> bool:
        if self.may_write:
            self.cluster.apply(insert(MARKS, {"_id": mark_id}))
        return self.may_write

    async def running_writes(self) -> Sequence[str]:
        return list(self.writes)

    async def now(self) -> ClusterTime:
        return self.cluster.now()

    async def close_stream(self, *, switches_off: bool) -> bool:
        if self.cluster.database.names(OWN_DATABASE):
            self.cluster.apply(drop_database(OWN_DATABASE))
        self.is_enabled = self.is_enabled and not switches_off
        return self.is_enabled

    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        at = self._first_after(after)
        yield EventBatch(events=[], position=self._position(at))
        for size in itertools.cycle(self.batch_sizes):
            await asyncio.sleep(0)
            if at == len(self.cluster):
                await self.clock.sleep(_AWAIT_SECONDS)
            end = min(at + size, len(self.cluster))
            events = [self.cluster.event(number) for number in range(at, end) if self._is_told(number)]
            at = end
            yield EventBatch(events=events, position=self._position(at))

    def _first_after(self, after: Position) -> int:
        if after.token is None:
            first = self.cluster.first_at(after.cluster_time)
        else:
            data = decode(after.token)["_data"]
            # An event's own token: go on after it. A token between events: go on with the next.
            first = int(data[1:], 16) if data.startswith("-") else int(data, 16) + 1
        if not self.is_enabled:
            raise NotKeptError("change streams are not enabled", hint="enable them")
        if first < self.cluster.kept_from or self._is_before_gap(after, first):
            raise NotKeptError("the position is lost", hint="see the runbook")
        return first

    def _is_before_gap(self, after: Position, first: int) -> bool:
        if after.token is None:
            return after.cluster_time < self._on_since
        return any(first < untold.stop for untold in self._untold)

    def _is_told(self, number: int) -> bool:
        is_off = not self.is_enabled and number >= self._off_at
        return not is_off and not any(number in untold for untold in self._untold)

    def _position(self, at: int) -> Position | None:
        """Return where the stream goes on; the time beside it is the server's own, as in every reply."""
        if not self.names_positions:
            return None
        return Position(cluster_time=self.cluster.now(), token=encode({"_data": f"-{token_data(at)}"}))


class LaggingSource(FakeChangeSource):
    """A server whose stream is behind its writes: until a moment it sends nothing, as if there were nothing.

    As unkind as a real one: each empty reply has the server's own time beside the token, and it moves on.
    """

    silent_until = 0.0

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        token = after.token
        async with aclosing(super()._batches(after)) as batches:
            async for batch in batches:
                while self.clock.monotonic() < self.silent_until:
                    beside = Position(cluster_time=self.cluster.now(), token=token)
                    yield EventBatch(events=[], position=beside if self.names_positions else None)
                    await self.clock.sleep(_AWAIT_SECONDS)
                yield batch
                token = batch.position.token if batch.position is not None else token
