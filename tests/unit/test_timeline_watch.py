"""The watch that keeps the timeline: it sees what services do, saves it, and disturbs nobody."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.progress import RestoreProgress
from d5agent.core.run.services import Fence, Phase, PhaseState, Service, ServiceState, Status
from d5agent.core.run.timeline import TIMELINE, Timeline
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.timeline_watch import TimelineWatch
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import a_capture, a_horizon, a_replay
from tests.fakes.store import FakeStateStore, FullDisk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@dataclass(slots=True, kw_only=True)
class Rig:
    """A daemon of which only the state and the facts are used."""

    clock: FakeClock = field(default_factory=lambda: FakeClock(is_manual=True))
    states: FakeStateStore = field(default_factory=FakeStateStore)
    timeline: Timeline = field(default_factory=Timeline)
    daemon: Daemon = field(init=False)

    def __post_init__(self) -> None:
        self.daemon = Daemon(plugins={}, states=self.states, clock=self.clock, drain_seconds=1)
        self.daemon.file.state = PhaseState(phase=Phase.REPLICATION, run_id="run")

    def at_work(self, service: Service) -> None:
        row = ServiceState(status=Status.RUNNING, since=SINCE)
        self.daemon.file.state = self.daemon.state.with_service(service, row)

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        watch = TimelineWatch(daemon=self.daemon, timeline=self.timeline)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch.keep())
            await asyncio.sleep(0)
            yield
            task.cancel()


async def test_what_services_do_and_report_is_seen_and_saved() -> None:
    rig = Rig()
    rig.at_work(Service.REPLICATION)
    rig.daemon.progress.capture, rig.daemon.progress.horizon = a_capture(operations=10), a_horizon(lag_seconds=1.5)
    async with rig.watched():
        await rig.clock.advance(5)
        rig.at_work(Service.RESTORE)
        rig.daemon.progress.steps[Service.RESTORE] = "replaying"
        rig.daemon.progress.restore = RestoreProgress(replay=a_replay(operations_applied=7))
        fence = Fence(sequence=1, cluster_time=ClusterTime(1, 1), at=SINCE)
        rig.daemon.file.state = replace(rig.daemon.state, fence=fence)
        await rig.clock.advance(5)
    assert [span.what for span in rig.timeline.spans] == ["replication", "restore: replay"]
    assert rig.timeline.capture.points[-1][1:] == (1.5, 10.0)
    assert rig.timeline.restore.points[-1][1:] == (7.0, 0.0)
    saved = await rig.states.load(TIMELINE)
    assert saved is not None
    assert saved["run_id"] == "run"


async def test_a_restart_goes_on_and_another_run_begins_anew() -> None:
    rig = Rig()
    rig.at_work(Service.REPLICATION)
    async with rig.watched():
        await rig.clock.advance(11)
    again = Rig(clock=rig.clock, states=rig.states)
    async with again.watched():
        await again.clock.advance(1)
    assert [span.what for span in again.timeline.spans] == ["replication"]
    other = Rig(clock=rig.clock, states=rig.states)
    other.daemon.file.state = PhaseState(phase=Phase.REPLICATION, run_id="other")
    async with other.watched():
        await other.clock.advance(1)
    assert other.timeline.spans == []


@pytest.mark.parametrize("value", [{"version": 2}, {"version": 1, "run_id": "run"}])
async def test_a_saved_timeline_that_cannot_be_read_is_begun_anew(value: dict[str, Any]) -> None:
    rig = Rig()
    await rig.states.save(TIMELINE, value)
    rig.at_work(Service.BACKUP)
    with capture_logs() as lines:
        async with rig.watched():
            await rig.clock.advance(1)
    assert [span.what for span in rig.timeline.spans] == ["backup"]
    assert [line["event"] for line in lines] == (["timeline_not_read"] if "run_id" in value else [])


async def test_a_full_disk_and_an_idle_daemon_stop_nothing() -> None:
    states = FullDisk()
    states.is_full = True
    rig = Rig(states=states)
    rig.daemon.file.state = PhaseState()
    async with rig.watched():
        await rig.clock.advance(11)
        assert states.refused == 0  # there is no run
        rig.daemon.file.state = PhaseState(phase=Phase.RESTORE, run_id="run")
        rig.at_work(Service.BACKUP)
        await rig.clock.advance(21)
    assert states.refused >= 2
    assert [span.what for span in rig.timeline.spans] == ["backup"]


@pytest.mark.parametrize("state", [PhaseState(run_id="run"), PhaseState(phase=Phase.CLEAN, is_clearing=True)])
async def test_what_clean_removes_is_not_saved_again(state: PhaseState) -> None:
    rig = Rig()
    rig.daemon.file.state = replace(state, run_id="run")
    async with rig.watched():
        await rig.clock.advance(30)
    assert rig.states.texts == {}


async def test_a_bug_is_told_and_stops_no_service() -> None:
    rig = Rig()
    rig.at_work(Service.BACKUP)
    rig.daemon.progress.restore = None  # type: ignore[assignment]  # what nobody has thought of
    with capture_logs() as lines:
        async with rig.watched():
            await rig.clock.advance(1)
    assert [line["event"] for line in lines] == ["timeline_not_kept"]


async def test_what_ended_between_two_looks_is_seen_as_a_moment() -> None:
    rig = Rig()
    rig.daemon.file.state = rig.daemon.state.with_service(Service.BACKUP, ServiceState(status=Status.DONE, since=SINCE))
    watch = TimelineWatch(daemon=rig.daemon, timeline=rig.timeline)
    watch.look()
    watch.look()
    assert [(span.what, span.ended - span.began) for span in rig.timeline.spans] == [("backup", 0.0)]
