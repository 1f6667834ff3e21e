"""The phase table: what may be started when, why not, and what a daemon that was started again carries on with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d5agent.core import phase
from d5agent.core.operation import ClusterTime
from d5agent.core.phase import Fence, Phase, PhaseState, Service, ServiceState, Status, Verified
from d5agent.core.phase_codec import decode_phase, encode_phase
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
    for request in (Phase.REPLICATION, Phase.RESTORE, Service.BACKUP):
        with pytest.raises(RefusedError, match="the stored operations are being removed"):
            started(state, request)


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
    assert {state.status(service) for service in phase.services_of(Phase.RESTORE)} == {Status.STOPPED}


def test_a_name_is_a_phase_first_and_an_unknown_one_is_refused() -> None:
    assert isinstance(phase.parse_request("restore"), Phase)
    assert isinstance(phase.parse_request("monitor-clean"), Service)
    for name in ("idle", "restor", ""):
        with pytest.raises(RefusedError, match="there is no service or phase called"):
            phase.parse_request(name)


def test_each_service_but_verify_belongs_to_one_phase() -> None:
    assert [service for service in Service if phase.phase_of(service) is None] == [Service.VERIFY]


def test_the_state_survives_its_file() -> None:
    state = replace(started(VERIFIED, Phase.CLEAN), fence=Fence(sequence=1, cluster_time=ClusterTime(7, 2), at=NOW))
    assert decode_phase(encode_phase(state)) == state


def test_a_newer_state_and_a_damaged_one_are_refused() -> None:
    with pytest.raises(OperatorError, match="another version"):
        decode_phase({"version": 2})
    with pytest.raises(CorruptDataError, match="damaged"):
        decode_phase({"version": 1, "phase": "dancing"})
