"""The phase table: what may be started when, why not, and what a daemon that was started again carries on with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from d5agent.core import phase, phase_codec
from d5agent.core.operation import ClusterTime
from d5agent.core.phase_codec import decode_phase, encode_phase
from d5agent.core.services import (
    STARTED_BY,
    Fence,
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
from d5agent.errors import CorruptDataError, OperatorError, RefusedError

NOW = "2026-11-02T08:00:00+00:00"
READY = PhaseState(phase=Phase.REPLICATION, run_id="run", since=NOW, ready_at=NOW)
VERIFIED = replace(
    READY, phase=Phase.RESTORE, verified=Verified(sequence=3, operations=9, compared=4, at=NOW)
).with_service(Service.RESTORE, ServiceState(status=Status.DONE, since=NOW))


def started(state: PhaseState, request: Service | Phase) -> PhaseState:
    return phase.start(state, request, now=NOW, new_run_id="new run")


def with_status(state: PhaseState, service: Service, status: Status) -> PhaseState:
    return state.with_service(service, ServiceState(status=status, since=NOW))


def test_replication_begins_a_run_of_its_own() -> None:
    state = started(PhaseState(), Phase.REPLICATION)
    assert (state.phase, state.run_id) == (Phase.REPLICATION, "new run")
    assert phase.to_run(state, Phase.REPLICATION) == (Service.REPLICATION,)


def test_replication_that_was_stopped_goes_on_with_its_run() -> None:
    state = with_status(READY, Service.REPLICATION, Status.STOPPED)
    assert started(state, Phase.REPLICATION).run_id == "run"


@pytest.mark.parametrize("request_", [Phase.RESTORE, Service.BACKUP, Service.MONITOR_REPLICATION, Service.VERIFY])
def test_nothing_of_a_restore_starts_before_replication_was_ready(request_: Service | Phase) -> None:
    with pytest.raises(RefusedError, match=f"{request_} refused: replication has never been ready") as refused:
        started(PhaseState(), request_)
    assert "d5agent start replication" in refused.value.hint


def test_a_restore_puts_backup_and_the_fence_to_work_and_waits_with_the_rest() -> None:
    state = started(READY, Phase.RESTORE)
    assert state.phase is Phase.RESTORE
    assert phase.to_run(state, Phase.RESTORE) == (Service.BACKUP, Service.MONITOR_REPLICATION)
    assert state.status(Service.RESTORE) is Status.PENDING


def test_a_restore_started_again_forgets_its_proof_and_keeps_its_backup() -> None:
    state = with_status(VERIFIED, Service.BACKUP, Status.DONE)
    state = replace(state, fence=Fence(sequence=1, cluster_time=ClusterTime(1, 1), at=NOW))
    again = started(state, Phase.RESTORE)
    assert again.verified is None
    assert again.fence is None
    assert again.status(Service.BACKUP) is Status.DONE


def test_clean_is_refused_until_the_restore_is_verified() -> None:
    with pytest.raises(RefusedError, match="no restore has been started"):
        started(READY, Phase.CLEAN)
    with pytest.raises(RefusedError, match="restore has not verified that both databases are equal") as refused:
        started(replace(READY, phase=Phase.RESTORE), Phase.CLEAN)
    assert "monitor-restore" in refused.value.hint
    assert phase.to_run(started(VERIFIED, Phase.CLEAN), Phase.CLEAN) == (Service.MONITOR_RESTORE,)


def test_while_the_log_is_deleted_nothing_builds_upon_it() -> None:
    state = replace(with_status(VERIFIED, Service.CLEAN, Status.RUNNING), is_clearing=True)
    for request in (Phase.REPLICATION, Phase.RESTORE, Service.VERIFY):
        with pytest.raises(RefusedError, match="the stored operations are being removed"):
            started(state, request)


def test_a_failed_backup_can_be_made_again_while_the_log_is_deleted_since_the_power_off_waits_for_it() -> None:
    state = replace(with_status(VERIFIED, Service.BACKUP, Status.FAILED), is_clearing=True)
    assert phase.to_run(started(state, Service.BACKUP), Service.BACKUP) == (Service.BACKUP,)


def test_replication_does_not_start_on_a_machine_about_to_be_switched_off() -> None:
    state = with_status(VERIFIED, Service.CLEAN, Status.DONE)
    state = with_status(state, Service.MONITOR_CLEAN, Status.WAITING)
    with pytest.raises(RefusedError, match="power the instance off"):
        started(state, Phase.REPLICATION)
    idle = phase.finish(state, now=NOW)
    assert idle.status(Service.MONITOR_CLEAN) is Status.DONE
    assert phase.to_resume(idle) == ()
    assert started(idle, Phase.REPLICATION).run_id == "new run"


def test_a_daemon_started_again_carries_on_with_what_was_unfinished() -> None:
    state = started(READY, Phase.RESTORE)
    state = with_status(state, Service.REPLICATION, Status.RUNNING)
    assert phase.to_resume(state) == (Service.REPLICATION, Service.BACKUP, Service.MONITOR_REPLICATION)
    state = with_status(state, Service.MONITOR_REPLICATION, Status.DONE)
    assert Service.RESTORE in phase.to_resume(state), "its monitor has started it; a crash came before it said so"
    for ended in (Status.FAILED, Status.STOPPED):
        assert Service.BACKUP not in phase.to_resume(with_status(state, Service.BACKUP, ended))


def test_a_stop_reaches_what_is_pending_too() -> None:
    state = phase.stop(started(READY, Phase.RESTORE), Phase.RESTORE, now=NOW)
    assert {state.status(service) for service in services_of(Phase.RESTORE)} == {Status.STOPPED}


def test_a_name_is_a_phase_first_and_an_unknown_one_is_refused() -> None:
    assert isinstance(parse_request("restore"), Phase)
    assert isinstance(parse_request("monitor-clean"), Service)
    for name in ("idle", "restor", ""):
        with pytest.raises(RefusedError, match="there is no service or phase called"):
            parse_request(name)


def test_each_service_but_verify_belongs_to_one_phase() -> None:
    assert [service for service in Service if phase_of(service) is None] == [Service.VERIFY]


def test_the_state_survives_its_file() -> None:
    state = replace(started(VERIFIED, Phase.CLEAN), fence=Fence(sequence=1, cluster_time=ClusterTime(7, 2), at=NOW))
    assert decode_phase(encode_phase(state)) == state


def test_a_newer_state_and_a_damaged_one_are_refused() -> None:
    with pytest.raises(OperatorError, match="another version"):
        decode_phase({"version": 2})
    with pytest.raises(CorruptDataError, match="damaged"):
        decode_phase({"version": 1, "phase": "dancing"})


CAME_LATER = {"is_paused", "opened_stream", "forced_at", "power_off"}
LATER = "2026-11-02T09:00:00+00:00"
FENCE = Fence(sequence=7, cluster_time=ClusterTime(1_793_600_000, 3), at=NOW)
PROOF = Verified(sequence=7, operations=90, compared=12, at=NOW)
IDLE = PhaseState()
CAPTURING = replace(READY, ready_at="")
RESTORING = replace(READY, phase=Phase.RESTORE, fence=FENCE)
PROVEN = replace(RESTORING, verified=PROOF)
CLEARING = replace(PROVEN, phase=Phase.CLEAN, is_clearing=True)
NEVER_READY = (
    "replication has never been ready",
    "type: d5agent start replication, and wait until d5agent status says that it is ready",
)
NOT_VERIFIED = (
    "restore has not verified that both databases are equal",
    "type: d5agent start monitor-restore, which cleans as soon as restore is verified",
)
NO_RESTORE = ("no restore has been started", "type: d5agent start restore")
BEING_CLEARED = (
    "the stored operations are being removed",
    "let clean finish (d5agent status), then start replication anew",
)
POWERING_OFF = (
    "monitor-clean is about to power the instance off",
    "type: d5agent stop monitor-clean, then start replication",
)


def with_rows(state: PhaseState, rows: dict[Service, Status]) -> PhaseState:
    for service, status in rows.items():
        state = state.with_service(service, ServiceState(status=status, since=NOW))
    return state


def begin(state: PhaseState, request: Service | Phase) -> PhaseState:
    return phase.start(state, request, now=LATER, new_run_id="new run")


AFTER_REPLICATION = [request for request in (*Service, *Phase) if request not in {"idle", "replication"}]
NEEDS_PROOF = (Service.CLEAN, Service.MONITOR_CLEAN, Phase.CLEAN)
BUILDS_ON_THE_LOG = (
    Service.BACKUP,
    Service.MONITOR_REPLICATION,
    Service.RESTORE,
    Service.VERIFY,
    Phase.RESTORE,
)
CLEANED = with_rows(CLEARING, {Service.CLEAN: Status.DONE, Service.MONITOR_CLEAN: Status.RUNNING})


@pytest.mark.parametrize(
    ("state", "request_", "reason_and_hint"),
    [
        *((IDLE, request, NEVER_READY) for request in AFTER_REPLICATION),
        *((CAPTURING, request, NEVER_READY) for request in AFTER_REPLICATION),
        *((READY, request, NOT_VERIFIED) for request in (Service.CLEAN, Service.MONITOR_CLEAN)),
        (READY, Phase.CLEAN, NO_RESTORE),
        *((RESTORING, request, NOT_VERIFIED) for request in NEEDS_PROOF),
        (READY, Service.MONITOR_RESTORE, NO_RESTORE),
        *((CLEARING, request, BEING_CLEARED) for request in BUILDS_ON_THE_LOG if request is not Service.BACKUP),
        *((CLEARING, request, BEING_CLEARED) for request in (Service.REPLICATION, Phase.REPLICATION)),
        *((CLEANED, request, POWERING_OFF) for request in (Service.REPLICATION, Phase.REPLICATION)),
    ],
)
def test_a_start_is_refused_with_its_reason_and_what_to_type_instead(
    state: PhaseState, request_: Service | Phase, reason_and_hint: tuple[str, str]
) -> None:
    with pytest.raises(RefusedError) as refused:
        begin(state, request_)
    assert (refused.value.message, refused.value.hint) == (
        f"{request_} refused: {reason_and_hint[0]}",
        reason_and_hint[1],
    )


@pytest.mark.parametrize(
    ("state", "request_", "expected"),
    [
        (IDLE, Service.REPLICATION, Phase.REPLICATION),
        (IDLE, Phase.REPLICATION, Phase.REPLICATION),
        *((READY, request, Phase.RESTORE) for request in BUILDS_ON_THE_LOG if request is not Service.VERIFY),
        (READY, Service.VERIFY, Phase.REPLICATION),
        (RESTORING, Service.VERIFY, Phase.RESTORE),
        (RESTORING, Service.MONITOR_RESTORE, Phase.CLEAN),
        *((PROVEN, request, Phase.CLEAN) for request in NEEDS_PROOF),
        *((CLEARING, request, Phase.CLEAN) for request in NEEDS_PROOF),
        (CLEARING, Service.MONITOR_RESTORE, Phase.CLEAN),
    ],
)
def test_a_start_that_is_allowed_makes_its_services_pending_and_moves_the_phase(
    state: PhaseState, request_: Service | Phase, expected: Phase
) -> None:
    after = begin(state, request_)
    assert after.phase is expected
    assert {after.status(service) for service in services_of(request_)} == {Status.PENDING}
    assert {after.services[service].since for service in services_of(request_)} == {LATER}
    assert after.since == (LATER if state.phase is not expected else state.since)


@pytest.mark.parametrize("status", [Status.RUNNING, Status.WAITING])
def test_what_already_runs_is_left_alone(status: Status) -> None:
    before = with_rows(PROVEN, {Service.RESTORE: status, Service.MONITOR_REPLICATION: status})
    after = begin(before, Service.RESTORE)
    assert after.services == before.services
    assert (after.fence, after.verified) == (FENCE, PROOF)


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.STOPPED])
def test_a_proof_is_forgotten_when_the_service_that_is_to_give_it_begins_anew(status: Status) -> None:
    before = with_rows(PROVEN, {Service.RESTORE: status, Service.MONITOR_REPLICATION: status})
    again = begin(before, Service.RESTORE)
    assert (again.fence, again.verified) == (FENCE, None)
    again = begin(before, Service.MONITOR_REPLICATION)
    assert (again.fence, again.verified) == (None, PROOF)
    again = begin(before, Phase.RESTORE)
    assert (again.fence, again.verified) == (None, None)


def test_services_that_prove_nothing_leave_the_proofs_alone() -> None:
    for service in (Service.VERIFY, Service.BACKUP, Service.MONITOR_RESTORE, Service.CLEAN, Service.MONITOR_CLEAN):
        after = begin(PROVEN, service)
        assert (after.fence, after.verified) == (FENCE, PROOF)


def test_a_row_that_begins_anew_has_lost_its_old_error() -> None:
    row = ServiceState(status=Status.FAILED, since=NOW, reason="r", error="e", hint="h")
    after = begin(RESTORING.with_service(Service.RESTORE, row), Service.RESTORE)
    assert after.services[Service.RESTORE] == ServiceState(status=Status.PENDING, since=LATER)


@pytest.mark.parametrize("service", list(Service))
def test_a_service_asked_for_by_its_name_runs_at_once(service: Service) -> None:
    state = IDLE if service is Service.REPLICATION else PROVEN
    assert phase.to_run(begin(state, service), service) == (service,)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PENDING])
def test_only_what_is_pending_is_put_to_work(status: Status) -> None:
    assert phase.to_run(with_rows(PROVEN, {Service.RESTORE: status}), Service.RESTORE) == ()


@pytest.mark.parametrize("service", list(Service))
@pytest.mark.parametrize("status", [Status.RUNNING, Status.WAITING])
def test_what_ran_is_resumed(service: Service, status: Status) -> None:
    assert phase.to_resume(with_rows(IDLE, {service: status})) == (service,)


@pytest.mark.parametrize("service", list(Service))
@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.STOPPED])
def test_what_has_ended_is_not_resumed(service: Service, status: Status) -> None:
    assert phase.to_resume(with_rows(IDLE, {service: status})) == ()


@pytest.mark.parametrize("service", sorted(set(Service) - set(STARTED_BY)))
def test_what_is_pending_and_nobody_else_starts_is_resumed(service: Service) -> None:
    assert phase.to_resume(with_rows(IDLE, {service: Status.PENDING})) == (service,)


@pytest.mark.parametrize(("service", "monitor"), list(STARTED_BY.items()))
def test_what_is_pending_is_resumed_when_its_monitor_is_done_and_else_left_to_it(
    service: Service, monitor: Service
) -> None:
    pending = with_rows(IDLE, {service: Status.PENDING})
    assert phase.to_resume(pending) == ()
    for status in Status:
        resumed = phase.to_resume(with_rows(pending, {monitor: status}))
        assert (service in resumed) == (status is Status.DONE)


def test_a_stop_ends_what_is_pending_or_active_and_leaves_all_else() -> None:
    for status in Status:
        before = with_rows(RESTORING, {Service.RESTORE: status, Service.BACKUP: Status.RUNNING})
        after = phase.stop(before, Service.RESTORE, now=LATER)
        if status in {Status.PENDING, Status.RUNNING, Status.WAITING}:
            assert after.services[Service.RESTORE] == ServiceState(status=Status.STOPPED, since=LATER)
        else:
            assert after == before
        assert after.status(Service.BACKUP) is Status.RUNNING


def test_the_end_is_idle_with_the_rows_left_to_read_and_nothing_to_resume() -> None:
    rows = dict.fromkeys(Service, Status.DONE)
    before = with_rows(CLEARING, {**rows, Service.MONITOR_CLEAN: Status.RUNNING})
    after = phase.finish(before, now=LATER)
    assert (after.phase, after.since, after.run_id) == (Phase.IDLE, LATER, "run")
    assert (after.ready_at, after.fence, after.verified, after.is_clearing) == ("", None, None, False)
    assert after.services[Service.MONITOR_CLEAN] == ServiceState(status=Status.DONE, since=LATER)
    assert {after.status(service) for service in Service} == {Status.DONE}
    assert phase.to_resume(after) == ()


def decode_written(state: PhaseState) -> PhaseState:
    return decode_phase(json.loads(json.dumps(encode_phase(state))))


def test_a_row_keeps_its_reason_error_and_hint_and_a_time_its_type() -> None:
    row = ServiceState(status=Status.FAILED, since=NOW, reason="why", error="what", hint="how")
    after = decode_written(PROVEN.with_service(Service.VERIFY, row))
    assert after.services[Service.VERIFY] == row
    assert after.services[Service.VERIFY].status is Status.FAILED
    assert after.fence is not None
    assert isinstance(after.fence.cluster_time, ClusterTime)


@pytest.mark.parametrize("version", [phase_codec.VERSION + 1, phase_codec.VERSION - 1, "1", None])
def test_a_state_of_another_version_is_refused_and_not_called_damaged(version: object) -> None:
    with pytest.raises(OperatorError, match="the phase state is of another version") as refused:
        decode_phase({**encode_phase(READY), "version": version})
    assert not isinstance(refused.value, CorruptDataError)
    assert refused.value.facts == {"version": version}
    assert refused.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "lunch"},
        {"fence": {"sequence": 1}},
        {"fence": {"sequence": 1, "cluster_time": [1], "at": ""}},
        {"fence": "yes"},
        {"verified": {"sequence": 1, "surprise": 2}},
        {"services": []},
        {"services": {"lunch": {"status": "done", "since": ""}}},
        {"services": {"restore": {"status": "eaten", "since": ""}}},
        {"services": {"restore": {"since": ""}}},
        {"services": {"restore": None}},
    ],
)
def test_garbage_in_a_state_is_called_damage_with_the_way_out(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptDataError, match="the phase state is damaged") as damaged:
        decode_phase({**encode_phase(PROVEN), **change})
    assert "mirror" in damaged.value.hint


@pytest.mark.parametrize("name", [name for name in encode_phase(PROVEN) if name not in {"version", *CAME_LATER}])
def test_a_state_that_lacks_a_field_is_damaged(name: str) -> None:
    value = encode_phase(PROVEN)
    del value[name]
    with pytest.raises(CorruptDataError):
        decode_phase(value)


def test_a_power_off_that_failed_can_be_asked_for_again_when_all_is_clean() -> None:
    idle = phase.finish(with_status(VERIFIED, Service.CLEAN, Status.DONE), now=NOW)
    failed = with_status(idle, Service.MONITOR_CLEAN, Status.FAILED)
    again = started(failed, Service.MONITOR_CLEAN)
    assert phase.to_run(again, Service.MONITOR_CLEAN) == (Service.MONITOR_CLEAN,)
    with pytest.raises(RefusedError, match="replication has never been ready"):
        started(failed, Service.CLEAN)
