"""The table of moves: each one allowed or refused with its reason, and what a restarted daemon carries on with."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from d5agent.core.operation import ClusterTime
from d5agent.core.phase import finish, start, stop, to_resume, to_run
from d5agent.core.services import (
    PHASE_SERVICES,
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
from d5agent.errors import RefusedError


def _rows(**statuses: Status) -> dict[Service, ServiceState]:
    return {Service(n.replace("_", "-")): ServiceState(status=s, since="before") for n, s in statuses.items()}


FENCE: Final = Fence(sequence=1, cluster_time=ClusterTime(1, 1), at="before")
VERIFIED: Final = Verified(sequence=1, operations=1, compared=1, at="before")
IDLE: Final = PhaseState()
STARTING: Final = PhaseState(phase=Phase.REPLICATION, run_id="old", services=_rows(replication=Status.RUNNING))
READY: Final = replace(STARTING, ready_at="before")
_RESTORE_ROWS: Final = {
    **READY.services,
    **_rows(backup=Status.RUNNING, monitor_replication=Status.WAITING, restore=Status.PENDING),
}
RESTORING: Final = replace(READY, phase=Phase.RESTORE, services=_RESTORE_ROWS)
_VERIFIED_ROWS: Final = {
    **READY.services,
    **_rows(backup=Status.DONE, monitor_replication=Status.DONE, restore=Status.DONE),
}
EQUAL: Final = replace(RESTORING, fence=FENCE, verified=VERIFIED, services=_VERIFIED_ROWS)
_CLEAN_ROWS: Final = {
    **_VERIFIED_ROWS,
    **_rows(monitor_restore=Status.DONE, clean=Status.RUNNING, monitor_clean=Status.RUNNING),
}
CLEARING: Final = replace(EQUAL, phase=Phase.CLEAN, is_clearing=True, services=_CLEAN_ROWS)
CLEAN_FAILED: Final = replace(CLEARING, services={**_CLEAN_ROWS, **_rows(clean=Status.FAILED)})
CLEANED: Final = replace(CLEARING, services={**_CLEAN_ROWS, **_rows(clean=Status.DONE, replication=Status.DONE)})
KEPT_ON: Final = replace(CLEANED, services={**CLEANED.services, **_rows(monitor_clean=Status.STOPPED)})
FINISHED: Final = finish(CLEANED, now="then")

STATES: Final = {
    "idle": IDLE,
    "starting": STARTING,
    "ready": READY,
    "restoring": RESTORING,
    "equal": EQUAL,
    "clearing": CLEARING,
    "clean failed": CLEAN_FAILED,
    "cleaned": CLEANED,
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
NEVER_READY: Final = ("replication has never been ready", "type: d5agent start replication, and wait until")
NOT_VERIFIED: Final = ("restore has not verified that both databases are equal", "type: d5agent start monitor-restore")
NO_RESTORE: Final = ("no restore has been started", "type: d5agent start restore")
CLEANING: Final = ("the stored operations are being removed", "let clean finish (d5agent status)")
POWERING_OFF: Final = ("monitor-clean is about to power the instance off", "type: d5agent stop monitor-clean")

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
    "equal": {},
    "clearing": dict.fromkeys((*_REPLICATION, *_NOT_WHILE_CLEANING), CLEANING),
    "clean failed": dict.fromkeys((*_REPLICATION, *_NOT_WHILE_CLEANING), CLEANING),
    "cleaned": {**dict.fromkeys(_REPLICATION, POWERING_OFF), **dict.fromkeys(_NOT_WHILE_CLEANING, CLEANING)},
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
        after = start(STATES[name], request_, now="now", new_run_id="new")
        assert all(after.status(service) is not None for service in services_of(request_))
        return
    with pytest.raises(RefusedError) as caught:
        start(STATES[name], request_, now="now", new_run_id="new")
    reason, hint = expected
    assert caught.value.message == f"{request_} refused: {reason}"
    assert caught.value.hint.startswith(hint)


def _begun(state: PhaseState, request: Phase | Service) -> tuple[PhaseState, set[Service]]:
    """Return the state after a start, and the services whose row became new."""
    after = start(state, request, now="now", new_run_id="new")
    return after, {service for service, row in after.services.items() if row.since == "now"}


def test_the_first_replication_begins_a_run() -> None:
    after, begun = _begun(IDLE, Phase.REPLICATION)
    assert (after.phase, after.run_id, after.since) == (Phase.REPLICATION, "new", "now")
    assert begun == {Service.REPLICATION}
    assert to_run(after, Phase.REPLICATION) == (Service.REPLICATION,)


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


def test_a_restore_runs_backup_and_its_monitor_and_leaves_the_rest_to_that() -> None:
    after, begun = _begun(READY, Phase.RESTORE)
    assert (after.phase, after.run_id, after.since) == (Phase.RESTORE, "old", "now")
    assert begun == {Service.BACKUP, Service.MONITOR_REPLICATION, Service.RESTORE}
    assert to_run(after, Phase.RESTORE) == (Service.BACKUP, Service.MONITOR_REPLICATION)
    again, _ = _begun(after, Service.RESTORE)
    assert to_run(again, Service.RESTORE) == (Service.RESTORE,)


def test_a_restore_again_keeps_its_backup_and_drops_its_proofs() -> None:
    after, begun = _begun(EQUAL, Phase.RESTORE)
    assert begun == {Service.MONITOR_REPLICATION, Service.RESTORE}
    assert (after.fence, after.verified) == (None, None)


def test_a_backup_asked_for_by_its_own_name_is_made_again() -> None:
    after, begun = _begun(EQUAL, Service.BACKUP)
    assert begun == {Service.BACKUP}
    assert (after.fence, after.verified) == (FENCE, VERIFIED)


def test_each_service_drops_only_the_proof_it_makes() -> None:
    assert _begun(EQUAL, Service.MONITOR_REPLICATION)[0].verified == VERIFIED
    assert _begun(EQUAL, Service.RESTORE)[0].fence == FENCE


def test_a_clean_runs_its_monitor_and_leaves_the_rest_to_that() -> None:
    after, begun = _begun(EQUAL, Phase.CLEAN)
    assert begun == {Service.MONITOR_RESTORE, Service.CLEAN, Service.MONITOR_CLEAN}
    assert to_run(after, Phase.CLEAN) == (Service.MONITOR_RESTORE,)


def test_verify_belongs_to_no_phase_and_changes_none() -> None:
    after, begun = _begun(READY, Service.VERIFY)
    assert begun == {Service.VERIFY}
    assert after.phase is Phase.REPLICATION
    assert phase_of(Service.VERIFY) is None


def test_a_phase_never_goes_back() -> None:
    assert _begun(RESTORING, Service.MONITOR_RESTORE)[0].phase is Phase.CLEAN
    waiting = _begun(RESTORING, Service.MONITOR_RESTORE)[0]
    assert _begun(waiting, Service.BACKUP)[0].phase is Phase.CLEAN


def test_a_name_is_a_phase_first_and_then_a_service() -> None:
    assert parse_request("restore") is Phase.RESTORE
    assert parse_request("monitor-clean") is Service.MONITOR_CLEAN
    assert services_of(Service.BACKUP) == (Service.BACKUP,)


@pytest.mark.parametrize("name", ["idle", "", "Restore", "everything"])
def test_an_unknown_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(RefusedError, match="no service or phase") as caught:
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


@pytest.mark.parametrize(("service", "monitor"), STARTED_BY.items())
def test_a_service_whose_monitor_started_it_before_the_crash_is_resumed(service: Service, monitor: Service) -> None:
    waiting = PhaseState(services={service: ServiceState(status=Status.PENDING, since="before")})
    assert service not in to_resume(waiting)
    for status in Status:
        state = waiting.with_service(monitor, ServiceState(status=status, since="before"))
        assert (service in to_resume(state)) == (status is Status.DONE)


def test_a_stop_ends_what_is_active_or_pending_and_leaves_the_rest() -> None:
    after = stop(RESTORING, Phase.RESTORE, now="now")
    assert [after.status(service) for service in PHASE_SERVICES[Phase.RESTORE]] == [Status.STOPPED] * 3
    assert after.status(Service.REPLICATION) is Status.RUNNING
    assert stop(EQUAL, Phase.RESTORE, now="now") == EQUAL
    assert stop(IDLE, Service.VERIFY, now="now") == IDLE


def test_the_last_service_is_done_before_the_power_goes_off() -> None:
    assert FINISHED.phase is Phase.IDLE
    assert FINISHED.status(Service.MONITOR_CLEAN) is Status.DONE
    assert (FINISHED.ready_at, FINISHED.fence, FINISHED.verified, FINISHED.is_clearing) == ("", None, None, False)
    assert FINISHED.status(Service.RESTORE) is Status.DONE
    assert FINISHED.run_id == "old"
