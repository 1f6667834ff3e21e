"""clean: closes the change stream, deletes the stored operations and the position; only after the proof."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from d5agent.core.naming import SEGMENTS
from d5agent.core.phase import Service
from d5agent.errors import OperatorError
from d5agent.steps.late import late_operations

if TYPE_CHECKING:
    from d5agent.ports import ChangeSource, Coordinator, ObjectStore, StateStore


@dataclass(slots=True, kw_only=True)
class Clean:
    """Removes what a finished failback leaves. `states`: names of the state files that go. Dumps and reports stay."""

    source: ChangeSource
    store: ObjectStore
    states: StateStore
    state_names: tuple[str, ...]
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Stop replication, check the proof against the log's end, then remove; each step may be done again."""
        if not coordinator.state.is_clearing:
            await self._stop_replication(coordinator)
            await coordinator.update(lambda state: replace(state, is_clearing=True))
        await self.source.close_stream()
        coordinator.journal.info("change_stream_closed")
        deleted = 0
        # From the beginning each time: a listing that goes on while its objects vanish may pass some over.
        while keys := await self._some_keys():
            await self.store.delete(keys)
            deleted += len(keys)
            coordinator.report(deleted=deleted)
        for name in self.state_names:
            await self.states.delete(name)
        coordinator.journal.info("log_deleted", objects=deleted)

    async def _some_keys(self) -> list[str]:
        async for page in self.store.list_objects(SEGMENTS):
            return [found.key for found in page]
        return []

    async def _stop_replication(self, coordinator: Coordinator) -> None:
        # Drained first: what it holds is then in the log, and counts.
        await coordinator.stop(Service.REPLICATION)
        verified = coordinator.state.verified
        late = await late_operations(self.store, verified)
        if verified is None or late:
            await coordinator.start(Service.REPLICATION)
            raise OperatorError(
                "the log holds operations that restore has not verified",
                hint="nothing was deleted, and replication goes on; type: d5agent start restore",
                operations=late,
            )
