"""Without a fence marker nobody knows where the stream ends: no cutover, no certificate, no clean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.core.run.services import Phase, Service, Status
from tests.fakes.cluster import insert
from tests.fakes.mortal import Life
from tests.fakes.source import LaggingSource
from tests.faults.test_crash_everywhere import check_clean
from tests.faults.world import CAPTURE, CLEAN, CUTOVER, FOLLOW, ORDERS, RESTORE, World

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon

LAG_SECONDS = 20
WITH_AND_WITHOUT_POSITIONS = pytest.mark.parametrize("names_positions", [True, False])


def lagging(world: World, *, may_write: bool, names_positions: bool) -> LaggingSource:
    """Give a world a source whose stream can be behind its writes."""
    world.source = source = LaggingSource(
        cluster=world.cluster,
        clock=world.clock,
        batch_sizes=(3, 1, 5),
        may_write=may_write,
        names_positions=names_positions,
        is_enabled=False,
        enables=True,
    )
    return source


def check_refused(daemon: Daemon, service: Service) -> None:
    """The service names the missing right, and replication goes on."""
    row = daemon.state.services[service]
    assert "the fence marker cannot be written" in row.error
    assert "insert on the database d5agent" in row.hint
    assert daemon.state.status(Service.REPLICATION) is Status.RUNNING


def is_certified(world: World) -> bool:
    return any(key.endswith("certificate.json") for key in world.store.objects)


@WITH_AND_WITHOUT_POSITIONS
async def test_a_cutover_without_a_marker_is_refused(*, names_positions: bool) -> None:
    world = World(is_live=True)
    source = lagging(world, may_write=True, names_positions=names_positions)

    async def cutover_is_refused(world: World, daemon: Daemon) -> bool:
        if daemon.state.status(Service.MONITOR_REPLICATION) is None:
            source.may_write = False  # taken away while restore follows: without it restore does not begin (ADR 37)
            world.cluster.apply(insert(ORDERS, {"_id": "acknowledged, and not in the stream yet"}))
            source.silent_until = world.clock.monotonic() + LAG_SECONDS
            await daemon.start(Service.MONITOR_REPLICATION)
        assert not is_certified(world), "certified although the stream was behind"
        if daemon.state.status(Service.MONITOR_REPLICATION) is not Status.FAILED:
            return False
        check_refused(daemon, Service.MONITOR_REPLICATION)
        assert world.application.told == []
        source.may_write = True
        await daemon.start(Service.MONITOR_REPLICATION)
        return True

    assert await world.live(Life(None), (*FOLLOW, cutover_is_refused, *CUTOVER, *CLEAN))
    await check_clean(world)


@WITH_AND_WITHOUT_POSITIONS
async def test_a_drained_restore_without_a_marker_is_not_certified(*, names_positions: bool) -> None:
    world = World()
    source = lagging(world, may_write=False, names_positions=names_positions)

    async def restore_is_refused(world: World, daemon: Daemon) -> bool:
        if daemon.state.status(Service.RESTORE) is None:
            world.cluster.apply(insert(ORDERS, {"_id": "acknowledged, and not in the stream yet"}))
            source.silent_until = world.clock.monotonic() + LAG_SECONDS
            await daemon.start(Phase.RESTORE)
        assert not is_certified(world), "certified although the stream was behind"
        if daemon.state.status(Service.MONITOR_REPLICATION) is not Status.FAILED:
            return False
        check_refused(daemon, Service.MONITOR_REPLICATION)
        assert daemon.state.status(Service.RESTORE) is Status.PENDING
        source.may_write = True
        await daemon.start(Phase.RESTORE)
        return True

    assert await world.live(Life(None), (*CAPTURE, restore_is_refused, *RESTORE, *CLEAN))
    await check_clean(world)


@WITH_AND_WITHOUT_POSITIONS
async def test_a_clean_without_a_marker_is_refused(*, names_positions: bool) -> None:
    world = World()
    source = lagging(world, may_write=True, names_positions=names_positions)

    async def clean_is_refused(world: World, daemon: Daemon) -> bool:
        if daemon.state.phase is Phase.RESTORE:
            source.may_write = False  # the right was withdrawn after the restore
            await daemon.start(Service.MONITOR_RESTORE)
        assert daemon.state.status(Service.CLEAN) is not Status.DONE, "cleaned without a marker"
        if daemon.state.status(Service.CLEAN) is not Status.FAILED:
            return False
        check_refused(daemon, Service.CLEAN)
        assert await world.captured() == world.foreign_events
        source.may_write = True
        await daemon.start(Service.CLEAN)
        return True

    assert await world.live(Life(None), (*CAPTURE, *RESTORE, clean_is_refused, *CLEAN))
    await check_clean(world)
