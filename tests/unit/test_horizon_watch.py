"""The watch over the retention horizon: it speaks when capture cannot, and is silent when nothing can be lost."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from structlog.testing import capture_logs
from typing_extensions import override

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.horizon import Basis, Retention
from d5agent.core.run.services import Phase, PhaseState, Service, ServiceState, Status
from d5agent.core.run.status import status_of
from d5agent.errors import TransientError
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.horizon_watch import HorizonWatch
from d5agent.steps.capture.capture import TOKEN
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import a_capture
from tests.fakes.retention import FakeRetention
from tests.fakes.store import FakeStateStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

HOUR = 3_600
BEGAN = 1_800_000_000  # a cluster time, far from this machine's


class StoreDown(FakeStateStore):
    """Neither the disk nor the mirror can be read while it is down."""

    is_down = True

    @override
    async def load(self, name: str) -> dict[str, Any] | None:
        if self.is_down:
            raise TransientError("the store does not answer", name=name)
        return await super().load(name)


@dataclass(slots=True, kw_only=True)
class Rig:
    """A daemon whose replication is at work, and a cluster whose time passes as ours does."""

    clock: FakeClock = field(default_factory=lambda: FakeClock(is_manual=True))
    retention: FakeRetention = field(default_factory=FakeRetention)
    states: FakeStateStore = field(default_factory=FakeStateStore)
    error: Exception | None = None
    is_documentdb: bool = True
    lines: list[Any] = field(default_factory=list)
    daemon: Daemon = field(init=False)

    def __post_init__(self) -> None:
        self.daemon = Daemon(plugins={}, states=self.states, clock=self.clock, drain_seconds=1)
        self.daemon.file.state = PhaseState(phase=Phase.REPLICATION, run_id="run")
        self.set_status(Status.RUNNING)

    def set_status(self, status: Status) -> None:
        row = ServiceState(status=status, since=SINCE)
        self.daemon.file.state = self.daemon.state.with_service(Service.REPLICATION, row)

    async def cluster_time(self) -> ClusterTime:
        if self.error is not None:
            raise self.error
        return ClusterTime(BEGAN + int(self.clock.monotonic()), 1)

    def report(self, seconds: int, *, is_caught_up: bool = False) -> None:
        """Report as replication does."""
        self.daemon.progress.capture = a_capture(
            operations=1,
            last_cluster_time=ClusterTime(seconds, 7),
            seen_at=self.clock.monotonic(),
            is_caught_up=is_caught_up,
        )

    @property
    def capture(self) -> dict[str, Any]:
        """What status says of capture."""
        values: dict[str, Any] = status_of(self.daemon.state, self.daemon.progress, is_up=True)["capture"]
        return values

    @property
    def events(self) -> list[tuple[str, str]]:
        """Level and name of each line in the journal, but for the retention's."""
        return [(line["log_level"], line["event"]) for line in self.lines if "position" in line["event"]]

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Watch while the block runs."""
        watch = HorizonWatch(
            daemon=self.daemon,
            read_retention=self.retention.read,
            read_cluster_time=self.cluster_time,
            is_documentdb=self.is_documentdb,
        )
        with capture_logs() as self.lines:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(watch.keep())
                await self.clock.advance(2)
                yield
                task.cancel()


async def test_status_says_how_long_the_position_is_safe_by_the_clusters_clock() -> None:
    rig = Rig()
    rig.report(BEGAN - HOUR, is_caught_up=False)
    async with rig.watched():
        await rig.clock.advance(10)
        found = rig.capture
    assert found["safe_seconds"] == 10_800 - HOUR - 12
    assert (found["retention_seconds"], found["retention_basis"]) == (10_800, "aws")
    assert found["lag_seconds"] == HOUR + 12
    assert (found["catch_up_rate"], found["caught_up_in_seconds"]) == (0, None)
    assert found["operations"] == 1


async def test_the_daemon_asks_how_long_the_position_is_safe() -> None:
    rig = Rig()
    assert rig.daemon.horizon() is None
    rig.report(BEGAN - HOUR, is_caught_up=False)
    async with rig.watched():
        await rig.clock.advance(10)
        rig.daemon.progress.begin(Service.REPLICATION)  # as each new attempt begins
        horizon, found = rig.daemon.horizon(), rig.capture
    assert (found["operations"], found["safe_seconds"]) == (None, 10_800 - HOUR - 12)
    assert horizon is not None
    assert horizon.safe_seconds == 10_800 - HOUR - 12


async def test_catching_up_has_a_rate_and_an_end() -> None:
    rig = Rig()
    async with rig.watched():
        for second in range(60):
            rig.report(BEGAN - HOUR + 4 * second, is_caught_up=False)
            await rig.clock.advance(1)
        found = rig.capture
    assert found["catch_up_rate"] == 4
    assert abs(found["caught_up_in_seconds"] - found["lag_seconds"] / 3) < 1


async def test_who_has_read_all_is_not_behind_whatever_the_age_of_the_saved_position() -> None:
    rig = Rig()
    async with rig.watched():
        rig.report(BEGAN - 50, is_caught_up=True)
        await rig.clock.advance(1)
        found = rig.capture
    assert found["lag_seconds"] <= 1
    assert found["caught_up_in_seconds"] == 0
    assert found["safe_seconds"] == 10_800 - 50 - 3


async def test_a_capture_that_fails_and_starts_anew_is_told_of_at_a_half_a_quarter_and_the_end() -> None:
    rig = Rig(retention=FakeRetention(found=Retention(seconds=120, basis=Basis.SETTING)))
    rig.report(BEGAN, is_caught_up=True)
    async with rig.watched():
        rig.set_status(Status.WAITING)
        rig.daemon.progress.begin(Service.REPLICATION)  # as each new attempt begins
        rig.error = TransientError("the source is not reached")
        await rig.clock.advance(130)
        found = rig.capture
    assert rig.events == [
        ("warning", "position_is_at_half"),
        ("error", "position_is_at_quarter"),
        ("error", "position_has_expired"),
    ]
    half, quarter, end = (line for line in rig.lines if "position" in line["event"])
    assert (half["safe_seconds"], quarter["safe_seconds"], end["safe_seconds"]) == (60, 30, 0)
    assert half["lag_seconds"] == 60
    assert "change_stream_log_retention_duration" in half["hint"]
    assert "docs/runbook" in end["hint"]
    assert (half["service"], half["run_id"], half["retention_basis"]) == ("replication", "run", "setting")
    assert found["safe_seconds"] == 0
    assert found["lag_seconds"] == 132


async def test_on_mongodb_the_hint_is_the_oplog() -> None:
    rig = Rig(is_documentdb=False)
    rig.report(BEGAN - 2 * HOUR)
    async with rig.watched():
        pass
    assert next(line["hint"] for line in rig.lines if "position" in line["event"]).startswith("enlarge the oplog")


async def test_after_a_recovery_somebody_is_told_and_later_warned_again() -> None:
    rig = Rig()
    rig.report(BEGAN - 2 * HOUR)
    async with rig.watched():
        rig.report(BEGAN)
        await rig.clock.advance(1)
        rig.report(BEGAN - 2 * HOUR)
        await rig.clock.advance(1)
    assert [event for _, event in rig.events] == [
        "position_is_at_half",
        "position_is_safe_again",
        "position_is_at_half",
    ]
    assert rig.events[1][0] == "info"


async def test_followers_of_replication_hear_of_it() -> None:
    rig = Rig()
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    rig.daemon.followers.add(Service.REPLICATION, heard)
    rig.report(BEGAN - 2 * HOUR)
    async with rig.watched():
        pass
    assert "position_is_at_half" in [heard.get_nowait()["event"] for _ in range(heard.qsize())]


async def test_a_parameter_that_is_raised_counts_within_five_minutes_and_is_told() -> None:
    rig = Rig()
    rig.report(BEGAN - 2 * HOUR)
    async with rig.watched():
        rig.retention.found = Retention(seconds=604_800, basis=Basis.AWS)
        await rig.clock.advance(300)
        found = rig.capture
        await rig.clock.advance(300)
    assert found["retention_seconds"] == 604_800
    assert rig.retention.asked == 3
    told = [line["seconds"] for line in rig.lines if line["event"] == "retention_known"]
    assert told == [10_800, 604_800]
    assert ("info", "position_is_safe_again") in rig.events


async def test_why_it_could_not_be_read_is_told_once() -> None:
    found = Retention(seconds=10_800, basis=Basis.DEFAULT, reason="AWS refused", hint="grant it")
    rig = Rig(retention=FakeRetention(found=found))
    rig.report(BEGAN)
    async with rig.watched():
        await rig.clock.advance(1_000)
        basis = rig.capture["retention_basis"]
    told = [line for line in rig.lines if line["event"] == "retention_not_read"]
    assert [(line["log_level"], line["reason"], line["hint"]) for line in told] == [
        ("warning", "AWS refused", "grant it")
    ]
    assert rig.retention.asked == 4
    assert basis == "default"


async def test_what_is_not_known_is_not_invented() -> None:
    rig = Rig(retention=FakeRetention(found=Retention(reason="the oplog", hint="set it")))
    rig.report(BEGAN - 9 * HOUR, is_caught_up=False)
    async with rig.watched():
        found = rig.capture
    assert (found["safe_seconds"], found["retention_seconds"], found["retention_basis"]) == (None, None, None)
    assert found["lag_seconds"] > 9 * HOUR
    assert rig.events == []


async def test_after_a_restart_the_saved_position_is_watched_though_replication_has_failed() -> None:
    rig = Rig()
    rig.set_status(Status.FAILED)
    await rig.states.save(TOKEN, {"version": 1, "sequence": 3, "cluster_time": [BEGAN - 2 * HOUR, 1], "token": None})
    async with rig.watched():
        found = rig.capture
    assert found["safe_seconds"] == HOUR - 2
    assert rig.events == [("warning", "position_is_at_half")]


async def test_a_saved_position_that_cannot_be_read_is_tried_again() -> None:
    store = StoreDown()
    rig = Rig(states=store)
    await rig.states.save(TOKEN, {"version": 1, "sequence": 3, "cluster_time": [BEGAN - HOUR, 1], "token": None})
    async with rig.watched():
        before = rig.capture
        store.is_down = False
        await rig.clock.advance(31)
        found = rig.capture
    assert before["safe_seconds"] is None
    assert found["safe_seconds"] == 10_800 - HOUR - 33
    assert "horizon_not_watched" not in [line["event"] for line in rig.lines]


async def test_before_replication_and_after_clean_nobody_is_asked_and_nothing_is_said() -> None:
    rig = Rig()
    rig.daemon.file.state = PhaseState()
    async with rig.watched():
        await rig.clock.advance(60)
        assert rig.retention.asked == 0
        rig.set_status(Status.RUNNING)
        rig.report(BEGAN + 60 - 5_400 + 30)  # half a minute before a half is gone
        await rig.clock.advance(5)
        assert rig.capture["safe_seconds"] is not None
        rig.set_status(Status.DONE)
        await rig.clock.advance(60)
        found = rig.capture
        rig.set_status(Status.RUNNING)  # another run, which has no position yet
        rig.daemon.progress.begin(Service.REPLICATION)
        await rig.clock.advance(2)
        assert rig.capture["safe_seconds"] is None
    assert found["safe_seconds"] is None
    assert found["operations"] == 1
    assert rig.events == []


async def test_a_bug_is_told_and_stops_nothing() -> None:
    rig = Rig(error=ZeroDivisionError())
    rig.report(BEGAN - 2 * HOUR)
    async with rig.watched():
        rig.error = None
        await rig.clock.advance(61)
        found = rig.capture
    assert [line["log_level"] for line in rig.lines if line["event"] == "horizon_not_watched"] == ["error"]
    assert found["safe_seconds"] is not None
