"""Watches the retention horizon while a position is worth something, whether or not replication is able to move it.

It stands beside the services: when capture hangs, fails or is stopped, its position goes on ageing, and just then
somebody must be told.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.adapters.retention import PARAMETER
from d5agent.core.run.horizon import MOST_RETENTION_SECONDS, Crossing, Horizon, HorizonTracker, Level, Retention
from d5agent.core.run.progress import HorizonProgress
from d5agent.core.run.services import Service, Status
from d5agent.core.run.status import horizon_to_json
from d5agent.errors import AgentError
from d5agent.runtime.events import ServiceJournal
from d5agent.steps.capture.capture import TOKEN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.core.log.operation import ClusterTime
    from d5agent.core.run.progress import CaptureProgress
    from d5agent.runtime.daemon import Daemon

_LOOK_SECONDS: Final = 1.0
_CLUSTER_SECONDS: Final = 30.0
_RETENTION_SECONDS: Final = 300.0  # it can be changed at any time
_PAUSE_AFTER_A_BUG_SECONDS: Final = 60.0
_EVENTS: Final = {
    Level.FINE: "position_is_safe_again",
    Level.HALF: "position_is_at_half",
    Level.QUARTER: "position_is_at_quarter",
    Level.LOST: "position_has_expired",
}
_BUY_TIME: Final = (
    f"raise {PARAMETER} in the cluster's parameter group now (up to {MOST_RETENTION_SECONDS}, no restart); "
    "then see in d5agent status what holds replication up"
)
_ENLARGE: Final = "enlarge the oplog now (replSetResizeOplog); then see in d5agent status what holds replication up"
_EXPIRED: Final = (
    "start replication if it does not run: it says whether it can go on; else docs/runbook, 'the position is lost'"
)


@dataclass(slots=True, kw_only=True)
class HorizonWatch:
    """Reads retention and cluster time, follows what replication reports, and reports the horizon beside it."""

    daemon: Daemon
    read_retention: Callable[[], Awaitable[Retention]]
    read_cluster_time: Callable[[], Awaitable[ClusterTime]]
    is_documentdb: bool
    tracker: HorizonTracker = field(default_factory=HorizonTracker)
    _reason_told: str = ""

    def __post_init__(self) -> None:
        """Let the daemon ask."""
        self.daemon.horizon = self.horizon

    def horizon(self) -> Horizon | None:
        """Return how things stand now; None: not known."""
        return self.tracker.at(self.daemon.clock.monotonic())

    async def keep(self) -> None:
        """Watch for ever. A bug in here is told, and stops no capture."""
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._repeat(self._ask_retention, _RETENTION_SECONDS), name="retention")
                    group.create_task(self._repeat(self._ask_cluster, _CLUSTER_SECONDS), name="cluster-time")
                    group.create_task(self._look_for_ever(), name="horizon-look")
            except Exception as error:  # noqa: BLE001 -- the top of a task
                self._journal().error("horizon_not_watched", error=f"a bug: {type(error).__name__}", exc_info=error)
            await self.daemon.clock.sleep(_PAUSE_AFTER_A_BUG_SECONDS)

    async def _repeat(self, ask: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Ask again and again, while it is of use. Each question has a task of its own: none waits for another's."""
        while True:
            is_of_use = self._is_of_use()
            if is_of_use:
                await ask()
            await self.daemon.clock.sleep(seconds if is_of_use else _LOOK_SECONDS)

    async def _look_for_ever(self) -> None:
        while True:
            self.look()
            await self.daemon.clock.sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Follow the position, report the horizon, and tell of a level that is reached."""
        progress, now = self.daemon.progress, self.daemon.clock.monotonic()
        if not self._is_of_use():
            self.tracker.forget()
            progress.horizon = None
            return
        if progress.capture is not None:
            self._follow(progress.capture, now)
        horizon = self.tracker.at(now)
        if horizon is None:
            return
        progress.horizon = self._progress_of(horizon)
        crossing = self.tracker.crossing(horizon)
        if crossing is not None:
            self._tell(crossing, horizon)

    def _is_of_use(self) -> bool:
        """Whether something is still to come after the position: not once clean has ended replication."""
        return self.daemon.state.status(Service.REPLICATION) not in {None, Status.DONE}

    def _follow(self, capture: CaptureProgress, now: float) -> None:
        caught_up_at = capture.seen_at if capture.is_caught_up else None
        self.tracker.observe_position(now=now, seconds=capture.last_cluster_time.seconds, caught_up_at=caught_up_at)

    def _progress_of(self, horizon: Horizon) -> HorizonProgress:
        return HorizonProgress(
            lag_seconds=round(horizon.lag_seconds, 1),
            safe_seconds=_rounded(horizon.safe_seconds),
            retention_seconds=horizon.retention_seconds,
            retention_basis=self.tracker.retention.basis,
            catch_up_rate=_rounded(horizon.catch_up_rate, 2),
            caught_up_in_seconds=_rounded(horizon.caught_up_in_seconds),
        )

    def _tell(self, crossing: Crossing, horizon: Horizon) -> None:
        journal, event = self._journal(), _EVENTS[crossing.level]
        facts = horizon_to_json(self._progress_of(horizon))
        hint = _EXPIRED if crossing.level is Level.LOST else _BUY_TIME if self.is_documentdb else _ENLARGE
        if not crossing.is_worse:
            journal.info(_EVENTS[Level.FINE], **facts)
        elif crossing.level is Level.HALF:
            journal.warning(event, **facts, hint=hint)
        else:
            journal.error(event, **facts, hint=hint)

    async def _ask_retention(self) -> None:
        before, found = self.tracker.retention, await self.read_retention()
        self.tracker.retention = found
        if (found.seconds, found.basis) != (before.seconds, before.basis) and found.seconds is not None:
            self._journal().info("retention_known", seconds=found.seconds, basis=str(found.basis))
        if found.reason and found.reason != self._reason_told:
            self._reason_told = found.reason
            self._journal().warning(
                "retention_not_read", reason=found.reason, hint=found.hint, counts_as_seconds=found.seconds
            )

    async def _ask_cluster(self) -> None:
        try:
            time = await self.read_cluster_time()
        except AgentError:
            return  # services say so themselves; meanwhile its time is carried on by our own clock
        self.tracker.observe_cluster(now=self.daemon.clock.monotonic(), seconds=time.seconds)
        if not self.tracker.has_position:
            await self._take_up_position()

    async def _take_up_position(self) -> None:
        """Take the position from before a restart of the daemon: replication may not come as far as reporting it."""
        try:
            value = await self.daemon.states.load(TOKEN)
        except AgentError:
            return  # the same
        if value is not None and not self.tracker.has_position:
            now, seconds = self.daemon.clock.monotonic(), int(value["cluster_time"][0])
            self.tracker.observe_position(now=now, seconds=seconds)

    def _journal(self) -> ServiceJournal:
        return ServiceJournal(Service.REPLICATION, self.daemon.followers, run_id=self.daemon.state.run_id)


def _rounded(value: float | None, digits: int = 0) -> float | None:
    return None if value is None else round(value, digits)
