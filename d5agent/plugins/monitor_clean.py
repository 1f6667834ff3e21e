"""monitor-clean: waits for clean and backup, reports, powers the instance off, and tells if that does not happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from d5agent.core.log.naming import reports_folder
from d5agent.core.reports.final_report import decode_report, encode_report, final_report_key, with_power_off
from d5agent.core.run.ending import GOING_DOWN, ask_power_off, obstacles
from d5agent.errors import OperatorError
from d5agent.steps.probes import require_place

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.ports import Clock, ObjectStore, PowerSwitch
    from d5agent.service import Coordinator


@dataclass(slots=True, kw_only=True)
class MonitorClean:
    """Ends the failback. `timeout_seconds`: how long the machine may stay up after it was asked to go down."""

    power: PowerSwitch
    store: ObjectStore
    clock: Clock
    timeout_seconds: float
    url_of: Callable[[str], str] = str
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Wait until nothing is left to do, then ask for the power-off, in this boot only."""
        asked = coordinator.state.power_off
        boot_id = await self.power.boot_id()
        if asked is not None and asked.boot_id != boot_id:
            coordinator.journal.info("power_off_happened", requested_at=asked.at, now="the machine was started again")
            return
        if asked is None:
            await require_place(self.store, reports_folder(coordinator.state.run_id), what="the final report")
            await self._wait_for_the_others(coordinator)
            now = self.clock.now().isoformat(timespec="seconds")
            await self._report(coordinator, now)
            await coordinator.update(lambda state: ask_power_off(state, boot_id=boot_id, now=now))
        coordinator.journal.info("power_off_requested", why="clean and backup are done, nothing runs, nothing failed")
        await self.power.off()
        await self._wait_for_the_end(coordinator)

    async def _wait_for_the_others(self, coordinator: Coordinator) -> None:
        said: tuple[str, ...] = ()
        while left := obstacles(coordinator.state):
            if left != said:
                coordinator.journal.info("power_off_waits", what=", ".join(left))
                said = left
            await coordinator.wait("to be done: " + ", ".join(left))

    async def _report(self, coordinator: Coordinator, now: str) -> None:
        """Add to the final report how it all ended, before the machine that could tell is gone."""
        key = final_report_key(coordinator.state.run_id)
        body = await self.store.get(key)
        report = with_power_off({} if body is None else decode_report(body, key=key), coordinator.state, now=now)
        await self.store.put(key, encode_report(report))
        coordinator.journal.info("final_report_stored", key=self.url_of(key))

    async def _wait_for_the_end(self, coordinator: Coordinator) -> None:
        began = self.clock.monotonic()
        while self.clock.monotonic() - began < self.timeout_seconds:
            await coordinator.wait(GOING_DOWN)
        raise OperatorError(
            "the power-off was requested, and the machine is still up",
            hint="power it off by hand (systemctl poweroff), or stop the instance; to ask once more: d5agent start"
            " monitor-clean",
            after_seconds=self.timeout_seconds,
        )
