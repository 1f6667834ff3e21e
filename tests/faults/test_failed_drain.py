"""A drain that fails loses nothing: clean deletes only what a whole log covers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from d5agent.core.naming import SEGMENTS
from d5agent.core.operation import Namespace
from d5agent.core.phase import Phase, Service, Status
from d5agent.errors import OperatorError, TransientError
from tests.fakes.cluster import insert
from tests.fakes.mortal import Life
from tests.faults.world import CAPTURE, RESTORE, GuardedStore, World, all_is_clean

if TYPE_CHECKING:
    from d5agent.errors import AgentError
    from d5agent.runtime.daemon import Daemon

LATE = Namespace("shop", "late")


class FailingStore(GuardedStore):
    """Refuses segments of one collection for so many times, as a bucket that is away does."""

    def __init__(self, error: AgentError, times: int) -> None:
        super().__init__()
        self._error = error
        self.times = times

    @override
    async def put_once(self, key: str, body: bytes) -> bool:
        if key.startswith(f"{SEGMENTS}shop/late/") and self.times > 0:
            self.times -= 1
            raise self._error
        return await super().put_once(key, body)


@pytest.mark.parametrize("error", [TransientError("away", hint=""), OperatorError("refused", hint="")])
async def test_what_is_in_hand_when_the_drain_fails_is_not_cleaned_away(error: AgentError) -> None:
    world = World(store=FailingStore(error, times=1))

    async def a_late_write_then_clean(world: World, daemon: Daemon) -> bool:
        if daemon.state.phase is Phase.RESTORE:
            await daemon.start(Service.MONITOR_RESTORE)
            world.cluster.apply(insert(LATE, {"_id": 1}))
        assert daemon.state.phase is not Phase.IDLE, "it was cleaned away"
        return daemon.state.status(Service.CLEAN) is Status.FAILED

    async def nothing_is_deleted(world: World, daemon: Daemon) -> bool:
        assert "restore has not verified" in daemon.state.services[Service.CLEAN].error
        assert "d5agent start restore" in daemon.state.services[Service.CLEAN].hint
        assert await world.captured() == world.foreign_events
        assert world.source.is_enabled
        assert daemon.state.status(Service.REPLICATION) is Status.RUNNING
        await daemon.start(Phase.RESTORE)
        await daemon.start(Service.MONITOR_RESTORE)
        return True

    script = (*CAPTURE, *RESTORE, a_late_write_then_clean, nothing_is_deleted, all_is_clean)
    assert await world.live(Life(None), script)
    assert isinstance(world.store, FailingStore)
    assert world.store.times == 0, "the drain did not fail: nothing is shown"
    assert LATE in world.contents()
    assert world.target.database.contents() == world.contents()
