"""How far each service is, as it reports it: frozen values, each with one owner; whoever reads one reads attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from d5agent.core.services import Service

if TYPE_CHECKING:
    from d5agent.core.horizon import Basis
    from d5agent.core.operation import ClusterTime


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


@dataclass(slots=True, kw_only=True)
class AgentProgress:
    """What all services of an agent have reported; None: nothing yet, since the service was started last.

    A service replaces its own attribute and no other. `horizon` belongs to the watch over the horizon, which goes on
    while replication stands still.
    """

    capture: CaptureProgress | None = None
    horizon: HorizonProgress | None = None
    backup: BackupProgress = field(default_factory=BackupProgress)
    facts: dict[Service, dict[str, object]] = field(default_factory=dict)

    def begin(self, service: Service) -> None:
        """Forget what a service has reported: it starts."""
        self.facts[service] = {}
        if service is Service.REPLICATION:
            self.capture = None
        elif service is Service.BACKUP:
            self.backup = BackupProgress()

    def has_left_unread(self, service: Service) -> bool:
        """Whether a service has ended before it had read all that it could."""
        return service is Service.REPLICATION and self.capture is not None and self.capture.is_drained is False
