"""The stream is switched off and on again, the agent dies, and the next one restores: nothing is certified."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.core.run.services import Phase, Service, Status
from tests.fakes.cluster import insert
from tests.fakes.mortal import Life
from tests.faults.world import CAPTURE, ORDERS, World

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon


@pytest.mark.parametrize("names_positions", [True, False])
async def test_a_life_after_a_gap_ends_without_a_certificate(*, names_positions: bool) -> None:
    world = World()
    world.source.names_positions = names_positions
    left: list[World] = []

    async def gap_is_passed(world: World, _: Daemon) -> bool:
        if not left:
            world.source.switch(is_on=False)
            world.cluster.apply(insert(ORDERS, {"_id": "untold"}))
            world.source.switch(is_on=True)
            world.cluster.apply(insert(ORDERS, {"_id": "told"}))
            left.append(world)
        if await world.captured() == world.foreign_events - 1:
            left.append(world.copied())  # what a death at this moment leaves
        return len(left) > 1

    async def restore_is_refused(_: World, daemon: Daemon) -> bool:
        assert daemon.state.verified is None, "certified although an operation is missing"
        if daemon.state.status(Service.REPLICATION) is not Status.FAILED:
            return False
        if daemon.state.phase is Phase.REPLICATION:
            await daemon.start(Phase.RESTORE)
        row = daemon.state.services[Service.REPLICATION]
        assert "the position is lost" in row.error or "the stream has a gap" in row.error
        return daemon.state.status(Service.MONITOR_REPLICATION) is Status.FAILED

    assert await world.live(Life(None), (*CAPTURE, gap_is_passed))
    world = left[-1]
    assert await world.live(Life(None), (*CAPTURE, gap_is_passed, restore_is_refused))
    assert not [key for key in world.store.objects if key.endswith("certificate.json")]
