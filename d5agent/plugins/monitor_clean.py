"""monitor-clean: waits for clean and backup, then powers the instance off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.phase import Service, Status, finish

if TYPE_CHECKING:
    from d5agent.ports import Clock, Coordinator, PowerSwitch

_AWAITED: Final = (Service.CLEAN, Service.BACKUP)


@dataclass(slots=True, kw_only=True)
class MonitorClean:
    """Ends the failback."""

    power: PowerSwitch
    clock: Clock
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Wait until nothing is left to do, then ask for the power-off."""
        while left := [s for s in _AWAITED if coordinator.state.status(s) is not Status.DONE]:
            words = [f"{service} ({coordinator.state.status(service) or 'not started'})" for service in left]
            await coordinator.wait("to be done: " + ", ".join(words))
        now = self.clock.now().isoformat(timespec="seconds")
        await coordinator.update(lambda state: finish(state, now=now))
        coordinator.journal.info("power_off_requested")
        await self.power.off()
