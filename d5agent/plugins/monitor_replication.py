"""monitor-replication: proves that the stream is drained (the fence), then starts restore."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.log import foreign_operations
from d5agent.core.phase import Fence, Service, Status
from d5agent.errors import OperatorError
from d5agent.steps.log_reader import LogReader
from d5agent.steps.marks import mark_document_id, new_mark_id

if TYPE_CHECKING:
    from d5agent.core.log import Link
    from d5agent.core.operation import ClusterTime
    from d5agent.core.raw import DocumentId
    from d5agent.ports import ChangeSource, Clock, Coordinator, ObjectStore

_SILENT_COMMITS: Final = 2  # without a mark: positions past the fence that told of nothing new


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
        reader = LogReader(store=self.store)
        last = await reader.last()
        mark_id = new_mark_id("fence")
        # What is stored up to the mark's own event is all that was written before the mark.
        if await self.source.mark(mark_id):
            link = await self._follow(coordinator, reader, last, _HasMark(mark_document_id(mark_id), reader))
        else:
            coordinator.journal.warning("mark_not_written", hint="grant the agent's user insert on d5agent")
            link = await self._follow(coordinator, reader, last, _IsPast(await self.source.now()))
        fence = Fence(
            sequence=link.commit.sequence,
            cluster_time=link.commit.position.cluster_time,
            at=self.clock.now().isoformat(timespec="seconds"),
        )
        await coordinator.update(lambda state: replace(state, fence=fence))
        coordinator.journal.info("fence_drawn", sequence=fence.sequence, cluster_time=str(fence.cluster_time))
        return link

    async def _follow(
        self, coordinator: Coordinator, reader: LogReader, last: Link | None, is_fence: _HasMark | _IsPast
    ) -> Link:
        began = self.clock.monotonic()
        while True:
            async for link in reader.links(after=last):
                if await is_fence.holds(link):
                    return link
                last = link
            self._check_patience(
                began, "the fence did not come out of the stream", "is replication running? see d5agent status"
            )
            await coordinator.wait("the fence to come out of the stream and be stored")

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


@dataclass(slots=True)
class _HasMark:
    """The fence with a mark: the commit that holds the mark's event."""

    mark: DocumentId
    reader: LogReader

    async def holds(self, link: Link) -> bool:
        """Whether the mark is among the agent's own operations of a commit."""
        async for operation in self.reader.own_operations(link.commit):
            if operation.document_id == self.mark:
                return True
        return False


@dataclass(slots=True)
class _IsPast:
    """The fence without a mark: an event at or after a time, or positions past it that told of nothing new."""

    time: ClusterTime
    silent: int = 0

    async def holds(self, link: Link) -> bool:
        """Whether the stream has passed the time for certain."""
        commit = link.commit
        if commit.position.cluster_time < self.time:
            return False
        if any(ref.last >= self.time for ref in commit.segments):
            return True
        # Older operations come late: what is between them and the time may be on its way as well.
        self.silent = 0 if commit.segments else self.silent + 1
        return self.silent >= _SILENT_COMMITS
