"""monitor-restore: waits for the proof, has an operator's word on late operations carried out, then starts clean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from d5agent.core.run.late import check_late_words
from d5agent.core.run.services import ACTIVE, Service, Status
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from d5agent.service import Coordinator
    from d5agent.steps.late.report import LateReporter


@dataclass(slots=True, kw_only=True)
class MonitorRestore:
    """Watches restore to its end. It writes nothing to the target; restore does, on an operator's word only."""

    late: LateReporter
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Wait for the proof, then start clean. OperatorError: operations came after it and need a word.

        Once clean has begun to remove the log, it has looked for such operations, and the log cannot be read any more.
        """
        while not (coordinator.state.is_clearing or await self._is_restored(coordinator)):
            await self._restore(coordinator)
        await coordinator.start(Service.CLEAN)
        await coordinator.start(Service.MONITOR_CLEAN)

    async def _is_restored(self, coordinator: Coordinator) -> bool:
        """Whether nothing is left for restore to do, now that there is a proof."""
        await self._wait_for_proof(coordinator)
        check_late_words(coordinator.state)
        if not _has_pending_word(coordinator):
            await self.late.look(coordinator)
        return not _has_pending_word(coordinator) and coordinator.state.status(Service.RESTORE) is Status.DONE

    async def _wait_for_proof(self, coordinator: Coordinator) -> None:
        while coordinator.state.verified is None or _is_at_work(coordinator):
            status = coordinator.state.status(Service.RESTORE)
            if status in {Status.FAILED, Status.STOPPED, None}:
                await coordinator.wait(f"restore, which is {status or 'not started'}: type d5agent start restore")
            else:
                await coordinator.wait("restore to be verified")
        await coordinator.go_on()

    async def _restore(self, coordinator: Coordinator) -> None:
        """Run restore, which is about late operations only once there is a proof."""
        await coordinator.start(Service.RESTORE)
        while _is_at_work(coordinator):
            await coordinator.wait("restore to carry out the word on late operations")
        await coordinator.go_on()
        row = coordinator.state.services[Service.RESTORE]
        if row.status is not Status.DONE:
            raise OperatorError(
                f"restore is {row.status}: {row.error or row.reason}",
                hint=row.hint or "type: d5agent start monitor-restore",
            )


def _has_pending_word(coordinator: Coordinator) -> bool:
    return coordinator.state.late.pending is not None


def _is_at_work(coordinator: Coordinator) -> bool:
    return coordinator.state.status(Service.RESTORE) in {Status.PENDING, *ACTIVE}
