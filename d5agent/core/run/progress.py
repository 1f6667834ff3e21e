"""How far each service is, as it reports it: frozen values, each with one owner; whoever reads one reads attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from d5agent.core.run.services import Service

if TYPE_CHECKING:
    from d5agent.core.log.operation import ClusterTime
    from d5agent.core.run.hold import Block
    from d5agent.core.run.horizon import Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureProgress:
    """What replication has stored, and how far it has read. `last_cluster_time`: the saved position's.

    `seen_at`: when it was reported, by the monotonic clock. `is_drained`: whether replication has ended with nothing
    left unread; None: it has not ended.
    """

    operations: int
    bytes: int
    segments: int
    last_cluster_time: ClusterTime
    is_caught_up: bool
    operations_after_fence: int
    queue_bytes: int
    seen_at: float
    is_drained: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizonProgress:
    """How far reading is behind the source, and how long the saved position can be resumed from; None: not known."""

    lag_seconds: float
    safe_seconds: float | None
    retention_seconds: int | None
    retention_basis: Basis | None
    catch_up_rate: float | None
    caught_up_in_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideProgress:
    """How far the dumps of one side are; `documents` and `bytes` so far."""

    databases: int
    databases_stored: int
    documents: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupProgress:
    """How far backup is with each side; None: it has its manifest, or has not begun."""

    target: SideProgress | None = None
    source: SideProgress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayProgress:
    """How far the replay is in what is known of the log; None: nobody can know yet."""

    operations_total: int
    operations_applied: int
    documents_written: int
    bytes_total: int
    bytes_applied: int
    operations_per_second: float | None
    eta_seconds: float | None
    lanes: float | None
    lanes_allowed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonProgress:
    """How far a comparison of documents is; `compared_total` None: nobody knows."""

    compared: int
    compared_total: int | None
    different: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideProgress:
    """How far the comparison of what the log does not touch is, and what differs there."""

    is_complete: bool
    collections: int
    collections_compared: int
    compared: int
    missing: int
    different: int
    extra: int
    unchecked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreProgress:
    """How far restore is; None: it has not come to that. `log_…`: what the log held when it was checked.

    `can_cutover`: whether a cutover takes seconds from now on; a drained restore does not say. `refused`: lines on the
    first of `refused_documents`. `pages` of `pages_total` of accepted late operations are written.
    """

    target_write_block: Block | None = None
    log_operations: int | None = None
    log_bytes: int | None = None
    replay: ReplayProgress | None = None
    lag_seconds: float | None = None
    in_doubt: int | None = None
    comparison: ComparisonProgress | None = None
    can_cutover: bool | None = None
    generation: int | None = None
    carried: int | None = None
    refused_documents: int | None = None
    refused: tuple[str, ...] = ()
    pages: int | None = None
    pages_total: int | None = None
    outside: OutsideProgress | None = None

    @property
    def operations_total(self) -> int | None:
        """How many operations there are to apply, as far as is known."""
        if self.replay is not None:
            return self.replay.operations_total
        return self.log_operations

    @property
    def bytes_total(self) -> int | None:
        """How many bytes of the log there are to apply, as far as is known."""
        if self.replay is not None:
            return self.replay.bytes_total
        return self.log_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanProgress:
    """How far clean is; None: it has not come to that."""

    archived: int | None = None
    deleted: int | None = None
    outside: OutsideProgress | None = None


@dataclass(slots=True, kw_only=True)
class AgentProgress:
    """What all services of an agent have reported; None: nothing yet, since the service was started last.

    A service replaces its own attribute and no other. `horizon` belongs to the watch over the horizon, which goes on
    while replication stands still. `steps`: what a service has begun, in words. `failing_since`: since when capture
    fails and is tried again; None: it has committed since, or does not fail.
    """

    capture: CaptureProgress | None = None
    horizon: HorizonProgress | None = None
    backup: BackupProgress = field(default_factory=BackupProgress)
    restore: RestoreProgress = field(default_factory=RestoreProgress)
    verify: ComparisonProgress | None = None
    clean: CleanProgress = field(default_factory=CleanProgress)
    steps: dict[Service, str] = field(default_factory=dict)
    failing_since: str | None = None

    def begin(self, service: Service) -> None:
        """Forget what a service has reported: it starts."""
        self.steps.pop(service, None)
        if service is Service.REPLICATION:
            self.capture = None
        elif service is Service.BACKUP:
            self.backup = BackupProgress()
        elif service is Service.RESTORE:
            self.restore = RestoreProgress()
        elif service is Service.VERIFY:
            self.verify = None
        elif service is Service.CLEAN:
            self.clean = CleanProgress()

    def has_left_unread(self, service: Service) -> bool:
        """Whether a service has ended before it had read all that it could."""
        return service is Service.REPLICATION and self.capture is not None and self.capture.is_drained is False
