"""Live restore: it follows the log until the cutover has drawn the fence, and the table says what may be asked when."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run import cutover, phase
from d5agent.core.run.progress import RestoreProgress
from d5agent.core.run.services import Fence, Phase, PhaseState, Service, ServiceState, Status, Verified
from d5agent.errors import OperatorError, RefusedError
from tests.fakes.cluster import Op, delete, insert, update
from tests.fakes.machine import FakeApplication
from tests.fakes.phases import with_rows
from tests.fakes.progress import forget_readiness
from tests.fakes.stage import ORDERS, Stage, until

if TYPE_CHECKING:
    from d5agent.plugins.monitor_replication import MonitorReplication

NOW = "2026-11-02T08:00:00+00:00"
MANIFEST = "dump/run/target/manifest.json"
READY = PhaseState(
    phase=Phase.REPLICATION,
    run_id="run",
    since=NOW,
    ready_at=NOW,
    services={Service.REPLICATION: ServiceState(status=Status.RUNNING, since=NOW)},
)
FENCE = Fence(sequence=1, cluster_time=ClusterTime(1, 1), at=NOW, marker="fence-1")
LIVE = phase.start(READY, Phase.RESTORE, now=NOW, new_run_id="x", is_live=True)


def test_a_live_restore_begins_by_itself_and_leaves_the_fence_to_the_cutover() -> None:
    assert phase.to_run(LIVE, Phase.RESTORE, is_live=True) == (Service.BACKUP, Service.RESTORE)
    assert LIVE.status(Service.MONITOR_REPLICATION) is None
    assert phase.to_resume(LIVE, is_live=True)[1:] == (Service.BACKUP, Service.RESTORE)
    cut = phase.start(LIVE, Service.MONITOR_REPLICATION, now=NOW, new_run_id="x", is_live=True)
    assert phase.to_run(cut, Service.MONITOR_REPLICATION, is_live=True) == (Service.MONITOR_REPLICATION,)
    assert Service.MONITOR_REPLICATION in phase.to_resume(cut, is_live=True)


@pytest.mark.parametrize(
    ("state", "reason", "hint"),
    [
        (READY, "no live restore is at work", "d5agent start restore"),
        (with_rows(LIVE, {Service.RESTORE: Status.FAILED}), "no live restore is at work", "d5agent start restore"),
        (replace(LIVE, is_paused=True), "restore is paused", "d5agent resume restore"),
        (replace(LIVE, fence=FENCE), "the fence is drawn", "d5agent status"),
        (replace(LIVE, is_clearing=True), "the stored operations are being removed", "let clean finish"),
    ],
)
def test_a_cutover_is_refused_with_what_to_type_instead(state: PhaseState, reason: str, hint: str) -> None:
    with pytest.raises(RefusedError, match=reason) as refused:
        phase.start(state, Service.MONITOR_REPLICATION, now=NOW, new_run_id="x", is_live=True)
    assert hint in refused.value.hint


def test_a_live_restore_that_is_started_anew_needs_a_new_cutover() -> None:
    cut = with_rows(replace(LIVE, fence=FENCE, is_paused=True), {Service.MONITOR_REPLICATION: Status.DONE})
    failed = with_rows(cut, {Service.RESTORE: Status.FAILED})
    anew = phase.start(failed, Phase.RESTORE, now=NOW, new_run_id="x", is_live=True)
    assert (anew.fence, anew.status(Service.MONITOR_REPLICATION), anew.is_paused) == (None, None, False)


def test_a_monitor_that_starts_restore_again_keeps_the_fence() -> None:
    cut = with_rows(replace(LIVE, fence=FENCE), {Service.RESTORE: Status.DONE})
    again = phase.start(cut, Service.RESTORE, now=NOW, new_run_id="x", is_live=True)
    assert again.fence == FENCE


@pytest.mark.parametrize(
    ("cutover_is", "restore_is", "fence", "reason"),
    [
        (None, Status.RUNNING, None, "no cutover has been asked for"),
        (Status.DONE, Status.RUNNING, FENCE, "the fence is drawn"),
        (Status.DONE, Status.DONE, FENCE, "the fence is drawn"),
    ],
)
def test_a_call_off_is_refused_with_the_reason(
    cutover_is: Status | None, restore_is: Status, fence: Fence | None, reason: str
) -> None:
    state = with_rows(replace(LIVE, fence=fence), {Service.RESTORE: restore_is})
    if cutover_is is not None:
        state = with_rows(state, {Service.MONITOR_REPLICATION: cutover_is})
    with pytest.raises(RefusedError, match=reason) as refused:
        cutover.without_fence(state)
    assert "d5agent status" in refused.value.hint


@pytest.mark.parametrize("restore_is", [Status.DONE, Status.FAILED])
def test_a_call_off_after_the_certificate_is_refused(restore_is: Status) -> None:
    proof = Verified(sequence=1, operations=1, compared=1, at=NOW)
    state = with_rows(replace(LIVE, fence=FENCE, verified=proof), {Service.MONITOR_REPLICATION: Status.DONE})
    with pytest.raises(RefusedError, match="the certificate is issued") as refused:
        cutover.without_fence(with_rows(state, {Service.RESTORE: restore_is}))
    assert "d5agent start monitor-restore" in refused.value.hint


@pytest.mark.parametrize("fence", [None, FENCE])
def test_a_cutover_is_called_off_before_its_fence_or_when_restore_failed_behind_it(fence: Fence | None) -> None:
    state = with_rows(replace(LIVE, fence=fence), {Service.MONITOR_REPLICATION: Status.FAILED})
    state = with_rows(state, {Service.RESTORE: Status.RUNNING if fence is None else Status.FAILED})
    assert cutover.without_fence(state).fence is None
    row = cutover.called_off(state, now=NOW).services[Service.MONITOR_REPLICATION]
    assert (row.status, row.reason) == (Status.STOPPED, "called off")


@pytest.mark.parametrize("mode", ["drained", "live"])
def test_mode_is_kept_in_the_state(mode: str) -> None:
    assert cutover.in_mode(READY, Phase.RESTORE, mode, is_live=False).mode == mode


@pytest.mark.parametrize("service", [Service.RESTORE, Service.MONITOR_REPLICATION])
@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING, Status.WAITING])
def test_mode_is_not_changed_under_way(service: Service, status: Status) -> None:
    at_work = with_rows(READY, {service: status})
    assert cutover.in_mode(at_work, Phase.RESTORE, "live", is_live=True).mode == "live"
    for mode, is_live, under_way in (("drained", True, "live"), ("live", False, "drained")):
        with pytest.raises(RefusedError, match=f"restore refused: a {under_way} restore is under way") as refused:
            cutover.in_mode(at_work, Phase.RESTORE, mode, is_live=is_live)
        assert f"d5agent stop restore, then d5agent start restore --mode {mode}" in refused.value.hint


@pytest.mark.parametrize("request_", [Phase.CLEAN, Phase.REPLICATION, Service.BACKUP])
def test_only_restore_has_a_mode(request_: Phase | Service) -> None:
    with pytest.raises(RefusedError, match="has no mode"):
        cutover.in_mode(READY, request_, "live", is_live=False)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(RefusedError, match="there is no mode called 'hot'"):
        cutover.in_mode(READY, Phase.RESTORE, "hot", is_live=False)


def test_stopped_live_restore_goes_on_drained_with_a_new_fence() -> None:
    cut = with_rows(replace(LIVE, fence=FENCE), {Service.MONITOR_REPLICATION: Status.FAILED})
    stopped = phase.stop(cut, Phase.RESTORE, now=NOW)
    state = cutover.in_mode(stopped, Phase.RESTORE, "drained", is_live=True)
    again = phase.start(state, Phase.RESTORE, now=NOW, new_run_id="x", is_live=False)
    assert again.fence is None
    assert Service.MONITOR_REPLICATION in phase.to_run(again, Phase.RESTORE, is_live=False)


def test_a_restore_is_paused_and_resumed_but_not_while_a_cutover_waits_for_it() -> None:
    paused = cutover.pause(LIVE, is_paused=True, is_live=True)
    assert paused.is_paused
    assert not cutover.pause(paused, is_paused=False, is_live=True).is_paused
    with pytest.raises(RefusedError, match="restore is not at work"):
        cutover.pause(READY, is_paused=True, is_live=True)
    cutting = with_rows(LIVE, {Service.MONITOR_REPLICATION: Status.WAITING})
    with pytest.raises(RefusedError, match="the application may be read-only") as refused:
        cutover.pause(cutting, is_paused=True, is_live=True)
    assert "d5agent cutover --call-off" in refused.value.hint
    assert cutover.pause(cutting, is_paused=True, is_live=False).is_paused  # there it has not begun


@pytest.mark.parametrize(
    ("applied", "captured", "capture_lag", "lag"),
    [((10, 1), (10, 9), 1.5, 1.5), ((10, 1), (14, 0), 0.5, 4.5), ((10, 1), None, None, 0), ((10, 1), (9, 1), 0.0, 0)],
)
def test_the_lag_is_that_behind_the_log_and_that_of_the_log(
    applied: tuple[int, int], captured: tuple[int, int] | None, capture_lag: float | None, lag: float
) -> None:
    known = None if captured is None else ClusterTime(*captured)
    assert cutover.lag_seconds(ClusterTime(*applied), known, capture_lag) == lag


@pytest.mark.parametrize(
    ("turn_seconds", "carried", "carries_whole", "lag", "ready"),
    [
        (0.5, 100, False, 2.0, True),
        (3.0, 100, False, 2.0, False),
        (0.5, 10_000, False, 2.0, False),
        (0.5, 100, True, 2.0, False),
        (0.5, 100, False, 11.0, False),
    ],
)
def test_a_cutover_may_begin_when_what_is_left_takes_seconds(
    turn_seconds: float, carried: int, *, carries_whole: bool, lag: float, ready: bool
) -> None:
    found = cutover.is_ready(turn_seconds=turn_seconds, carried=carried, carries_whole=carries_whole, lag=lag)
    assert found is ready


class Live:
    """A live restore beside a replication, and a cutover when it is asked for; each with its own surroundings."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.application = FakeApplication()

    def cutover(self) -> MonitorReplication:
        return self.stage.cutover(self.application)

    def happen(self, *ops: Op) -> None:
        for op in ops:
            self.stage.cluster.apply(op)

    async def until_ready(self) -> None:
        progress = self.stage.coordinator.progress
        forget_readiness(progress)
        await until(self.stage.clock, lambda: progress.restore.can_cutover)

    async def cut_over(self) -> None:
        await self.cutover().run(self.stage.coordinator)


@pytest.fixture
def live() -> Live:
    stage = Stage()
    stage.store.objects[MANIFEST] = b"{}"
    return Live(stage)


async def begin(stage: Stage) -> None:
    """Let replication be ready, and restore have its row."""
    await until(stage.clock, lambda: stage.coordinator.state.ready_at)
    stage.coordinator.state = replace(stage.coordinator.state, phase=Phase.RESTORE)
    stage.coordinator.set_status(Service.RESTORE, Status.RUNNING)


@pytest.mark.parametrize(
    ("is_told", "event"), [(True, "application_made_read_only"), (False, "application_read_only_by_word")]
)
async def test_it_follows_the_log_and_the_cutover_ends_it_with_both_sides_equal(
    live: Live,
    is_told: bool,  # noqa: FBT001 -- a case
    event: str,
) -> None:
    stage = live.stage
    live.application.is_told = is_told
    async with stage.running(stage.replication()):
        await begin(stage)
        live.happen(*[insert(ORDERS, {"_id": number}) for number in range(5)])
        async with stage.running(stage.restore(is_live=True)) as restore:
            await live.until_ready()
            live.happen(update(ORDERS, {"_id": 1}), delete(ORDERS, 2), insert(ORDERS, {"_id": "late"}))
            await live.until_ready()
            assert not restore.done()
            live.happen(insert(ORDERS, {"_id": "last"}))
            await live.cut_over()
            await restore
            assert stage.target.database.contents() == stage.foreign_contents()
            assert live.application.told == ["refuse"]
            said = [entry.event for entry in stage.coordinator.journal.entries if entry.event.startswith("application")]
            assert said == [event]
            assert stage.coordinator.state.verified is not None
            assert stage.coordinator.state.fence is not None
            assert stage.coordinator.state.fence.read_only_at
            stage.coordinator.stopping.clear()


async def cutting_over(live: Live) -> None:
    """Let a cutover begin in a world without a restore: it has caught up already."""
    live.stage.coordinator.progress.restore = RestoreProgress(can_cutover=True)
    live.stage.coordinator.state = replace(live.stage.coordinator.state, phase=Phase.RESTORE)
    await live.cutover().run(live.stage.coordinator)


CALL_OFF = "the application may be read-only: d5agent cutover --call-off lets it write again"


async def test_an_application_that_cannot_be_refused_leaves_no_fence_and_a_hint_how_to_go_back(live: Live) -> None:
    live.application.error = OperatorError("the application could not be made read-only", hint="mend the command")
    with pytest.raises(OperatorError, match="could not be made read-only") as failed:
        await cutting_over(live)
    assert failed.value.hint == f"mend the command; {CALL_OFF}"
    assert live.stage.coordinator.state.fence is None


async def test_writes_that_do_not_end_within_the_time_end_the_cutover_and_the_hint_says_how_to_go_back(
    live: Live,
) -> None:
    live.stage.source.writes = ["update on shop.orders since 3 s"]
    with pytest.raises(OperatorError, match="writes are still running") as failed:
        await cutting_over(live)
    assert "then type: d5agent cutover" in failed.value.hint
    assert failed.value.hint.endswith(CALL_OFF)
    assert (live.application.told, live.stage.coordinator.state.fence) == (["refuse"], None)


async def test_a_cutover_without_a_marker_leaves_the_application_alone(live: Live) -> None:
    live.stage.source.may_write = False
    with pytest.raises(OperatorError, match="the fence marker cannot be written") as failed:
        await cutting_over(live)
    assert "insert on the database d5agent (docs/privileges.md), then type: d5agent cutover" in failed.value.hint
    assert (live.application.told, live.stage.coordinator.state.fence) == ([], None)


async def test_the_application_writes_on_until_restore_has_caught_up(live: Live) -> None:
    coordinator = live.stage.coordinator
    coordinator.progress.restore = RestoreProgress(can_cutover=False)
    coordinator.set_status(Service.RESTORE, Status.RUNNING)

    def fail(_: str) -> None:
        assert not live.application.told
        coordinator.set_status(Service.RESTORE, Status.FAILED)

    coordinator.on_wait = fail
    with pytest.raises(OperatorError, match="the cutover cannot begin: restore is failed") as failed:
        await live.cutover().run(coordinator)
    assert "d5agent start restore" in failed.value.hint
    assert not live.application.told


async def test_a_cutover_that_had_drawn_its_fence_before_a_crash_is_done(live: Live) -> None:
    live.stage.coordinator.state = replace(LIVE, fence=FENCE)
    await live.cutover().run(live.stage.coordinator)
    assert not live.application.told
    assert not live.stage.coordinator.reasons


async def test_a_paused_restore_writes_nothing_and_goes_on_where_it_was(live: Live) -> None:
    stage = live.stage
    async with stage.running(stage.replication()):
        await begin(stage)
        stage.coordinator.state = replace(stage.coordinator.state, is_paused=True)
        live.happen(*[insert(ORDERS, {"_id": number}) for number in range(5)])
        async with stage.running(stage.restore(is_live=True)) as restore:
            paused = "d5agent resume restore: an operator has paused it"
            await until(stage.clock, lambda: paused in stage.coordinator.reasons)
            await stage.wait_until_captured()
            assert not stage.target.database.contents()
            assert not stage.coordinator.progress.restore.can_cutover
            stage.coordinator.state = replace(stage.coordinator.state, is_paused=False)
            await live.until_ready()
            assert stage.target.database.contents() == stage.foreign_contents()
            restore.cancel()
            stage.coordinator.stopping.clear()
