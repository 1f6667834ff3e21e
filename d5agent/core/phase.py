"""Phases and services: what runs, what may be started when, and why a move is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from d5agent.errors import RefusedError

if TYPE_CHECKING:
    from d5agent.core.operation import ClusterTime


class Service(StrEnum):
    """The services, by the names that operators type."""

    REPLICATION = "replication"
    BACKUP = "backup"
    MONITOR_REPLICATION = "monitor-replication"
    RESTORE = "restore"
    VERIFY = "verify"
    MONITOR_RESTORE = "monitor-restore"
    CLEAN = "clean"
    MONITOR_CLEAN = "monitor-clean"


class Phase(StrEnum):
    """What people call the state of a failback."""

    IDLE = "idle"
    REPLICATION = "replication"
    RESTORE = "restore"
    CLEAN = "clean"


class Status(StrEnum):
    """How a service stands. Pending: it will be started by another; waiting: it runs, and says what it waits for."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


PHASE_SERVICES: Final[dict[Phase, tuple[Service, ...]]] = {
    Phase.IDLE: (),
    Phase.REPLICATION: (Service.REPLICATION,),
    Phase.RESTORE: (Service.BACKUP, Service.MONITOR_REPLICATION, Service.RESTORE),
    Phase.CLEAN: (Service.MONITOR_RESTORE, Service.CLEAN, Service.MONITOR_CLEAN),
}
STARTED_BY: Final = {
    Service.RESTORE: Service.MONITOR_REPLICATION,
    Service.CLEAN: Service.MONITOR_RESTORE,
    Service.MONITOR_CLEAN: Service.MONITOR_RESTORE,
}
"""The services that a monitor starts when their time has come, and that monitor."""

ACTIVE: Final = frozenset({Status.RUNNING, Status.WAITING})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """One service's row in the state file. `since` is when it got its status, in ISO 8601, UTC."""

    status: Status
    since: str
    reason: str = ""
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """The proof that the stream is drained: the commit that holds the agent's last mark, and that mark's time."""

    sequence: int
    cluster_time: ClusterTime
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The proof that both databases are equal, for the log up to and including a commit."""

    sequence: int
    operations: int
    compared: int
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseState:
    """All that the state file holds. `is_clearing`: the log is being deleted, and nothing can be built upon it."""

    phase: Phase = Phase.IDLE
    run_id: str = ""
    since: str = ""
    ready_at: str = ""
    fence: Fence | None = None
    verified: Verified | None = None
    is_clearing: bool = False
    services: dict[Service, ServiceState] = field(default_factory=dict)

    def status(self, service: Service) -> Status | None:
        """Return how a service stands; None when it has not been asked for in this run."""
        row = self.services.get(service)
        return None if row is None else row.status

    def with_service(self, service: Service, row: ServiceState) -> PhaseState:
        """Return the state with one row replaced."""
        return replace(self, services={**self.services, service: row})


def parse_request(name: str) -> Service | Phase:
    """Return the phase or the service of that name; a phase where both are called so. RefusedError: no such thing."""
    for kind in (Phase, Service):
        if name in set(kind) and name != Phase.IDLE:
            return kind(name)
    names = ", ".join(sorted({*Service, *Phase} - {Phase.IDLE.value}))
    raise RefusedError(f"there is no service or phase called {name!r}", hint=f"one of: {names}")


def services_of(request: Service | Phase) -> tuple[Service, ...]:
    """Return the services that a request is about."""
    return PHASE_SERVICES[request] if isinstance(request, Phase) else (request,)


def phase_of(service: Service) -> Phase | None:
    """Return the phase that a service belongs to; None for one that belongs to none (verify)."""
    return next((phase for phase, services in PHASE_SERVICES.items() if service in services), None)


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


def _refusal(state: PhaseState, service: Service) -> tuple[str, str] | None:
    """Return why a service may not be started now and what to type instead; None when it may."""
    if service is Service.REPLICATION:
        return _refusal_of_replication(state)
    if service is Service.MONITOR_CLEAN and state.status(service) is Status.FAILED and _is_clean(state):
        return None  # a power-off that failed may be asked for again, though the run is over
    if not state.ready_at:
        return _NEVER_READY
    if service in {Service.CLEAN, Service.MONITOR_CLEAN}:
        return None if state.verified is not None else _NOT_VERIFIED
    if service is Service.MONITOR_RESTORE:
        no_restore = state.phase is Phase.REPLICATION
        return ("no restore has been started", "type: d5agent start restore") if no_restore else None
    return _CLEANING if state.is_clearing else None


def _is_clean(state: PhaseState) -> bool:
    return state.status(Service.CLEAN) is Status.DONE


def _refusal_of_replication(state: PhaseState) -> tuple[str, str] | None:
    if state.status(Service.CLEAN) is Status.DONE and state.status(Service.MONITOR_CLEAN) in ACTIVE:
        return _POWERING_OFF
    return _CLEANING if state.is_clearing and state.status(Service.CLEAN) is not Status.DONE else None


def start(state: PhaseState, request: Service | Phase, *, now: str, new_run_id: str) -> PhaseState:
    """Return the state after the request to start a service or a phase; RefusedError says why not.

    What already runs is left alone; what its monitor starts becomes pending, as does all else, until it runs.
    """
    wanted = services_of(request)
    for service in wanted:
        refusal = _refusal(state, service)
        if refusal is not None:
            reason, hint = refusal
            raise RefusedError(f"{request} refused: {reason}", hint=hint)
    cleaned = state.status(Service.CLEAN) is Status.DONE
    if Service.REPLICATION in wanted and (state.phase is Phase.IDLE or cleaned):
        state = PhaseState(phase=Phase.REPLICATION, run_id=new_run_id, since=now)
    phase = request if isinstance(request, Phase) else phase_of(request)
    if phase is not None and list(Phase).index(phase) > list(Phase).index(state.phase):
        state = replace(state, phase=phase, since=now)
    for service in wanted:
        if state.status(service) not in ACTIVE and not _is_kept(state, service, request):
            state = _forget_proof(state, service)
            state = state.with_service(service, ServiceState(status=Status.PENDING, since=now))
    return state


def _forget_proof(state: PhaseState, service: Service) -> PhaseState:
    """Drop what a service that begins anew is to prove: nobody may build upon the old proof meanwhile."""
    if service is Service.MONITOR_REPLICATION:
        return replace(state, fence=None)
    return replace(state, verified=None) if service is Service.RESTORE else state


def _is_kept(state: PhaseState, service: Service, request: Service | Phase) -> bool:
    """Whether a finished service stays so: a whole phase started again does not dump its databases again."""
    return service is Service.BACKUP and isinstance(request, Phase) and state.status(service) is Status.DONE


def to_run(state: PhaseState, request: Service | Phase) -> tuple[Service, ...]:
    """Return the services that a request puts to work now; a phase leaves to its monitors what they start."""
    wanted = services_of(request)
    if isinstance(request, Phase) and len(wanted) > 1:
        wanted = tuple(service for service in wanted if service not in STARTED_BY)
    return tuple(service for service in wanted if state.status(service) is Status.PENDING)


def to_resume(state: PhaseState) -> tuple[Service, ...]:
    """Return the services that a daemon that was started again carries on with, without anybody's help."""
    return tuple(service for service in Service if _is_unfinished(state, service))


def _is_unfinished(state: PhaseState, service: Service) -> bool:
    status = state.status(service)
    if status is Status.PENDING and service in STARTED_BY:
        # Its monitor starts it, unless it has done so, and a crash came before the service could say that it runs.
        return state.status(STARTED_BY[service]) is Status.DONE
    return status is Status.PENDING or status in ACTIVE


def stop(state: PhaseState, request: Service | Phase, *, now: str) -> PhaseState:
    """Return the state after the request to stop: what is pending or active becomes stopped, all else stays."""
    for service in services_of(request):
        if state.status(service) in {Status.PENDING, *ACTIVE}:
            state = state.with_service(service, ServiceState(status=Status.STOPPED, since=now))
    return state


def finish(state: PhaseState, *, now: str) -> PhaseState:
    """Return the state after the last service of a failback: idle, with the rows left to read.

    The last service counts as done before it has asked for the power-off: a machine that boots again must not find an
    unfinished service that switches it off.
    """
    state = state.with_service(Service.MONITOR_CLEAN, ServiceState(status=Status.DONE, since=now))
    return replace(state, phase=Phase.IDLE, since=now, ready_at="", fence=None, verified=None, is_clearing=False)
