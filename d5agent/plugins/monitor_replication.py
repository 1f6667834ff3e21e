"""monitor-replication: proves that the stream is drained (the fence), then starts restore."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from d5agent.core.log import foreign_operations
from d5agent.core.phase import Fence, Service, Status
from d5agent.errors import OperatorError
from d5agent.steps.fence import draw_fence
from d5agent.steps.log_reader import LogReader

if TYPE_CHECKING:
    from d5agent.core.log import Link
    from d5agent.ports import ChangeSource, Clock, Coordinator, ObjectStore


@dataclass(slots=True, kw_only=True)
class MonitorReplication:
    """Draws the fence. `quiet_seconds`: how long nothing may have come after it; `timeout_seconds`: for each wait."""

    source: ChangeSource
    store: ObjectStore
    clock: Clock
    quiet_seconds: float
    timeout_seconds: float
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Wait for running writes, draw the fence, wait for the target's backup, start restore."""
        await self._wait_for_writes(coordinator)
        link = await self._draw_fence(coordinator)
        await self._wait_for_quiet(coordinator, link)
        await self._wait_for_backup(coordinator)
        await coordinator.start(Service.RESTORE)

    async def _wait_for_writes(self, coordinator: Coordinator) -> None:
        began = self.clock.monotonic()
        while running := await self.source.running_writes():
            self._check_patience(
                began,
                "writes are still running on the source",
                "make the application's user read-only (Lambda restore-replication), or end them; then start restore",
                running=running[0],
            )
            await coordinator.wait(f"{len(running)} running writes to end: {running[0]}")

    async def _draw_fence(self, coordinator: Coordinator) -> Link:
        link = await draw_fence(
            coordinator,
            source=self.source,
            reader=LogReader(store=self.store),
            clock=self.clock,
            timeout_seconds=self.timeout_seconds,
        )
        fence = Fence(
            sequence=link.commit.sequence,
            cluster_time=link.commit.position.cluster_time,
            at=self.clock.now().isoformat(timespec="seconds"),
        )
        await coordinator.update(lambda state: replace(state, fence=fence))
        coordinator.journal.info("fence_drawn", sequence=fence.sequence, cluster_time=str(fence.cluster_time))
        return link

    async def _wait_for_quiet(self, coordinator: Coordinator, last: Link) -> None:
        began = quiet_since = self.clock.monotonic()
        reader = LogReader(store=self.store)
        while self.clock.monotonic() - quiet_since < self.quiet_seconds:
            self._check_patience(
                began + self.quiet_seconds,
                "operations still come after the fence",
                "make the application's user read-only (Lambda restore-replication); then start restore",
            )
            await coordinator.wait(f"{self.quiet_seconds} quiet seconds after the fence")
            async for link in reader.links(after=last):
                last = link
                if foreign_operations(link.commit):
                    quiet_since = self.clock.monotonic()

    async def _wait_for_backup(self, coordinator: Coordinator) -> None:
        while (status := coordinator.state.status(Service.BACKUP)) is not Status.DONE:
            if status in {Status.FAILED, Status.STOPPED, None}:
                await coordinator.wait("a backup, which is not running: type d5agent start backup")
            else:
                await coordinator.wait("backup")

    def _check_patience(self, began: float, message: str, hint: str, **facts: object) -> None:
        if self.clock.monotonic() - began > self.timeout_seconds:
            raise OperatorError(message, hint=hint, after_seconds=self.timeout_seconds, **facts)
