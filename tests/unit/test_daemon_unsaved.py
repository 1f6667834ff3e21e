"""The daemon when its state cannot be saved, and when a library takes one of its tasks for cancelled."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from d5agent.core.run.phase_codec import PHASE, decode_phase
from d5agent.core.run.services import Phase, Service, Status
from d5agent.errors import TransientError
from d5agent.runtime.daemon import Daemon
from d5agent.steps.parallel import beside, parallel
from tests.fakes.clock import FakeClock
from tests.fakes.stage import until
from tests.fakes.store import FakeStateStore, FullDisk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.service import Coordinator


class Uploader:
    """A service whose first run fails as a parallel upload does; it notes what its task is taken for."""

    drains = True

    def __init__(self) -> None:
        self.cancelling: list[int] = []

    async def run(self, coordinator: Coordinator) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.cancelling.append(task.cancelling())
        if len(self.cancelling) == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(_fail(1))
        await coordinator.stopping.wait()


class Saver:
    """A service that saves something until it cannot."""

    drains = True

    def __init__(self, states: FullDisk, clock: FakeClock) -> None:
        self._states = states
        self._clock = clock

    async def run(self, coordinator: Coordinator) -> None:
        while not coordinator.stopping.is_set():
            await self._states.save("position", {"version": 1})
            await self._clock.sleep(1)


async def _fail(number: int) -> None:
    await asyncio.sleep(0)
    raise TransientError("the line is cut", number=number)


@asynccontextmanager
async def serving(service: Uploader | Saver, *, states: FakeStateStore, clock: FakeClock) -> AsyncGenerator[Daemon]:
    """A daemon that runs one service while the block does."""
    daemon = Daemon(plugins={Service.REPLICATION: lambda: service}, states=states, clock=clock, drain_seconds=5)
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.serve(group))
        await daemon.start(Phase.REPLICATION)
        yield daemon
        daemon.end()


async def test_a_row_that_cannot_be_saved_is_shown_and_saved_once_that_can_be_done() -> None:
    states, clock = FullDisk(), FakeClock()
    with capture_logs() as logs:
        async with serving(Saver(states, clock), states=states, clock=clock) as daemon:
            await until(clock, lambda: daemon.state.status(Service.REPLICATION) is Status.RUNNING)
            states.is_full = True
            await until(clock, lambda: daemon.state.status(Service.REPLICATION) is Status.FAILED)
            row = daemon.state.services[Service.REPLICATION]
            assert "a state file cannot be written" in row.error
            assert row.hint == "free space on the disk"
            await clock.sleep(30)  # still full when the daemon tries again to save the row
            states.is_full = False
            await until(clock, lambda: _saved_status(states) is Status.FAILED)
            await daemon.start(Service.REPLICATION)
            await until(clock, lambda: daemon.state.status(Service.REPLICATION) is Status.RUNNING)
    assert {"service_failed", "state_not_saved"} <= {log["event"] for log in logs}


async def test_a_failed_group_of_tasks_leaves_no_cancellation_on_the_service() -> None:
    service, clock = Uploader(), FakeClock()
    async with serving(service, states=FakeStateStore(), clock=clock) as daemon:
        await until(clock, lambda: len(service.cancelling) == 2)
        assert daemon.state.status(Service.REPLICATION) is Status.RUNNING
    assert service.cancelling == [0, 0]


async def test_a_failure_at_once_or_beside_leaves_no_cancellation() -> None:
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(TransientError):
        await parallel(_fail, [1, 2], limit=2)
    assert task.cancelling() == 0
    with pytest.raises(TransientError):
        async with beside(_fail(1), _fail(2)):
            await asyncio.sleep(60)
    assert task.cancelling() == 0


def _saved_status(states: FakeStateStore) -> Status | None:
    saved = [value for name, value in states.history if name == PHASE]
    return decode_phase(saved[-1]).status(Service.REPLICATION)
