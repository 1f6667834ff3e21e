"""A drain that fails loses nothing: clean deletes only what a whole log covers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from d5agent.core.log.naming import SEGMENTS
from d5agent.core.log.operation import Namespace
from d5agent.core.run.services import ACTIVE, Phase, Service, Status
from d5agent.core.run.words import Words
from d5agent.errors import OperatorError, TransientError
from d5agent.runtime.daemon import Daemon
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import insert
from tests.fakes.mortal import Life
from tests.fakes.progress import a_capture
from tests.fakes.source import FakeChangeSource, LaggingSource
from tests.fakes.store import FakeStateStore
from tests.faults.world import CAPTURE, RESTORE, Act, GuardedStore, World, all_is_clean

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from d5agent.core.log.operation import Position
    from d5agent.errors import AgentError
    from d5agent.ports import EventBatch
    from d5agent.service import Coordinator

WITH_AND_WITHOUT_POSITIONS = pytest.mark.parametrize("names_positions", [True, False])

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


async def nothing_is_deleted(world: World, daemon: Daemon) -> bool:
    """See that clean has refused and kept everything; then do what its hint says, and accept what is reported."""
    assert "restore has not verified" in daemon.state.services[Service.CLEAN].error
    assert "d5agent start monitor-restore" in daemon.state.services[Service.CLEAN].hint
    assert await world.captured() == world.foreign_events
    assert world.source.is_enabled
    assert daemon.state.status(Service.REPLICATION) is Status.RUNNING
    if daemon.state.status(Service.MONITOR_RESTORE) is Status.DONE:
        await daemon.start(Service.MONITOR_RESTORE)
    if daemon.state.status(Service.MONITOR_RESTORE) is not Status.FAILED:
        return False
    await daemon.start(Service.MONITOR_RESTORE, words=Words(accept_late=daemon.state.run_id))
    return True


async def a_late_write_then_clean(world: World, daemon: Daemon) -> bool:
    """Write something that the store refuses, start the clean-up, and wait until it has given up."""
    if daemon.state.phase is Phase.RESTORE:
        await daemon.start(Service.MONITOR_RESTORE)
        world.cluster.apply(insert(LATE, {"_id": 1}))
    assert daemon.state.phase is not Phase.IDLE, "it was cleaned away"
    return daemon.state.status(Service.CLEAN) is Status.FAILED


async def replication_is_started_again(world: World, daemon: Daemon) -> bool:
    """See that clean names the reason and has kept everything; then mend it."""
    assert "the fence cannot be drawn: replication is failed" in daemon.state.services[Service.CLEAN].error
    assert world.source.is_enabled
    await daemon.start(Service.REPLICATION)
    return True


async def clean_is_started_again(world: World, daemon: Daemon) -> bool:
    """Start clean alone; it must refuse, since the late write is in the log now."""
    if await world.captured() < world.foreign_events:
        return False
    await daemon.start(Service.CLEAN)
    return True


async def clean_has_refused(_: World, daemon: Daemon) -> bool:
    """Wait for it."""
    return "restore has not verified" in daemon.state.services[Service.CLEAN].error


@pytest.mark.parametrize("is_refused", [False, True])
async def test_what_the_store_refuses_while_clean_begins_is_not_cleaned_away(*, is_refused: bool) -> None:
    error = OperatorError("refused", hint="") if is_refused else TransientError("away", hint="")
    store = FailingStore(error, times=1)
    world = World(store=store)
    mend = (replication_is_started_again, clean_is_started_again, clean_has_refused) if is_refused else ()
    script = (*CAPTURE, *RESTORE, a_late_write_then_clean, *mend, nothing_is_deleted, all_is_clean)
    assert await world.live(Life(None), script)
    assert store.times == 0, "the store refused nothing: nothing is shown"
    assert LATE in world.contents()
    assert world.target.database.contents() == world.contents()


@dataclass(slots=True, kw_only=True)
class Holding:
    """A service that cannot store what it holds when it is to stop, for so many times; None: it leaves some unread."""

    failures: list[AgentError | None]
    drains: bool = True

    async def run(self, coordinator: Coordinator) -> None:
        while not coordinator.stopping.is_set():
            await coordinator.wait("to be stopped")
        coordinator.progress.capture = a_capture(is_drained=not self.failures)
        error = self.failures.pop() if self.failures else None
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [TransientError("away", hint=""), OperatorError("refused", hint=""), None])
async def test_a_drain_that_fails_does_not_count_and_the_service_is_started_again(error: AgentError | None) -> None:
    clock, failures = FakeClock(), [error]
    daemon = Daemon(
        plugins={Service.REPLICATION: lambda: Holding(failures=failures)},
        states=FakeStateStore(),
        clock=clock,
        drain_seconds=5,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.serve(group))
        try:
            await asyncio.sleep(0)
            await daemon.start(Phase.REPLICATION)
            await clock.sleep(1)
            with pytest.raises(TransientError, match="replication has not drained"):
                await daemon.stop_as_done(Service.REPLICATION)
            await clock.sleep(1)
            assert daemon.state.status(Service.REPLICATION) in ACTIVE
            await daemon.stop_as_done(Service.REPLICATION)
            assert daemon.state.status(Service.REPLICATION) is Status.DONE
        finally:
            daemon.end()


@WITH_AND_WITHOUT_POSITIONS
@pytest.mark.parametrize("stops_before", [False, True])
async def test_what_the_stream_has_not_sent_yet_is_not_cleaned_away(
    *, stops_before: bool, names_positions: bool
) -> None:
    world = World()
    source = LaggingSource(cluster=world.cluster, clock=world.clock, names_positions=names_positions)
    world.source = source
    written: list[bool] = []

    async def a_late_write_that_nobody_has_seen(world: World, daemon: Daemon) -> bool:
        if not written:
            written.append(True)
            if stops_before:
                await daemon.stop(Service.REPLICATION)
            source.silent_until = world.clock.monotonic() + 60
            world.cluster.apply(insert(LATE, {"_id": 1}))
            await daemon.start(Service.MONITOR_RESTORE)
        assert daemon.state.phase is not Phase.IDLE, "it was cleaned away"
        return daemon.state.status(Service.CLEAN) is Status.FAILED

    script = (*CAPTURE, *RESTORE, a_late_write_that_nobody_has_seen, nothing_is_deleted, all_is_clean)
    assert await world.live(Life(None), script)
    assert LATE in world.contents()
    assert world.target.database.contents() == world.contents()


class MarkerStore(GuardedStore):
    """Calls `on_marker` once, right after a fence marker is stored and before the commit that names it."""

    def __init__(self) -> None:
        super().__init__()
        self.on_marker: Callable[[], None] | None = None

    @override
    async def put_once(self, key: str, body: bytes) -> bool:
        is_stored = await super().put_once(key, body)
        if self.on_marker is not None and key.startswith(f"{SEGMENTS}d5agent/marks/") and b"fence-" in body:
            act, self.on_marker = self.on_marker, None
            act()
        return is_stored


async def clean_behind(store: MarkerStore, on_marker: Callable[[], None], world: World, daemon: Daemon) -> bool:
    """Start the clean-up; once its fence is drawn, something comes behind it. Wait until clean has given up."""
    if daemon.state.phase is Phase.RESTORE:
        store.on_marker = on_marker
        await daemon.start(Service.MONITOR_RESTORE)
    assert daemon.state.phase is not Phase.IDLE, "it was cleaned away"
    assert not any(key.startswith("reports/") and key.endswith("final.json") for key in world.store.objects)
    return daemon.state.status(Service.CLEAN) is Status.FAILED


class SlowSource(FakeChangeSource):
    """Sends one event a batch and takes its time, so that a transaction is read in many batches."""

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        async with aclosing(super()._batches(after)) as batches:
            async for batch in batches:
                yield batch
                await self.clock.sleep(0.1 if batch.events else 0)


@WITH_AND_WITHOUT_POSITIONS
async def test_an_open_transaction_is_not_cleaned_away(*, names_positions: bool) -> None:
    store = MarkerStore()
    world = World(store=store)
    world.source = SlowSource(
        cluster=world.cluster, clock=world.clock, batch_sizes=(1,), names_positions=names_positions
    )
    documents = [insert(LATE, {"_id": number}) for number in range(12)]
    clean = partial(clean_behind, store, lambda: world.cluster.apply(*documents))
    script: tuple[Act, ...] = (*CAPTURE, *RESTORE, clean, nothing_is_deleted, all_is_clean)
    assert await world.live(Life(None), script)
    assert len(world.target.database.contents()[LATE]) == len(documents)
    assert world.target.database.contents() == world.contents()


@WITH_AND_WITHOUT_POSITIONS
async def test_a_write_behind_the_last_commit_is_not_cleaned_away(*, names_positions: bool) -> None:
    store = MarkerStore()
    world = World(store=store)
    source = world.source = LaggingSource(cluster=world.cluster, clock=world.clock, names_positions=names_positions)

    def write_unseen() -> None:
        source.silent_until = world.clock.monotonic() + 60
        world.cluster.apply(insert(LATE, {"_id": 1}))

    clean = partial(clean_behind, store, write_unseen)
    script: tuple[Act, ...] = (*CAPTURE, *RESTORE, clean, nothing_is_deleted, all_is_clean)
    assert await world.live(Life(None), script)
    assert LATE in world.target.database.contents()
    assert world.target.database.contents() == world.contents()
