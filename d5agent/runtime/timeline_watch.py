"""Notes beside the services what happens when, for the certificate: a look every quarter of a second.

It is saved in the state directory and mirrored, so that a restart, or a new host, goes on with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from d5agent.core.run.services import ACTIVE, Phase, Service, Status
from d5agent.core.run.timeline import TIMELINE, VERSION, Timeline, activity
from d5agent.errors import AgentError

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon

_LOOK_SECONDS: Final = 0.25
_LOOKS_A_SAVE: Final = 40
_SAVES_A_MIRROR: Final = 6


@dataclass(slots=True, kw_only=True)
class TimelineWatch:
    """Keeps the timeline of a daemon's run."""

    daemon: Daemon
    timeline: Timeline

    async def keep(self) -> None:
        """Look, and save from time to time, for ever."""
        await self._load()
        looks = 0
        while True:
            await self.daemon.clock.sleep(_LOOK_SECONDS)
            looks += 1
            try:
                self.look()
                if looks % _LOOKS_A_SAVE == 0:
                    await self._save(mirrors=looks % (_LOOKS_A_SAVE * _SAVES_A_MIRROR) == 0)
            except Exception as error:  # noqa: BLE001 -- it serves people; the services must go on without it
                structlog.get_logger().error(
                    "timeline_not_kept", error=f"a bug: {type(error).__name__}", exc_info=error
                )
                return

    def look(self) -> None:
        """Note what the services do at this moment."""
        state, at = self.daemon.state, self.daemon.clock.now().timestamp()
        self.timeline.begin(state.run_id)
        active = {service for service, row in state.services.items() if row.status in ACTIVE}
        progress, has_fence = self.daemon.progress, state.fence is not None
        steps = progress.steps
        self.timeline.see(at, [activity(str(s), steps.get(s), has_fence=has_fence) for s in sorted(active)])
        # What began and ended between two looks is seen as well, as a moment.
        ended = {service for service, row in state.services.items() if row.status is Status.DONE} - {Service.RESTORE}
        self.timeline.see(at, sorted({str(service) for service in ended} - {span.what for span in self.timeline.spans}))
        capture, horizon = progress.capture, progress.horizon
        if Service.REPLICATION in active and horizon is not None:
            self.timeline.capture.add(at, horizon.lag_seconds, 0.0 if capture is None else float(capture.operations))
        replay, comparison = progress.restore.replay, progress.restore.comparison
        if Service.RESTORE in active:
            applied = 0.0 if replay is None else float(replay.operations_applied)
            self.timeline.restore.add(at, applied, 0.0 if comparison is None else float(comparison.compared))

    async def _load(self) -> None:
        try:
            value = await self.daemon.states.load(TIMELINE)
            if value is not None and value["version"] == VERSION and value["run_id"] == self.daemon.state.run_id:
                self.timeline.take(value)
        except (AgentError, KeyError, TypeError, ValueError) as error:
            # It serves people, and nothing is built upon it: it begins anew.
            structlog.get_logger().warning("timeline_not_read", reason=str(error))

    async def _save(self, *, mirrors: bool) -> None:
        state = self.daemon.state
        if not self.timeline.run_id or state.is_clearing or state.phase is Phase.IDLE:
            return  # nothing is left to certify, and clean removes it
        try:
            await self.daemon.states.save(TIMELINE, self.timeline.to_json(), mirrors=mirrors)
        except AgentError:
            return  # the services that write to the same disk and store say so, and it is saved again in a moment
