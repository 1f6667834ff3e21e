"""What runs in a failback: services, phases, and the state that says how they stand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from d5agent.errors import RefusedError

if TYPE_CHECKING:
    from d5agent.core.log.operation import ClusterTime


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
MODES: Final = ("drained", "live")
"""How to restore: read-only first, or while applications write on, until the cutover."""


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
    """The proof that the stream is drained: the commit that holds the fence marker, and that marker's own time.

    `read_only_at`: when a cutover had made the application read-only; empty where somebody else did it. `marker`: the
    marker's `_id`; empty in the state of an agent that drew fences without one, which proves nothing.
    """

    sequence: int
    cluster_time: ClusterTime
    at: str
    read_only_at: str = ""
    marker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The proof that both databases are equal, for the log up to and including a commit.

    `certificate`: its key in the store. `digest`: that commit's sha256, which the certificate names.
    """

    sequence: int
    operations: int
    compared: int
    at: str
    certificate: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LateShown:
    """Operations behind the certified end of the log that were reported, and wait for an operator's word (ADR 35).

    `sequence`: the last commit that was read. `documents`: how many an accepting word would write. `unknown`: how many
    operations are of a type that cannot be applied. `report`: its key; `digest`: its sha256.
    """

    sequence: int
    operations: int
    documents: int
    unknown: int
    report: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LateWord:
    """An operator's word on what was reported. `ended_at`: when all was done that it asks for; empty: it is not.

    `different`: how many documents are not what was accepted, although all was done; `result` names them.
    """

    is_accepted: bool
    shown: LateShown
    at: str
    ended_at: str = ""
    different: int = 0
    result: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """What became of operations behind the certified end of the log.

    `settled`: the last commit of which nothing is left to do; -1: none behind the certified end.
    """

    settled: int = -1
    shown: LateShown | None = None
    words: tuple[LateWord, ...] = ()

    @property
    def pending(self) -> LateWord | None:
        """The word that is not carried out yet."""
        return self.words[-1] if self.words and not self.words[-1].ended_at else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOff:
    """The request to switch the machine off. `boot_id`: of the boot that it was made in; it concerns no later one."""

    boot_id: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseState:
    """All that the state file holds. `is_clearing`: the log is being deleted, and nothing can be built upon it.

    `is_paused`: restore is to write nothing until an operator resumes it. `opened_stream`: the agent has switched the
    source's change stream on, or was about to. `forced_at`: when an operator had the run cleaned without a proof.
    `mode`: "drained" or "live", as an operator asked for this run; empty: as the configuration says.
    `differences_accepted_at`: when one accepted the differences that were reported until then.
    """

    phase: Phase = Phase.IDLE
    run_id: str = ""
    since: str = ""
    ready_at: str = ""
    fence: Fence | None = None
    verified: Verified | None = None
    is_clearing: bool = False
    is_paused: bool = False
    opened_stream: bool = False
    forced_at: str = ""
    mode: str = ""
    differences_accepted_at: str = ""
    late: Late = field(default_factory=Late)
    power_off: PowerOff | None = None
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
