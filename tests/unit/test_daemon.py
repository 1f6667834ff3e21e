"""The daemon: what it tries again and what not, what it carries on with, how it ends."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.horizon import Horizon
from d5agent.core.run.phase_codec import PHASE, decode_phase, encode_phase
from d5agent.core.run.services import Fence, Phase, PhaseState, Service, ServiceState, Status, Verified
from d5agent.core.run.words import Words
from d5agent.errors import (
    CredentialsError,
    LogHeldError,
    OperatorError,
    RefusedError,
    TransientError,
    UnclassifiedError,
)
from d5agent.runtime.daemon import Daemon
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator import SINCE
from tests.fakes.machine import FakeApplication
from tests.fakes.progress import a_capture
from tests.fakes.stage import until
from tests.fakes.store import FakeStateStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from typing import Any

    from d5agent.service import Coordinator

READY = PhaseState(phase=Phase.REPLICATION, run_id="run", since=SINCE, ready_at=SINCE)


class MirrorDown(FakeStateStore):
    """The disk takes each state; the mirror does not answer while it is down."""

    def __init__(self) -> None:
        super().__init__()
        self.is_down = False
        self.mirror: dict[str, str] = {}

    @override
    async def save(self, name: str, value: Mapping[str, Any], *, mirrors: bool = True) -> None:
        await super().save(name, value, mirrors=mirrors)
        if self.is_down:
            raise TransientError("the store does not answer")
        self.mirror[name] = self.texts[name]


async def _say_nothing() -> None:
    """Nothing is left to do."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """A service that ends as it is told: each run raises the next error, or works until it is to stop.

    `work`: what it does while it runs. `ends`: whether a run without an error ends by itself.
    """

    errors: list[BaseException] = field(default_factory=list)
    ends: bool = False
    drains: bool = True
    is_deaf: bool = False
    fails_now: bool = False
    runs: int = 0
    drained: int = 0
    cancelled: int = 0
    at: list[float] = field(default_factory=list)
    surroundings: list[Coordinator] = field(default_factory=list)
    last_words: Callable[[], Awaitable[None]] = _say_nothing
    clock: FakeClock

    async def run(self, coordinator: Coordinator) -> None:
        self.runs += 1
        self.at.append(self.clock.monotonic())
        self.surroundings.append(coordinator)
        if self.errors:
            raise self.errors.pop(0)
        if self.ends:
            return
        try:
            while self.is_deaf or not coordinator.stopping.is_set():
                coordinator.begin_step(f"turn {self.runs}")
                if self.fails_now:
                    self.fails_now = False
                    raise TransientError("the line is cut")
                await self.clock.sleep(0.1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await self.last_words()
        self.drained += 1


@dataclass(slots=True, kw_only=True)
class House:
    """A daemon and its workers."""

    clock: FakeClock = field(default_factory=FakeClock)
    states: FakeStateStore = field(default_factory=FakeStateStore)
    drain_seconds: float = 5
    application: FakeApplication | None = None
    workers: dict[Service, Worker] = field(init=False)
    daemon: Daemon = field(init=False)

    def __post_init__(self) -> None:
        self.workers = {service: Worker(clock=self.clock) for service in Service}
        self.daemon = self.new_daemon()

    def new_daemon(self) -> Daemon:
        def factory(service: Service) -> Callable[[], Worker]:
            return lambda: self.workers[service]

        return Daemon(
            plugins={service: factory(service) for service in Service},
            states=self.states,
            clock=self.clock,
            drain_seconds=self.drain_seconds,
            is_live_by_default=self.application is not None,
            accept_writes=None if self.application is None else self.application.accept_writes,
        )

    @asynccontextmanager
    async def up(self) -> AsyncGenerator[Daemon]:
        """A daemon that serves while the block runs, and is ended, drained, after it."""
        self.daemon = self.new_daemon()
        await self.daemon.load()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.daemon.serve(group))
            await asyncio.sleep(0)
            yield self.daemon
            self.daemon.end()

    async def remember(self, state: PhaseState) -> None:
        await self.states.save(PHASE, encode_phase(state))

    def on_disk(self) -> PhaseState:
        return decode_phase(self.states.history[-1][1])

    async def until_status(self, service: Service, status: Status) -> ServiceState:
        await until(self.clock, lambda: self.daemon.state.status(service) is status)
        return self.daemon.state.services[service]


def gaps(times: Sequence[float]) -> list[int]:
    return [round(after - before) for before, after in pairwise(times)]


async def test_what_may_pass_is_tried_again_with_longer_and_longer_pauses() -> None:
    house = House()
    worker = house.workers[Service.REPLICATION]
    worker.errors = [TransientError("the line is cut", hint="wait") for _ in range(8)]
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        row = await house.until_status(Service.REPLICATION, Status.WAITING)
        assert (row.reason, row.error, row.hint) == ("trying again in 2 s", "the line is cut", "wait")
        await until(house.clock, lambda: worker.runs == 9)
        row = await house.until_status(Service.REPLICATION, Status.RUNNING)
        assert (row.reason, row.error) == ("", "")
    assert gaps(worker.at) == [2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_service_that_ran_well_for_long_begins_with_a_short_pause_again() -> None:
    house = House()
    worker = house.workers[Service.REPLICATION]
    worker.errors = [TransientError("the line is cut") for _ in range(6)]
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        await until(house.clock, lambda: worker.runs == 7)
        await house.clock.sleep(100)
        worker.fails_now = True
        await until(house.clock, lambda: worker.runs == 8)
    assert gaps(worker.at)[5] == 60
    assert gaps(worker.at)[6] in range(102, 105)


async def test_a_bug_is_logged_with_its_traceback_and_tried_again() -> None:
    house = House()
    worker = house.workers[Service.REPLICATION]
    worker.errors = [ExceptionGroup("tasks", [ZeroDivisionError("a secret")])]
    with capture_logs() as logs:
        async with house.up() as daemon:
            await daemon.start(Phase.REPLICATION)
            row = await house.until_status(Service.REPLICATION, Status.WAITING)
            assert row.error == "a bug: ZeroDivisionError"
            await until(house.clock, lambda: worker.runs == 2)
    (failed,) = [log for log in logs if log["event"] == "service_failed"]
    assert isinstance(failed["exc_info"], ZeroDivisionError)


async def test_what_needs_a_person_fails_the_service_with_its_error_and_hint() -> None:
    house = House()
    worker = house.workers[Service.REPLICATION]
    worker.errors = [OperatorError("the position is lost", hint="see the runbook", error="x", key="k")]
    with capture_logs() as logs:
        async with house.up() as daemon:
            await daemon.start(Phase.REPLICATION)
            row = await house.until_status(Service.REPLICATION, Status.FAILED)
            await house.clock.sleep(200)
            assert worker.runs == 1
    assert row.error == "the position is lost (error=x, key=k)"
    assert row.hint == "see the runbook"
    assert house.on_disk().status(Service.REPLICATION) is Status.FAILED
    (failed,) = [log for log in logs if log["event"] == "service_failed"]
    assert (failed["error"], failed["error_"], failed["key"]) == ("the position is lost", "x", "k")
    assert daemon.exit_code == 0


def _unknown(count: int) -> list[BaseException]:
    return [UnclassifiedError("the source refused", hint="see", code=8, server_says="words") for _ in range(count)]


def _refused(count: int) -> list[BaseException]:
    return [CredentialsError("the source refused", hint="see", code=8, server_says="words") for _ in range(count)]


@pytest.mark.parametrize("errors", [_unknown, _refused])
async def test_an_unknown_error_of_capture_is_tried_again_in_the_servers_words(
    errors: Callable[[int], list[BaseException]],
) -> None:
    house = House()
    house.workers[Service.REPLICATION].errors = errors(100)
    with capture_logs() as logs:
        async with house.up() as daemon:
            horizon = Horizon(lag_seconds=0, age_seconds=50, retention_seconds=100, catch_up_rate=None)
            daemon.horizon = lambda: horizon
            await daemon.start(Phase.REPLICATION)
            row = await house.until_status(Service.REPLICATION, Status.WAITING)
            assert row.error == "the source refused (code=8, server_says=words)"
            assert row.reason == "trying again in 2 s"
            await house.clock.sleep(200)
            assert daemon.state.status(Service.REPLICATION) is Status.WAITING
            horizon = replace(horizon, age_seconds=75)
            row = await house.until_status(Service.REPLICATION, Status.FAILED)
    assert row.error == "the source refused (code=8, server_says=words)"
    assert "d5agent start replication" in row.hint
    assert "a quarter of the retention is left" in row.hint
    failed = [log for log in logs if log["event"] == "service_failed"]
    assert len(failed) > 5
    assert {(log["log_level"], log["server_says"]) for log in failed} == {("error", "words")}


async def test_passing_errors_are_loud_once_a_quarter_of_the_horizon_is_left() -> None:
    house = House()
    house.workers[Service.REPLICATION].errors = [
        TransientError("the source is not reached", hint="see the network") for _ in range(6)
    ]
    age = 7_000
    with capture_logs() as logs:
        async with house.up() as daemon:
            daemon.horizon = lambda: Horizon(
                lag_seconds=0, age_seconds=age, retention_seconds=10_000, catch_up_rate=None
            )
            await daemon.start(Phase.REPLICATION)
            row = await house.until_status(Service.REPLICATION, Status.WAITING)
            since = daemon.progress.failing_since
            assert row.reason == "trying again in 2 s"
            assert not [log for log in logs if log["event"] == "capture_fails_near_horizon"]
            age = 9_280
            await until(house.clock, lambda: "safe" in daemon.state.services[Service.REPLICATION].reason)
            row = daemon.state.services[Service.REPLICATION]
            assert row.reason == "trying again in 4 s; the position is safe for 12 min 0 s"
            age = 10_500
            await house.until_status(Service.REPLICATION, Status.RUNNING)
            assert daemon.progress.failing_since == since  # until it commits again
    warned = [log for log in logs if log["event"] == "capture_fails_near_horizon"]
    assert [log["safe_seconds"] for log in warned] == [720, 0, 0, 0, 0]
    assert {(log["log_level"], log["error"], log["failing_since"]) for log in warned} == {
        ("warning", "the source is not reached", since)
    }
    assert warned[0]["hint"] == "see the network; to win time, lengthen the retention now (docs/metrics.md)"


async def test_only_capture_is_loud_and_only_until_it_ends() -> None:
    house = House()
    await house.remember(READY)
    house.workers[Service.BACKUP].errors = [TransientError("the store is not reached")]
    house.workers[Service.REPLICATION].errors = [TransientError("not reached"), OperatorError("no right")]
    with capture_logs() as logs:
        async with house.up() as daemon:
            daemon.horizon = lambda: Horizon(lag_seconds=0, age_seconds=99, retention_seconds=100, catch_up_rate=None)
            await daemon.start(Service.REPLICATION)
            await daemon.start(Service.BACKUP)
            await house.until_status(Service.REPLICATION, Status.FAILED)
            assert daemon.progress.failing_since is None
            await until(house.clock, lambda: house.workers[Service.BACKUP].runs == 2)
            assert daemon.progress.failing_since is None
    assert len([log for log in logs if log["event"] == "capture_fails_near_horizon"]) == 1


async def test_an_unknown_error_of_another_service_fails_it() -> None:
    house = House()
    await house.remember(READY)
    house.workers[Service.BACKUP].errors = _unknown(1)
    async with house.up() as daemon:
        await daemon.start(Service.BACKUP)
        row = await house.until_status(Service.BACKUP, Status.FAILED)
    assert "d5agent start backup" in row.hint
    assert "server_says=words" in row.error


async def test_another_service_waits_for_credentials_as_long_as_it_takes() -> None:
    house = House()
    await house.remember(READY)
    house.workers[Service.BACKUP].errors = _refused(20)
    renewed: list[float] = []

    async def renew() -> None:
        renewed.append(house.clock.monotonic())

    async with house.up() as daemon:
        daemon.renew_credentials = renew
        daemon.horizon = lambda: Horizon(lag_seconds=0, age_seconds=99, retention_seconds=100, catch_up_rate=None)
        await daemon.start(Service.BACKUP)
        row = await house.until_status(Service.BACKUP, Status.WAITING)
        assert (row.error, row.hint) == ("the source refused (code=8, server_says=words)", "see")
        await house.clock.sleep(600)
        assert daemon.state.status(Service.BACKUP) is Status.WAITING
        await house.until_status(Service.BACKUP, Status.RUNNING)
    assert len(renewed) == 20  # before each further try


async def test_a_failed_service_may_be_started_again() -> None:
    house = House()
    house.workers[Service.REPLICATION].errors = [OperatorError("mend me")]
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.FAILED)
        await daemon.start(Service.REPLICATION)
        row = await house.until_status(Service.REPLICATION, Status.RUNNING)
    assert row.error == ""


async def test_a_log_that_another_agent_holds_ends_the_whole_daemon_with_78() -> None:
    house = House()
    await house.remember(READY)
    house.workers[Service.BACKUP].errors = [LogHeldError("another agent writes this log", host="other")]
    async with house.up() as daemon:
        await daemon.start(Service.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.RUNNING)
        await daemon.start(Service.BACKUP)
        await daemon.ended.wait()
    assert daemon.exit_code == 78
    assert house.workers[Service.REPLICATION].drained == 1


async def test_the_first_error_decides_the_exit_code() -> None:
    daemon = House().daemon
    daemon.end(OperatorError("first"))
    daemon.end(TransientError("second"))
    assert daemon.exit_code == 78


async def test_a_daemon_that_is_started_again_carries_on_with_what_was_unfinished() -> None:
    house = House()
    state = READY
    for service, status in (
        (Service.REPLICATION, Status.RUNNING),
        (Service.BACKUP, Status.DONE),
        (Service.MONITOR_REPLICATION, Status.WAITING),
        (Service.RESTORE, Status.PENDING),
        (Service.VERIFY, Status.FAILED),
    ):
        state = state.with_service(service, ServiceState(status=status, since=SINCE))
    await house.remember(state)
    async with house.up():
        await house.until_status(Service.MONITOR_REPLICATION, Status.RUNNING)
        await house.clock.sleep(5)
    runs = {service: worker.runs for service, worker in house.workers.items() if worker.runs}
    assert runs == {Service.REPLICATION: 1, Service.MONITOR_REPLICATION: 1}


async def test_a_daemon_that_ends_leaves_its_services_for_the_next_start() -> None:
    house = House()
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.RUNNING)
    assert house.workers[Service.REPLICATION].drained == 1
    assert house.on_disk().status(Service.REPLICATION) is Status.RUNNING
    async with house.up():
        await until(house.clock, lambda: house.workers[Service.REPLICATION].runs == 2)


async def test_a_refused_move_says_why_and_changes_nothing() -> None:
    house = House()
    async with house.up() as daemon:
        with pytest.raises(RefusedError, match="replication has never been ready") as refused:
            await daemon.start(Phase.RESTORE)
        assert "d5agent start replication" in refused.value.hint
        assert daemon.state == PhaseState()
    assert house.states.history == []


async def test_a_service_that_runs_is_not_started_twice() -> None:
    house = House()
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.RUNNING)
        await daemon.start(Phase.REPLICATION)
        daemon._launch(Service.REPLICATION)
        await house.clock.sleep(5)
    assert house.workers[Service.REPLICATION].runs == 1


async def test_stop_drains_a_service_that_drains_and_says_that_it_is_stopped() -> None:
    house = House()
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.RUNNING)
        await daemon.stop(Phase.REPLICATION)
        assert daemon.state.status(Service.REPLICATION) is Status.STOPPED
    assert (house.workers[Service.REPLICATION].drained, house.workers[Service.REPLICATION].cancelled) == (1, 0)


async def test_stop_cancels_at_once_what_does_not_drain_and_stops_what_only_waits_to_be_started() -> None:
    house = House(drain_seconds=1000)
    await house.remember(READY)
    house.workers[Service.BACKUP].drains = False
    house.workers[Service.BACKUP].is_deaf = True
    house.workers[Service.MONITOR_REPLICATION].drains = False
    async with house.up() as daemon:
        await daemon.start(Phase.RESTORE)
        await house.until_status(Service.BACKUP, Status.RUNNING)
        await daemon.stop(Phase.RESTORE)
        statuses = {service: row.status for service, row in daemon.state.services.items()}
    assert statuses == dict.fromkeys((Service.BACKUP, Service.MONITOR_REPLICATION, Service.RESTORE), Status.STOPPED)
    assert house.workers[Service.BACKUP].cancelled == 1


async def test_a_service_that_does_not_drain_within_its_budget_is_cancelled() -> None:
    house = House(drain_seconds=0.05)
    house.workers[Service.REPLICATION].is_deaf = True
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.RUNNING)
    assert house.workers[Service.REPLICATION].cancelled == 1
    assert house.on_disk().status(Service.REPLICATION) is Status.RUNNING


async def test_stop_during_a_pause_ends_the_service_without_another_try() -> None:
    house = House()
    house.workers[Service.REPLICATION].errors = [TransientError("the line is cut")] * 9
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.WAITING)
        runs = house.workers[Service.REPLICATION].runs
        await daemon.stop(Service.REPLICATION)
        assert daemon.state.status(Service.REPLICATION) is Status.STOPPED
        await house.clock.sleep(100)
        assert house.workers[Service.REPLICATION].runs == runs


async def test_a_service_starts_another_and_ends_another_as_done() -> None:
    house = House()
    await house.remember(READY)
    async with house.up() as daemon:
        await daemon.start(Service.REPLICATION)
        await daemon.start(Service.BACKUP)
        await house.until_status(Service.BACKUP, Status.RUNNING)
        (coordinator,) = house.workers[Service.BACKUP].surroundings
        await coordinator.start(Service.VERIFY)
        await house.until_status(Service.VERIFY, Status.RUNNING)
        await coordinator.stop(Service.REPLICATION)
        assert coordinator.state.status(Service.REPLICATION) is Status.DONE
        await coordinator.wait("something")
        assert coordinator.state.services[Service.BACKUP].reason == "something"
        await coordinator.update(lambda state: replace(state, is_clearing=True))
        assert daemon.progress.steps[Service.BACKUP] == "turn 1"
    assert house.on_disk().is_clearing


async def test_a_service_that_is_done_says_so_to_whoever_follows_it() -> None:
    house = House()
    house.workers[Service.REPLICATION].ends = True
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with house.up() as daemon:
        daemon.followers.add(Service.REPLICATION, queue)
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.DONE)
        await until(house.clock, lambda: queue.qsize() == 2)
        daemon.followers.remove(Service.REPLICATION, queue)
    assert [queue.get_nowait()["event"] for _ in range(2)] == ["service_started", "service_done"]


async def test_a_state_that_cannot_be_mirrored_is_on_disk_and_is_mirrored_later() -> None:
    states = MirrorDown()
    house = House(states=states)
    states.is_down = True
    with capture_logs() as logs:
        async with house.up() as daemon:
            await daemon.start(Phase.REPLICATION)
            await house.until_status(Service.REPLICATION, Status.RUNNING)
            assert states.mirror == {}
            assert house.on_disk() == daemon.state
            await house.clock.sleep(25)
            states.is_down = False
            await until(house.clock, lambda: states.mirror)
            assert states.mirror[PHASE] == states.texts[PHASE]
            saves = len(states.history)
            await house.clock.sleep(60)
            assert len(states.history) == saves  # once is enough
    assert {log["event"] for log in logs} >= {"state_not_mirrored"}


async def test_the_watchdog_is_fed_as_long_as_replication_shows_life() -> None:
    house = House(drain_seconds=0.05)
    async with house.up() as daemon:
        assert daemon.is_fed()
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.RUNNING)
        await house.clock.sleep(100)
        assert daemon.is_fed()
        daemon.progress.capture = a_capture(seen_at=house.clock.monotonic() - 61)
        assert not daemon.is_fed()


FOLLOWING = replace(
    READY,
    phase=Phase.RESTORE,
    services={Service.RESTORE: ServiceState(status=Status.RUNNING, since=SINCE)},
)


async def test_a_cutover_that_is_called_off_ends_before_the_application_may_write() -> None:
    house = House(application=FakeApplication())
    await house.remember(FOLLOWING)
    async with house.up() as daemon:
        await daemon.start(Service.MONITOR_REPLICATION)
        await house.until_status(Service.MONITOR_REPLICATION, Status.RUNNING)
        await daemon.call_off()
        row = daemon.state.services[Service.MONITOR_REPLICATION]
        assert (row.status, row.reason) == (Status.STOPPED, "called off")
        assert house.workers[Service.MONITOR_REPLICATION].drained == 1
        assert house.application is not None
        assert house.application.told == ["accept"]
        assert daemon.state.status(Service.RESTORE) is Status.RUNNING


async def test_an_application_that_could_not_be_told_is_told_when_the_call_off_is_typed_again() -> None:
    house = House(application=FakeApplication(error=OperatorError("it could not be told", hint="mend the command")))
    assert house.application is not None
    await house.remember(FOLLOWING)
    async with house.up() as daemon:
        await daemon.start(Service.MONITOR_REPLICATION)
        with pytest.raises(OperatorError, match="it could not be told"):
            await daemon.call_off()
        assert "the application may be read-only" in daemon.state.services[Service.MONITOR_REPLICATION].reason
        house.application.error = None
        await daemon.call_off()
    assert house.application.told == ["accept", "accept"]


async def test_a_fence_that_is_drawn_while_the_cutover_ends_keeps_the_application_read_only() -> None:
    house = House(application=FakeApplication())
    await house.remember(FOLLOWING)
    async with house.up() as daemon:

        async def draw() -> None:
            fence = Fence(sequence=1, cluster_time=ClusterTime(1, 1), at=SINCE)
            await daemon.update(lambda state: replace(state, fence=fence))

        house.workers[Service.MONITOR_REPLICATION].last_words = draw
        await daemon.start(Service.MONITOR_REPLICATION)
        await house.until_status(Service.MONITOR_REPLICATION, Status.RUNNING)
        with pytest.raises(RefusedError, match="the fence is drawn"):
            await daemon.call_off()
    assert house.application is not None
    assert not house.application.told


async def test_a_restore_that_is_paused_stays_so_over_a_restart() -> None:
    house = House(application=FakeApplication())
    await house.remember(FOLLOWING)
    async with house.up() as daemon:
        await daemon.pause(is_paused=True)
    async with house.up() as daemon:
        assert daemon.state.is_paused
        await daemon.pause(is_paused=False)
    assert not house.on_disk().is_paused


@pytest.mark.parametrize(("mode", "default"), [("live", None), ("drained", FakeApplication())])
async def test_mode_of_the_start_wins_over_the_setting(mode: str, default: FakeApplication | None) -> None:
    house = House(application=default)
    await house.remember(READY)
    async with house.up() as daemon:
        await daemon.start(Phase.RESTORE, mode=mode)
        assert daemon.is_live == (mode == "live")
        assert (Service.MONITOR_REPLICATION in daemon.state.services) == (mode == "drained")
    assert house.on_disk().mode == mode
    async with house.up() as daemon:
        assert daemon.is_live == (mode == "live")
        await daemon.stop(Phase.RESTORE)
        await daemon.start(Phase.RESTORE)  # as hints say: the run keeps its mode
        assert daemon.is_live == (mode == "live")


@pytest.mark.parametrize("is_live", [True, False])
async def test_without_a_mode_the_setting_counts(is_live: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    house = House(application=FakeApplication() if is_live else None)
    await house.remember(READY)
    async with house.up() as daemon:
        await daemon.start(Phase.RESTORE)
        assert daemon.is_live == is_live
    assert house.on_disk().mode == ""


async def test_refused_start_keeps_the_mode() -> None:
    house = House()
    await house.remember(replace(READY, is_clearing=True))
    async with house.up() as daemon:
        with pytest.raises(RefusedError, match="the stored operations are being removed"):
            await daemon.start(Phase.RESTORE, mode="live")
        assert not daemon.is_live
        assert daemon.state.mode == ""


async def test_pause_and_cutover_follow_the_mode_of_the_start() -> None:
    house = House()
    await house.remember(READY)
    async with house.up() as daemon:
        await daemon.start(Phase.RESTORE, mode="live")
        await house.until_status(Service.RESTORE, Status.RUNNING)
        await daemon.start(Service.MONITOR_REPLICATION)  # the cutover; refused in drained mode only where it begins
        await house.until_status(Service.MONITOR_REPLICATION, Status.RUNNING)
        with pytest.raises(RefusedError, match="a cutover is under way"):
            await daemon.pause(is_paused=True)
        await daemon.stop(Service.MONITOR_REPLICATION)
        assert "read-only" in daemon.state.services[Service.MONITOR_REPLICATION].reason


async def test_a_service_that_is_stopped_before_its_first_step_can_be_started_again() -> None:
    house = House()
    house.workers[Service.REPLICATION].drains = False
    async with house.up() as daemon:
        await daemon.start(Phase.REPLICATION)
        await daemon.stop(Phase.REPLICATION)  # its task has not run yet
        assert house.workers[Service.REPLICATION].runs == 0
        await daemon.start(Phase.REPLICATION)
        await house.until_status(Service.REPLICATION, Status.RUNNING)


async def test_an_operators_word_is_on_disk_and_in_the_journal() -> None:
    house = House()
    verified = Verified(sequence=1, operations=1, compared=1, at="then")
    await house.remember(PhaseState(phase=Phase.RESTORE, run_id="run", ready_at="then", verified=verified))
    with capture_logs() as logs:
        async with house.up() as daemon:
            await daemon.start(Phase.CLEAN, words=Words(accept_differences="run"))
            assert house.on_disk().differences_accepted_at == daemon.state.differences_accepted_at != ""
    (given,) = [log for log in logs if log["event"] == "operator_word_given"]
    assert (given["option"], given["run_id"]) == ("--accept-differences", "run")


async def test_a_restore_again_forgets_what_was_applied_and_nothing_if_it_is_refused() -> None:
    house = House()
    verified = Verified(sequence=1, operations=1, compared=1, at="then")
    state = PhaseState(phase=Phase.RESTORE, run_id="run", ready_at="then", verified=verified)
    await house.remember(state)
    for name in ("restore_checkpoint", "restore_compared"):
        await house.states.save(name, {"version": 1})
    async with house.up() as daemon:
        with pytest.raises(RefusedError, match="names another run"):
            await daemon.start(Phase.RESTORE, words=Words(again="another"))
        assert "restore_checkpoint" in house.states.texts
        await daemon.start(Phase.RESTORE, words=Words(again="run"))
        assert daemon.state.verified is None
        assert daemon.state.status(Service.MONITOR_REPLICATION) is not None
        assert set(house.states.texts) == {PHASE}
