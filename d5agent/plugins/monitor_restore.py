"""monitor-restore: waits until restore is verified, then starts clean and monitor-clean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from d5agent.core.services import Service, Status
from d5agent.steps.late import late_operations

if TYPE_CHECKING:
    from d5agent.ports import ObjectStore
    from d5agent.service import Coordinator


@dataclass(slots=True, kw_only=True)
class MonitorRestore:
    """Watches restore to its end."""

    store: ObjectStore
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Wait for the proof; operations that came after it are replayed and verified as well."""
        while True:
            await self._wait_for_restore(coordinator)
            late = await late_operations(self.store, coordinator.state.verified)
            if late == 0:
                break
            coordinator.journal.warning("operations_after_fence", operations=late)
            await coordinator.start(Service.RESTORE)
        await coordinator.start(Service.CLEAN)
        await coordinator.start(Service.MONITOR_CLEAN)

    async def _wait_for_restore(self, coordinator: Coordinator) -> None:
        while coordinator.state.verified is None or coordinator.state.status(Service.RESTORE) is not Status.DONE:
            status = coordinator.state.status(Service.RESTORE)
            if status in {Status.FAILED, Status.STOPPED, None}:
                await coordinator.wait(f"restore, which is {status or 'not started'}: type d5agent start restore")
            else:
                await coordinator.wait("restore to be verified")
