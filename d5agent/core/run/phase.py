"""The table of moves: what may be started when, why not, and what a daemon that was started again carries on with."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from d5agent.core.run.services import (
    ACTIVE,
    STARTED_BY,
    Late,
    Phase,
    PhaseState,
    Service,
    ServiceState,
    Status,
    phase_of,
    services_of,
)
from d5agent.errors import RefusedError

_NEVER_READY: Final = (
    "replication has never been ready",
    "type: d5agent start replication, and wait until d5agent status says that it is ready",
)
_NOT_VERIFIED: Final = (
    "restore has not verified that both databases are equal",
    "type: d5agent start monitor-restore, which cleans as soon as restore is verified",
)
_CLEANING: Final = (
    "the stored operations are being removed",
    "let clean finish (d5agent status), then start replication anew",
)

_POWERING_OFF: Final = (
    "monitor-clean is about to power the instance off",
    "type: d5agent stop monitor-clean, then start replication",
)


_NO_RESTORE: Final = ("no restore has been started", "type: d5agent start restore")
_NO_LIVE_RESTORE: Final = ("no live restore is at work", "type: d5agent start restore")
_PAUSED: Final = ("restore is paused", "type: d5agent resume restore, then d5agent cutover")
_CERTIFIED: Final = (
    "the certificate of this run is issued, and MongoDB belongs to the applications",
    "type: d5agent start monitor-restore, which reports what came after it; nothing is written without your word",
)
_CUT_OVER: Final = (
    "the fence is drawn: what came before it is being restored to its end",
    "wait for it: d5agent status; then type: d5agent start monitor-restore",
)


def started_with(request: Service | Phase, state: PhaseState, *, is_live: bool) -> tuple[Service, ...]:
    """Return the services that a request to start is about.

    In live mode the fence waits for the cutover. After the proof a restore is about late operations only (ADR 35).
    """
    wanted = services_of(request)
    if request is Phase.RESTORE and state.verified is not None:
        return (Service.RESTORE,)
    if is_live and request is Phase.RESTORE:
        return tuple(service for service in wanted if service is not Service.MONITOR_REPLICATION)
    return wanted


def _refusal(state: PhaseState, service: Service, *, is_live: bool) -> tuple[str, str] | None:
    """Return why a service may not be started now and what to type instead; None when it may."""
    if service is Service.REPLICATION:
        return _refusal_of_replication(state)
    if service is Service.MONITOR_CLEAN and state.status(service) is Status.FAILED and _is_clean(state):
        return None  # a power-off that failed may be asked for again, though the run is over
    if service is Service.CLEAN and state.forced_at:
        return None
    if not state.ready_at:
        return _NEVER_READY
    if service in {Service.CLEAN, Service.MONITOR_CLEAN}:
        return None if state.verified is not None else _NOT_VERIFIED
    return _refusal_in_restore(state, service, is_live=is_live)


def _refusal_in_restore(state: PhaseState, service: Service, *, is_live: bool) -> tuple[str, str] | None:
    if service is Service.MONITOR_RESTORE:
        return _NO_RESTORE if state.phase is Phase.REPLICATION else None
    if state.is_clearing and service is not Service.BACKUP:  # which needs no log, and which the power-off waits for
        return _CLEANING
    if service is Service.MONITOR_REPLICATION and state.verified is not None:
        return _CERTIFIED
    return _refusal_of_cutover(state) if is_live and service is Service.MONITOR_REPLICATION else None


def _refusal_of_cutover(state: PhaseState) -> tuple[str, str] | None:
    if state.status(Service.RESTORE) not in {Status.PENDING, *ACTIVE}:
        return _NO_LIVE_RESTORE
    if state.fence is not None:
        return _CUT_OVER
    return _PAUSED if state.is_paused else None


def _is_clean(state: PhaseState) -> bool:
    return state.status(Service.CLEAN) is Status.DONE


def _refusal_of_replication(state: PhaseState) -> tuple[str, str] | None:
    if state.status(Service.CLEAN) is Status.DONE and state.status(Service.MONITOR_CLEAN) in ACTIVE:
        return _POWERING_OFF
    return _CLEANING if state.is_clearing and state.status(Service.CLEAN) is not Status.DONE else None


def start(
    state: PhaseState, request: Service | Phase, *, now: str, new_run_id: str, is_live: bool = False
) -> PhaseState:
    """Return the state after the request to start a service or a phase; RefusedError says why not.

    What already runs is left alone; what its monitor starts becomes pending, as does all else, until it runs. In live
    mode restore begins by itself, and the start of monitor-replication is the cutover.
    """
    wanted = started_with(request, state, is_live=is_live)
    for service in wanted:
        refusal = _refusal(state, service, is_live=is_live)
        if refusal is not None:
            reason, hint = refusal
            raise RefusedError(f"{request} refused: {reason}", hint=hint)
    cleaned = state.status(Service.CLEAN) is Status.DONE
    if Service.REPLICATION in wanted and (state.phase is Phase.IDLE or cleaned):
        state = PhaseState(phase=Phase.REPLICATION, run_id=new_run_id, since=now)
    phase = request if isinstance(request, Phase) else phase_of(request)
    if phase is not None and list(Phase).index(phase) > list(Phase).index(state.phase):
        state = replace(state, phase=phase, since=now)
    if request is Phase.RESTORE and state.verified is None and state.status(Service.RESTORE) not in ACTIVE:
        state = _begun_anew(state, is_live=is_live)
    for service in wanted:
        if state.status(service) not in ACTIVE and not _is_kept(state, service, request):
            state = _forget_fence(state, service)
            state = state.with_service(service, ServiceState(status=Status.PENDING, since=now))
    return state


def _begun_anew(state: PhaseState, *, is_live: bool) -> PhaseState:
    """Return the state for an operator's new restore, which is not paused.

    A live one needs a new cutover: the application may have written meanwhile.
    """
    state = replace(state, is_paused=False)
    if not is_live or state.status(Service.MONITOR_REPLICATION) in ACTIVE:
        return state
    services = dict(state.services)
    services.pop(Service.MONITOR_REPLICATION, None)
    return replace(state, fence=None, services=services)


def _forget_fence(state: PhaseState, service: Service) -> PhaseState:
    """Drop what a service that begins anew is to prove: nobody may build upon the old fence meanwhile.

    The proof that both sides were equal is never dropped by a start: applications trust it (ADR 35).
    """
    return replace(state, fence=None) if service is Service.MONITOR_REPLICATION else state


def _is_kept(state: PhaseState, service: Service, request: Service | Phase) -> bool:
    """Whether a finished service stays so: a whole phase started again does not dump its databases again."""
    return service is Service.BACKUP and isinstance(request, Phase) and state.status(service) is Status.DONE


def to_run(state: PhaseState, request: Service | Phase, *, is_live: bool = False) -> tuple[Service, ...]:
    """Return the services that a request puts to work now; a phase leaves to its monitors what they start."""
    wanted = started_with(request, state, is_live=is_live)
    if isinstance(request, Phase) and len(wanted) > 1:
        wanted = tuple(service for service in wanted if _monitor_of(service, is_live=is_live) is None)
    return tuple(service for service in wanted if state.status(service) is Status.PENDING)


def to_resume(state: PhaseState, *, is_live: bool = False) -> tuple[Service, ...]:
    """Return the services that a daemon that was started again carries on with, without anybody's help."""
    return tuple(service for service in Service if _is_unfinished(state, service, is_live=is_live))


def _is_unfinished(state: PhaseState, service: Service, *, is_live: bool) -> bool:
    status, monitor = state.status(service), _monitor_of(service, is_live=is_live)
    if service is Service.CLEAN and state.forced_at:
        monitor = None
    if service is Service.RESTORE and state.verified is not None:
        monitor = None  # its fence was drawn long ago
    if status is Status.PENDING and monitor is not None:
        # Its monitor starts it, unless it has done so, and a crash came before the service could say that it runs.
        return state.status(monitor) is Status.DONE
    return status is Status.PENDING or status in ACTIVE


def _monitor_of(service: Service, *, is_live: bool) -> Service | None:
    """Return the monitor that starts a service when its time has come; a live restore needs none."""
    return None if is_live and service is Service.RESTORE else STARTED_BY.get(service)


def stop(state: PhaseState, request: Service | Phase, *, now: str) -> PhaseState:
    """Return the state after the request to stop: what is pending or active becomes stopped, all else stays."""
    for service in services_of(request):
        if state.status(service) in {Status.PENDING, *ACTIVE}:
            state = state.with_service(service, ServiceState(status=Status.STOPPED, since=now))
    return state


def finish(state: PhaseState, *, now: str, last: Service = Service.MONITOR_CLEAN) -> PhaseState:
    """Return the state after the last service of a failback, which is done then: idle, the rows left to read."""
    state = state.with_service(last, ServiceState(status=Status.DONE, since=now))
    return replace(
        state,
        phase=Phase.IDLE,
        since=now,
        ready_at="",
        fence=None,
        verified=None,
        is_clearing=False,
        is_paused=False,
        opened_stream=False,
        forced_at="",
        mode="",
        differences_accepted_at="",
        late=Late(),
    )


def begun_again(state: PhaseState) -> PhaseState:
    """Return the state for a whole restore after one that was undone: the operator says that its proof is void.

    RefusedError: there is no proof, or something may be at work on its strength.
    """
    if state.verified is None:
        raise RefusedError("restore refused: --again needs a certificate to revoke", hint="type: d5agent start restore")
    for service in (Service.RESTORE, Service.MONITOR_RESTORE, Service.CLEAN):
        if state.status(service) in ACTIVE:
            raise RefusedError(
                f"restore refused: {service} is at work", hint=f"type: d5agent stop {service}, then again"
            )
    ended = tuple(word for word in state.late.words if word.ended_at)
    return replace(state, verified=None, fence=None, late=Late(words=ended), differences_accepted_at="")
