"""clean: closes the change stream, deletes the stored operations and the position; only after the proof."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from d5agent.core.naming import SEGMENTS
from d5agent.core.phase import ACTIVE, Service
from d5agent.errors import OperatorError
from d5agent.steps.fence import draw_fence
from d5agent.steps.late import late_operations
from d5agent.steps.log_reader import LogReader

if TYPE_CHECKING:
    from d5agent.ports import ChangeSource, Clock, Coordinator, ObjectStore, StateStore


@dataclass(slots=True, kw_only=True)
class Clean:
    """Removes what a finished failback leaves; dumps and reports stay. `state_names`: the state files that go.

    `timeout_seconds`: how long it waits for the fence.
    """

    source: ChangeSource
    store: ObjectStore
    states: StateStore
    state_names: tuple[str, ...]
    clock: Clock
    timeout_seconds: float
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """See that the log holds all and the proof covers it, then remove; each step may be done again."""
        if not coordinator.state.is_clearing:
            if coordinator.state.verified is None:
                raise _not_verified("all of them")
            await self._read_to_the_end(coordinator)
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

    async def _read_to_the_end(self, coordinator: Coordinator) -> None:
        """Draw a fence: replication may have stood still, and what it has not read is in no log."""
        if coordinator.state.status(Service.REPLICATION) not in ACTIVE:
            await coordinator.start(Service.REPLICATION)
        await draw_fence(
            coordinator,
            source=self.source,
            reader=LogReader(store=self.store),
            clock=self.clock,
            timeout_seconds=self.timeout_seconds,
        )

    async def _stop_replication(self, coordinator: Coordinator) -> None:
        # Drained first: what it holds is then in the log, and counts.
        await coordinator.stop(Service.REPLICATION)
        late = await late_operations(self.store, coordinator.state.verified)
        if late:
            await coordinator.start(Service.REPLICATION)
            raise _not_verified(late)


def _not_verified(operations: object) -> OperatorError:
    return OperatorError(
        "the log holds operations that restore has not verified",
        hint="nothing was deleted, and replication goes on; type: d5agent start restore",
        operations=operations,
    )
