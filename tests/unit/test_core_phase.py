"""The table of moves: each one allowed or refused with its reason, and what a restarted daemon carries on with."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.phase import begun_again, finish, start, stop, to_resume, to_run
from d5agent.core.run.services import (
    PHASE_SERVICES,
    STARTED_BY,
    Fence,
    Late,
    LateShown,
    LateWord,
    Phase,
    PhaseState,
    Service,
    ServiceState,
    Status,
    Verified,
    parse_request,
    phase_of,
    services_of,
)
from d5agent.errors import RefusedError
from tests.fakes.phases import BEFORE, with_rows

FENCE: Final = Fence(sequence=1, cluster_time=ClusterTime(1, 1), at=BEFORE)
VERIFIED: Final = Verified(sequence=1, operations=1, compared=1, at=BEFORE)
IDLE: Final = PhaseState()
STARTING: Final = with_rows(
    PhaseState(phase=Phase.REPLICATION, run_id="old", since=BEFORE), {Service.REPLICATION: Status.RUNNING}
)
READY: Final = replace(STARTING, ready_at=BEFORE)
RESTORING: Final = with_rows(
    replace(READY, phase=Phase.RESTORE),
    {
        Service.BACKUP: Status.RUNNING,
        Service.MONITOR_REPLICATION: Status.WAITING,
        Service.RESTORE: Status.PENDING,
    },
)
EQUAL: Final = with_rows(
    replace(RESTORING, fence=FENCE, verified=VERIFIED), dict.fromkeys(PHASE_SERVICES[Phase.RESTORE], Status.DONE)
)
CLEARING: Final = with_rows(
    replace(EQUAL, phase=Phase.CLEAN, is_clearing=True),
    {Service.MONITOR_RESTORE: Status.DONE, Service.CLEAN: Status.RUNNING, Service.MONITOR_CLEAN: Status.RUNNING},
)
CLEAN_FAILED: Final = with_rows(CLEARING, {Service.CLEAN: Status.FAILED})
CLEANED: Final = with_rows(CLEARING, {Service.CLEAN: Status.DONE, Service.REPLICATION: Status.DONE})
LEAVING: Final = with_rows(CLEANED, {Service.MONITOR_CLEAN: Status.WAITING})
KEPT_ON: Final = with_rows(CLEANED, {Service.MONITOR_CLEAN: Status.STOPPED})
FINISHED: Final = finish(CLEANED, now="then")


def _rowless(state: PhaseState) -> PhaseState:
    """Return the state before any of its services has a row: each may begin."""
    return replace(state, services={})


PROVEN: Final = _rowless(EQUAL)

STATES: Final = {
    "idle": IDLE,
    "starting": STARTING,
    "ready": READY,
    "restoring": RESTORING,
    "equal": EQUAL,
    "clearing": CLEARING,
    "clean failed": CLEAN_FAILED,
    "clearing without rows": _rowless(CLEARING),
    "cleaned": CLEANED,
    "leaving": LEAVING,
    "kept on": KEPT_ON,
    "finished": FINISHED,
}
REQUESTS: Final = (Phase.REPLICATION, Phase.RESTORE, Phase.CLEAN, *Service)
_REPLICATION: Final = (Phase.REPLICATION, Service.REPLICATION)
_UNREADY: Final = tuple(request for request in REQUESTS if request not in _REPLICATION)
_NOT_WHILE_CLEANING: Final = (
    Phase.RESTORE,
    Service.MONITOR_REPLICATION,
    Service.RESTORE,
    Service.VERIFY,
)
NEVER_READY: Final = (
    "replication has never been ready",
    "type: d5agent start replication, and wait until d5agent status says that it is ready",
)
NOT_VERIFIED: Final = (
    "restore has not verified that both databases are equal",
    "type: d5agent start monitor-restore, which cleans as soon as restore is verified",
)
NO_RESTORE: Final = ("no restore has been started", "type: d5agent start restore")
CERTIFIED: Final = (
    "the certificate of this run is issued, and MongoDB belongs to the applications",
    "type: d5agent start monitor-restore, which reports what came after it; nothing is written without your word",
)
CLEANING: Final = (
    "the stored operations are being removed",
    "let clean finish (d5agent status), then start replication anew",
)
POWERING_OFF: Final = (
    "monitor-clean is about to power the instance off",
    "type: d5agent stop monitor-clean, then start replication",
)
_WHILE_CLEANING: Final = dict.fromkeys((*_REPLICATION, *_NOT_WHILE_CLEANING), CLEANING)
_BEFORE_POWER_OFF: Final = {**_WHILE_CLEANING, **dict.fromkeys(_REPLICATION, POWERING_OFF)}

# What stands here is refused, and nothing else. Where a phase and a service share a name, both are meant.
REFUSED: Final = {
    "idle": dict.fromkeys(_UNREADY, NEVER_READY),
    "starting": dict.fromkeys(_UNREADY, NEVER_READY),
    "ready": {
        "phase clean": NO_RESTORE,
        Service.MONITOR_RESTORE: NO_RESTORE,
        "service clean": NOT_VERIFIED,
        Service.MONITOR_CLEAN: NOT_VERIFIED,
    },
    "restoring": dict.fromkeys((Service.CLEAN, Service.MONITOR_CLEAN), NOT_VERIFIED),
    "equal": {Service.MONITOR_REPLICATION: CERTIFIED},
    "clearing": _WHILE_CLEANING,
    "clean failed": _WHILE_CLEANING,
    "clearing without rows": _WHILE_CLEANING,
    "cleaned": _BEFORE_POWER_OFF,
    "leaving": _BEFORE_POWER_OFF,
    "kept on": dict.fromkeys(_NOT_WHILE_CLEANING, CLEANING),
    "finished": dict.fromkeys(_UNREADY, NEVER_READY),
}


def _refused(name: str, request: Phase | Service) -> tuple[str, str] | None:
    table: dict[str, tuple[str, str]] = {str(key): value for key, value in REFUSED[name].items()}
    kind = "phase" if isinstance(request, Phase) else "service"
    return table.get(f"{kind} {request}") or table.get(str(request))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{type(r).__name__.lower()} {r}")
@pytest.mark.parametrize("name", STATES)
def test_a_move_is_allowed_or_refused_as_the_table_says(name: str, request_: Phase | Service) -> None:
    expected = _refused(name, request_)
    if expected is None:
        after = _started(STATES[name], request_)
        assert all(after.status(service) is not None for service in services_of(request_))
        return
    with pytest.raises(RefusedError) as caught:
        _started(STATES[name], request_)
    reason, hint = expected
    assert (caught.value.message, caught.value.hint) == (f"{request_} refused: {reason}", hint)


def _started(state: PhaseState, request: Phase | Service) -> PhaseState:
    return start(state, request, now="now", new_run_id="new")


def _begun(state: PhaseState, request: Phase | Service) -> tuple[PhaseState, set[Service]]:
    """Return the state after a start, and the services whose row became new."""
    after = _started(state, request)
    return after, {service for service, row in after.services.items() if row.since == "now"}


_NEEDS_PROOF: Final = (Service.CLEAN, Service.MONITOR_CLEAN, Phase.CLEAN)
_FIRST_OF_A_RESTORE: Final = (Service.BACKUP, Service.MONITOR_REPLICATION, Service.RESTORE, Phase.RESTORE)


@pytest.mark.parametrize(
    ("state", "request_", "expected"),
    [
        *((IDLE, request, Phase.REPLICATION) for request in _REPLICATION),
        *((_rowless(READY), request, Phase.RESTORE) for request in _FIRST_OF_A_RESTORE),
        (_rowless(READY), Service.VERIFY, Phase.REPLICATION),
        (_rowless(RESTORING), Service.VERIFY, Phase.RESTORE),
        (_rowless(RESTORING), Service.MONITOR_RESTORE, Phase.CLEAN),
        *((PROVEN, request, Phase.CLEAN) for request in _NEEDS_PROOF),
        *((_rowless(CLEARING), request, Phase.CLEAN) for request in _NEEDS_PROOF),
        (_rowless(CLEARING), Service.MONITOR_RESTORE, Phase.CLEAN),
    ],
)
def test_a_start_that_is_allowed_makes_its_services_pending_and_moves_the_phase(
    state: PhaseState, request_: Service | Phase, expected: Phase
) -> None:
    after = _started(state, request_)
    assert after.phase is expected
    assert {after.status(service) for service in services_of(request_)} == {Status.PENDING}
    assert {after.services[service].since for service in services_of(request_)} == {"now"}
    assert after.since == ("now" if state.phase is not expected else state.since)


def test_the_first_replication_begins_a_run() -> None:
    after, begun = _begun(IDLE, Phase.REPLICATION)
    assert (after.phase, after.run_id, after.since) == (Phase.REPLICATION, "new", "now")
    assert begun == {Service.REPLICATION}
    assert to_run(after, Phase.REPLICATION) == (Service.REPLICATION,)


def test_replication_that_was_stopped_goes_on_with_its_run() -> None:
    assert _started(with_rows(READY, {Service.REPLICATION: Status.STOPPED}), Phase.REPLICATION).run_id == "old"


@pytest.mark.parametrize("state", [KEPT_ON, FINISHED], ids=["kept on", "finished"])
def test_replication_after_a_failback_begins_a_new_run_and_forgets_the_old_one(state: PhaseState) -> None:
    after, _ = _begun(state, Phase.REPLICATION)
    assert (after.run_id, after.ready_at, after.fence, after.verified) == ("new", "", None, None)
    assert not after.is_clearing
    assert set(after.services) == {Service.REPLICATION}


@pytest.mark.parametrize("state", [STARTING, READY, RESTORING, EQUAL])
def test_what_runs_already_is_left_alone(state: PhaseState) -> None:
    after, begun = _begun(state, Phase.REPLICATION)
    assert after == state
    assert not begun
    assert to_run(after, Phase.REPLICATION) == ()


@pytest.mark.parametrize("status", [Status.RUNNING, Status.WAITING])
def test_a_restore_that_runs_already_keeps_its_rows_and_proofs(status: Status) -> None:
    before = with_rows(PROVEN, {Service.RESTORE: status, Service.MONITOR_REPLICATION: status})
    after = _started(before, Service.RESTORE)
    assert after.services == before.services
    assert (after.fence, after.verified) == (FENCE, VERIFIED)


def test_a_restore_runs_backup_and_its_monitor_and_leaves_the_rest_to_that() -> None:
    after, begun = _begun(READY, Phase.RESTORE)
    assert (after.phase, after.run_id, after.since) == (Phase.RESTORE, "old", "now")
    assert begun == {Service.BACKUP, Service.MONITOR_REPLICATION, Service.RESTORE}
    assert to_run(after, Phase.RESTORE) == (Service.BACKUP, Service.MONITOR_REPLICATION)
    assert after.status(Service.RESTORE) is Status.PENDING
    again, _ = _begun(after, Service.RESTORE)
    assert to_run(again, Service.RESTORE) == (Service.RESTORE,)


def test_a_restore_again_before_the_proof_keeps_its_backup_and_drops_its_fence() -> None:
    after, begun = _begun(replace(EQUAL, verified=None), Phase.RESTORE)
    assert begun == {Service.MONITOR_REPLICATION, Service.RESTORE}
    assert after.status(Service.BACKUP) is Status.DONE
    assert (after.fence, after.verified) == (None, None)


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("request_", [Phase.RESTORE, Service.RESTORE])
def test_a_restore_after_the_proof_begins_nothing_but_itself(request_: Phase | Service, *, is_live: bool) -> None:
    after = start(EQUAL, request_, now="now", new_run_id="new", is_live=is_live)
    assert {service for service, row in after.services.items() if row.since == "now"} == {Service.RESTORE}
    assert (after.fence, after.verified) == (FENCE, VERIFIED)
    assert to_run(after, request_, is_live=is_live) == (Service.RESTORE,)
    stopped = with_rows(after, {Service.MONITOR_REPLICATION: Status.STOPPED})
    assert Service.RESTORE in to_resume(stopped, is_live=is_live)


def test_only_the_operators_word_revokes_the_proof() -> None:
    shown = LateShown(sequence=3, operations=1, documents=1, unknown=0, report="r", digest="d")
    ended = LateWord(is_accepted=True, shown=shown, at="then", ended_at="then")
    late = Late(settled=3, shown=shown, words=(ended, LateWord(is_accepted=True, shown=shown, at="now")))
    again = begun_again(replace(EQUAL, late=late, differences_accepted_at=ended.at))
    assert (again.fence, again.verified, again.late) == (None, None, Late(words=(ended,)))
    assert not again.differences_accepted_at
    after, begun = _begun(again, Phase.RESTORE)
    assert begun == {Service.MONITOR_REPLICATION, Service.RESTORE}
    assert after.run_id == EQUAL.run_id


def test_a_proof_is_not_revoked_where_there_is_none_or_something_rests_on_it() -> None:
    with pytest.raises(RefusedError, match="needs a certificate to revoke"):
        begun_again(RESTORING)
    for service in (Service.RESTORE, Service.MONITOR_RESTORE, Service.CLEAN):
        with pytest.raises(RefusedError, match=f"{service} is at work") as refused:
            begun_again(with_rows(EQUAL, {service: Status.WAITING}))
        assert f"d5agent stop {service}" in refused.value.hint


def test_a_backup_asked_for_by_its_own_name_is_made_again() -> None:
    after, begun = _begun(EQUAL, Service.BACKUP)
    assert begun == {Service.BACKUP}
    assert (after.fence, after.verified) == (FENCE, VERIFIED)


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.STOPPED])
def test_a_fence_is_forgotten_when_its_service_begins_again(status: Status) -> None:
    before = with_rows(replace(PROVEN, verified=None), {Service.RESTORE: status, Service.MONITOR_REPLICATION: status})
    assert _started(before, Service.RESTORE).fence == FENCE
    assert _started(before, Service.MONITOR_REPLICATION).fence is None
    assert _started(before, Phase.RESTORE).fence is None


def test_services_that_prove_nothing_leave_the_proofs_alone() -> None:
    for service in (Service.VERIFY, Service.BACKUP, Service.MONITOR_RESTORE, Service.CLEAN, Service.MONITOR_CLEAN):
        after = _started(PROVEN, service)
        assert (after.fence, after.verified) == (FENCE, VERIFIED)


def test_a_row_that_begins_anew_has_lost_its_old_error() -> None:
    row = ServiceState(status=Status.FAILED, since=BEFORE, reason="r", error="e", hint="h")
    after = _started(RESTORING.with_service(Service.RESTORE, row), Service.RESTORE)
    assert after.services[Service.RESTORE] == ServiceState(status=Status.PENDING, since="now")


def test_a_failed_backup_can_be_made_again_while_the_log_is_deleted_since_the_power_off_waits_for_it() -> None:
    state = with_rows(CLEARING, {Service.BACKUP: Status.FAILED})
    assert to_run(_started(state, Service.BACKUP), Service.BACKUP) == (Service.BACKUP,)


def test_a_power_off_that_failed_can_be_asked_for_again_when_all_is_clean() -> None:
    failed = with_rows(FINISHED, {Service.MONITOR_CLEAN: Status.FAILED})
    again = _started(failed, Service.MONITOR_CLEAN)
    assert to_run(again, Service.MONITOR_CLEAN) == (Service.MONITOR_CLEAN,)
    with pytest.raises(RefusedError, match="replication has never been ready"):
        _started(failed, Service.CLEAN)


@pytest.mark.parametrize("service", list(Service))
def test_a_service_asked_for_by_its_name_runs_at_once(service: Service) -> None:
    state = IDLE if service is Service.REPLICATION else PROVEN
    state = replace(state, verified=None) if service is Service.MONITOR_REPLICATION else state
    assert to_run(_started(state, service), service) == (service,)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PENDING])
def test_only_what_is_pending_is_put_to_work(status: Status) -> None:
    assert to_run(with_rows(PROVEN, {Service.RESTORE: status}), Service.RESTORE) == ()


def test_a_clean_runs_its_monitor_and_leaves_the_rest_to_that() -> None:
    after, begun = _begun(EQUAL, Phase.CLEAN)
    assert begun == {Service.MONITOR_RESTORE, Service.CLEAN, Service.MONITOR_CLEAN}
    assert to_run(after, Phase.CLEAN) == (Service.MONITOR_RESTORE,)


def test_verify_belongs_to_no_phase_and_changes_none() -> None:
    after, begun = _begun(READY, Service.VERIFY)
    assert begun == {Service.VERIFY}
    assert after.phase is Phase.REPLICATION
    assert [service for service in Service if phase_of(service) is None] == [Service.VERIFY]


def test_a_phase_never_goes_back() -> None:
    assert _begun(RESTORING, Service.MONITOR_RESTORE)[0].phase is Phase.CLEAN
    waiting = _begun(RESTORING, Service.MONITOR_RESTORE)[0]
    assert _begun(waiting, Service.BACKUP)[0].phase is Phase.CLEAN


def test_a_name_is_a_phase_first_and_then_a_service() -> None:
    assert parse_request("restore") is Phase.RESTORE
    assert parse_request("monitor-clean") is Service.MONITOR_CLEAN
    assert services_of(Service.BACKUP) == (Service.BACKUP,)


@pytest.mark.parametrize("name", ["idle", "", "Restore", "restor", "everything"])
def test_an_unknown_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(RefusedError, match="there is no service or phase called") as caught:
        parse_request(name)
    assert "backup, clean, monitor-clean" in caught.value.hint
    assert "idle" not in caught.value.hint


@pytest.mark.parametrize(
    ("state", "services"),
    [
        (IDLE, ()),
        (STARTING, (Service.REPLICATION,)),
        (RESTORING, (Service.REPLICATION, Service.BACKUP, Service.MONITOR_REPLICATION)),
        (EQUAL, (Service.REPLICATION,)),
        (CLEARING, (Service.REPLICATION, Service.CLEAN, Service.MONITOR_CLEAN)),
        (CLEAN_FAILED, (Service.REPLICATION, Service.MONITOR_CLEAN)),
        (FINISHED, ()),
    ],
)
def test_a_daemon_started_again_carries_on_with_what_is_unfinished(
    state: PhaseState, services: tuple[Service, ...]
) -> None:
    assert to_resume(state) == services


@pytest.mark.parametrize("service", list(Service))
@pytest.mark.parametrize("status", [Status.RUNNING, Status.WAITING])
def test_what_ran_is_resumed(service: Service, status: Status) -> None:
    assert to_resume(with_rows(IDLE, {service: status})) == (service,)


@pytest.mark.parametrize("service", list(Service))
@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.STOPPED])
def test_what_has_ended_is_not_resumed(service: Service, status: Status) -> None:
    assert to_resume(with_rows(IDLE, {service: status})) == ()


@pytest.mark.parametrize("service", sorted(set(Service) - set(STARTED_BY)))
def test_what_is_pending_and_nobody_else_starts_is_resumed(service: Service) -> None:
    assert to_resume(with_rows(IDLE, {service: Status.PENDING})) == (service,)


@pytest.mark.parametrize(("service", "monitor"), STARTED_BY.items())
def test_what_is_pending_is_resumed_when_its_monitor_is_done_and_else_left_to_it(
    service: Service, monitor: Service
) -> None:
    pending = with_rows(IDLE, {service: Status.PENDING})
    assert to_resume(pending) == ()
    for status in Status:
        resumed = to_resume(with_rows(pending, {monitor: status}))
        assert (service in resumed) == (status is Status.DONE)


def test_a_stop_ends_what_is_active_or_pending_and_leaves_the_rest() -> None:
    after = stop(RESTORING, Phase.RESTORE, now="now")
    assert [after.status(service) for service in PHASE_SERVICES[Phase.RESTORE]] == [Status.STOPPED] * 3
    assert after.status(Service.REPLICATION) is Status.RUNNING
    assert stop(EQUAL, Phase.RESTORE, now="now") == EQUAL
    assert stop(IDLE, Service.VERIFY, now="now") == IDLE


def test_a_stop_changes_the_row_of_what_is_pending_or_active_and_no_other() -> None:
    for status in Status:
        before = with_rows(PROVEN, {Service.RESTORE: status, Service.BACKUP: Status.RUNNING})
        after = stop(before, Service.RESTORE, now="now")
        if status in {Status.PENDING, Status.RUNNING, Status.WAITING}:
            assert after.services[Service.RESTORE] == ServiceState(status=Status.STOPPED, since="now")
        else:
            assert after == before
        assert after.status(Service.BACKUP) is Status.RUNNING


def test_the_end_is_idle_with_the_rows_left_to_read_and_nothing_to_resume() -> None:
    rows = dict.fromkeys(Service, Status.DONE)
    before = replace(CLEARING, is_paused=True, opened_stream=True, forced_at=BEFORE, mode="live")
    before = replace(before, differences_accepted_at=BEFORE)
    after = finish(with_rows(before, {**rows, Service.MONITOR_CLEAN: Status.RUNNING}), now="then")
    assert (after.phase, after.since, after.run_id) == (Phase.IDLE, "then", "old")
    assert (after.ready_at, after.fence, after.verified, after.is_clearing) == ("", None, None, False)
    assert (after.is_paused, after.opened_stream, after.forced_at, after.mode) == (False, False, "", "")
    assert after.differences_accepted_at == ""
    assert after.services[Service.MONITOR_CLEAN] == ServiceState(status=Status.DONE, since="then")
    assert {after.status(service) for service in Service} == {Status.DONE}
    assert to_resume(after) == ()
