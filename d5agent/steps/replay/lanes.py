"""Writes batches into the target, over as many lanes as it can take at the moment."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.run.replay_progress import BusyLanes
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from d5agent.core.replay.pace import Pace, RateLimit
    from d5agent.core.replay.replay import Barrier, Failure, WriteBatch
    from d5agent.ports import Clock, Target
    from d5agent.service import Journal

_LOOK_SECONDS: Final = 1.0  # between two looks at the target's tickets


@dataclass(slots=True, kw_only=True)
class Lanes:
    """Never more than the pace allows write at the same time; each takes the next batch when it has done one."""

    target: Target
    clock: Clock
    journal: Journal
    pace: Pace
    limit: RateLimit
    busy: BusyLanes = field(default_factory=BusyLanes)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)
    _looked_at: float | None = None
    _is_blind: bool = False

    async def write(self, batches: Iterable[WriteBatch]) -> list[Failure]:
        """Write batches, in any order; return what the target refused."""
        await self._look()
        portions = [portion for batch in batches for portion in self.limit.portions(batch)]
        results = await parallel(self._write, portions, limit=self.pace.lanes)
        return [failure for failures in results for failure in failures]

    async def remove(self, removals: Iterable[Barrier]) -> None:
        """Apply drops and dropDatabases, in any order."""
        await parallel(self._remove, removals, limit=self.pace.lanes)

    async def _remove(self, removal: Barrier) -> None:
        async with self._lane():
            await self.target.apply(removal)

    async def _write(self, batch: WriteBatch) -> Sequence[Failure]:
        async with self._lane():
            wait = self.limit.wait_seconds(len(batch.writes), now=self.clock.monotonic())
            if wait:
                await self.clock.sleep(wait)
            began, busy = self.clock.monotonic(), self.busy.active
            failures = await self.target.write(batch)
            now = self.clock.monotonic()
            size = sum(len(write.document or b"") for write in batch.writes)
            self._note(
                seconds=now - began, writes=len(batch.writes), size=size, busy=max(busy, self.busy.active), now=now
            )
            return failures

    @asynccontextmanager
    async def _lane(self) -> AsyncGenerator[None]:
        while self.busy.active >= self.pace.allowed:
            self._freed.clear()
            await self._freed.wait()
        self.busy.change(self.clock.monotonic(), 1)
        try:
            yield
        finally:
            self.busy.change(self.clock.monotonic(), -1)
            self._freed.set()

    def _note(self, *, seconds: float, writes: int, size: int, busy: int, now: float) -> None:
        before = self.pace.allowed
        self.pace.note(seconds=seconds, writes=writes, size=size, busy=busy, now=now)
        self._tell(before, reason="latency")

    async def _look(self) -> None:
        """Look at the target's tickets now and then, between windows: it takes one of the lanes' connections."""
        now = self.clock.monotonic()
        if self._is_blind or (self._looked_at is not None and now - self._looked_at < _LOOK_SECONDS):
            return
        self._looked_at = now
        tickets = await self.target.tickets()
        if tickets is None:
            self._is_blind = True
            self.journal.warning(
                "target_load_not_read",
                hint="grant the target's user clusterMonitor; until then its latency alone counts",
            )
            return
        before = self.pace.allowed
        self.pace.note_tickets(tickets, now=now)
        self._tell(before, reason="tickets")

    def _tell(self, before: int, *, reason: str) -> None:
        if self.pace.allowed < before:
            self.journal.info("lanes_reduced", lanes=self.pace.allowed, of=self.pace.lanes, reason=reason)
