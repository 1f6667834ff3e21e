"""A run that is given up by force: what is deleted is of the run that was named, by its own commits."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from d5agent.core.log.naming import SEGMENTS
from d5agent.core.run.phase_codec import PHASE
from d5agent.core.run.services import Phase, Service, Status
from d5agent.errors import RefusedError
from tests.fakes.mortal import Life
from tests.fakes.stage import until
from tests.fakes.store import FakeStateStore
from tests.faults.world import CAPTURE, World, replication_is_ready

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.runtime.daemon import Daemon


@asynccontextmanager
async def serving(world: World) -> AsyncGenerator[Daemon]:
    """An agent at work while the block runs."""
    daemon = world.daemon(Life(None))
    await daemon.load()
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.serve(group))
        await asyncio.sleep(0)
        yield daemon
        daemon.end()


def log_of(world: World) -> dict[str, bytes]:
    return {key: body for key, body in world.store.objects.items() if key.startswith(SEGMENTS)}


async def two_runs() -> tuple[World, str]:
    """A world whose log belongs to one run, and whose state to another; return the log's run, too."""
    world = World()
    assert await world.live(Life(None), CAPTURE)
    ours = await world.states.load(PHASE)
    assert ours is not None
    world.states = FakeStateStore()
    world.store.may_delete = lambda: True
    return world, str(ours["run_id"])


async def test_force_deletes_the_log_of_the_named_run_only() -> None:
    world, of_log = await two_runs()
    log = log_of(world)
    async with serving(world) as daemon:
        await daemon.start(Phase.REPLICATION)
        await until(world.clock, lambda: daemon.state.status(Service.REPLICATION) is Status.FAILED)
        row = daemon.state.services[Service.REPLICATION]
        assert "the log of another run" in row.error
        assert f"--force {of_log}" in row.hint
        of_state = daemon.state.run_id
        with pytest.raises(RefusedError, match="the log of another run"):
            await daemon.start(Service.CLEAN, forced_run=of_state)
        assert log_of(world) == log
        assert daemon.state.run_id == of_state

        await daemon.start(Service.CLEAN, forced_run=of_log)
        await until(world.clock, lambda: daemon.state.phase is Phase.IDLE)
        assert log_of(world) == {}
        assert f"reports/{of_log}/final.json" in world.store.objects
        assert f"reports/{of_state}/final.json" not in world.store.objects
    assert await world.live(Life(None), (replication_is_ready,))
