"""monitor-replication: proves that the stream is drained (the fence), then starts restore."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from d5agent.core.log.chain import foreign_operations
from d5agent.core.run.cutover import MAY_BE_READ_ONLY, MAY_WRITE_AGAIN, held_up_by
from d5agent.core.run.services import Fence, Service, Status
from d5agent.errors import OperatorError
from d5agent.steps.backups import wait_for_backup
from d5agent.steps.capture.fence import draw_fence, write_marker
from d5agent.steps.log.reader import LogReader

if TYPE_CHECKING:
    from d5agent.core.log.chain import Link
    from d5agent.ports import Application, ChangeSource, Clock, ObjectStore
    from d5agent.service import Coordinator
    from d5agent.steps.capture.kept_changes import KeptChanges


@dataclass(slots=True, kw_only=True)
class MonitorReplication:
    """Draws the fence. `quiet_seconds`: how long nothing may have come after it; `timeout_seconds`: for each wait.

    `application`, in live mode: this is the cutover then, and it begins by making the application read-only.
    """

    source: ChangeSource
    store: ObjectStore
    kept: KeptChanges
    clock: Clock
    quiet_seconds: float
    timeout_seconds: float
    application: Application | None = None
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Draw the fence; then, unless restore is at work already and waits for it, start restore."""
        if self.application is not None:
            await self._cut_over(coordinator, self.application)
            return
        # Refused at once, not after the wait for running writes.
        await write_marker(self.source, "probe", again=self._again)
        await self._drain(coordinator)
        await wait_for_backup(coordinator, self.store, "target")
        await coordinator.start(Service.RESTORE)

    async def _cut_over(self, coordinator: Coordinator, application: Application) -> None:
        """Make the application read-only once restore has caught up, for it is to be so for seconds; then drain."""
        if coordinator.state.fence is not None:
            return  # drawn before a crash of ours; restore has seen it, or will
        try:
            # Refused before the application is made read-only.
            await write_marker(self.source, "probe", again=self._again)
            while not (restore := coordinator.progress.restore).can_cutover:
                self._check_restore(coordinator)
                await coordinator.wait(
                    held_up_by(restore.refused)
                    if restore.refused
                    else "restore to catch up; then the application is made read-only"
                )
            await coordinator.go_on()
            if await application.refuse_writes():
                coordinator.journal.info("application_made_read_only", next=MAY_WRITE_AGAIN)
            else:
                coordinator.journal.warning("application_read_only_by_word", of="operator", next=MAY_WRITE_AGAIN)
            await self._drain(coordinator, read_only_at=self.clock.now().isoformat(timespec="milliseconds"))
        except OperatorError as error:
            # Whatever went wrong, and wherever a crash began this anew: somebody's business may stand still.
            error.hint = f"{error.hint}; {MAY_BE_READ_ONLY}"
            raise

    def _check_restore(self, coordinator: Coordinator) -> None:
        if coordinator.state.status(Service.RESTORE) in {Status.FAILED, Status.STOPPED}:
            row = coordinator.state.services[Service.RESTORE]
            raise OperatorError(
                f"the cutover cannot begin: restore is {row.status}",
                hint="type: d5agent start restore, then d5agent cutover",
                restore=row.error or row.reason,
            )

    async def _drain(self, coordinator: Coordinator, *, read_only_at: str = "") -> None:
        """Wait for running writes, draw the fence, and publish it once it is quiet behind it."""
        await self._wait_for_writes(coordinator)
        marker = await draw_fence(
            coordinator,
            source=self.source,
            reader=LogReader(store=self.store),
            clock=self.clock,
            timeout_seconds=self.timeout_seconds,
            again=self._again,
        )
        # The marker proves the end of the stream, and nothing about the middle.
        await self.kept.prove(coordinator.state.run_id, sequence=marker.link.commit.sequence)
        await self._wait_for_quiet(coordinator, marker.link)
        fence = Fence(
            sequence=marker.link.commit.sequence,
            cluster_time=marker.cluster_time,
            at=self.clock.now().isoformat(timespec="milliseconds"),
            read_only_at=read_only_at,
            marker=marker.id,
        )
        await coordinator.update(lambda state: replace(state, fence=fence))
        coordinator.journal.info(
            "fence_drawn", sequence=fence.sequence, marker=fence.marker, cluster_time=str(fence.cluster_time)
        )

    async def _wait_for_writes(self, coordinator: Coordinator) -> None:
        began = self.clock.monotonic()
        while running := await self.source.running_writes():
            self._check_patience(
                began, "writes are still running on the source", self._advice("or end them"), running=running[0]
            )
            await coordinator.wait(f"{len(running)} running writes to end: {running[0]}")

    async def _wait_for_quiet(self, coordinator: Coordinator, last: Link) -> None:
        began = quiet_since = self.clock.monotonic()
        reader = LogReader(store=self.store)
        while self.clock.monotonic() - quiet_since < self.quiet_seconds:
            self._check_patience(
                began + self.quiet_seconds, "operations still come after the fence", self._advice("and see who writes")
            )
            await coordinator.wait(f"{self.quiet_seconds} quiet seconds after the fence")
            async for link in reader.links(after=last):
                last = link
                if foreign_operations(link.commit):
                    quiet_since = self.clock.monotonic()

    @property
    def _again(self) -> str:
        return "d5agent start restore" if self.application is None else "d5agent cutover"

    def _advice(self, what: str) -> str:
        return f"make the application's user read-only (Lambda restore-replication), {what}; then type: {self._again}"

    def _check_patience(self, began: float, message: str, hint: str, **facts: object) -> None:
        if self.clock.monotonic() - began > self.timeout_seconds:
            raise OperatorError(message, hint=hint, after_seconds=self.timeout_seconds, **facts)
