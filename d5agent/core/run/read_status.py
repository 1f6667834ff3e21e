"""The document of `status --json` read back into what services have reported: for the screen and the drill.

What an older daemon does not report is zero or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.hold import Block
from d5agent.core.run.horizon import Basis
from d5agent.core.run.progress import (
    AgentProgress,
    BackupProgress,
    CaptureProgress,
    CleanProgress,
    ComparisonProgress,
    HorizonProgress,
    OutsideProgress,
    ReplayProgress,
    RestoreProgress,
    SideProgress,
)
from d5agent.core.run.services import Service, ServiceState, Status

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """What a status document says. `rows`: the services' states by name; `comparison`: the last one, or the proof's."""

    daemon: str
    phase: str
    run_id: str
    ready_at: str
    rows: dict[str, ServiceState]
    progress: AgentProgress
    comparison: ComparisonProgress | None
    outside: OutsideProgress | None


def read_status(document: Mapping[str, Any]) -> AgentStatus:
    """Return what a document that `status_of` made says."""
    rows: Mapping[str, Mapping[str, Any]] = document["services"]
    return AgentStatus(
        daemon=document["daemon"],
        phase=document["phase"],
        run_id=document["run_id"],
        ready_at=document["ready_at"],
        rows={name: _row(row) for name, row in rows.items()},
        progress=_progress(document, {service: rows.get(service, {}) for service in Service}),
        comparison=_comparison(document["verify"]),
        outside=_outside(document.get("outside")),
    )


def _row(row: Mapping[str, Any]) -> ServiceState:
    return ServiceState(
        status=Status(row["state"]),
        since=row["since"],
        reason=row["reason"],
        error=row["error"],
        hint=row["hint"],
    )


def _progress(document: Mapping[str, Any], rows: Mapping[Service, Mapping[str, Any]]) -> AgentProgress:
    # When another run begins, services have no rows; what they reported before is in the shared parts until they start.
    capture = {**document["capture"], **rows[Service.REPLICATION]}
    return AgentProgress(
        capture=_capture(capture),
        horizon=_horizon(capture),
        backup=BackupProgress(
            target=_side("target", rows[Service.BACKUP]), source=_side("source", rows[Service.BACKUP])
        ),
        restore=_restore({**document["restore"], **rows[Service.RESTORE]}),
        verify=_comparison(rows[Service.VERIFY]),
        clean=_clean(rows[Service.CLEAN]),
        steps={service: row["step"] for service, row in rows.items() if "step" in row},
        failing_since=document["capture"].get("failing_since"),
    )


def _capture(row: Mapping[str, Any]) -> CaptureProgress | None:
    time = row.get("last_cluster_time")
    if time is None:
        return None
    return CaptureProgress(
        operations=row["operations"],
        bytes=row["bytes"],
        segments=row["segments"],
        last_cluster_time=ClusterTime(*time),
        is_caught_up=row.get("is_caught_up", False),
        operations_after_fence=row.get("operations_after_fence", 0),
        queue_bytes=row.get("queue_bytes", 0),
        seen_at=0.0,  # by the daemon's own clock, and not in the document
        is_drained=row.get("is_drained"),
    )


def _horizon(row: Mapping[str, Any]) -> HorizonProgress | None:
    lag, basis = row.get("lag_seconds"), row.get("retention_basis")
    if lag is None:
        return None
    return HorizonProgress(
        lag_seconds=lag,
        safe_seconds=row.get("safe_seconds"),
        retention_seconds=row.get("retention_seconds"),
        retention_basis=None if basis is None else Basis(basis),
        catch_up_rate=row.get("catch_up_rate"),
        caught_up_in_seconds=row.get("caught_up_in_seconds"),
    )


def _side(name: str, row: Mapping[str, Any]) -> SideProgress | None:
    if f"{name}_databases" not in row:
        return None
    return SideProgress(
        databases=row[f"{name}_databases"],
        databases_stored=row[f"{name}_databases_stored"],
        documents=row[f"{name}_documents"],
        bytes=row[f"{name}_bytes"],
    )


def _restore(row: Mapping[str, Any]) -> RestoreProgress:
    block = row.get("target_write_block")
    return RestoreProgress(
        target_write_block=None if block is None else Block(block),
        log_operations=row.get("operations_total"),
        log_bytes=row.get("bytes_total"),
        replay=_replay(row),
        lag_seconds=row.get("lag_seconds"),
        in_doubt=row.get("in_doubt"),
        comparison=_comparison(row),
        can_cutover=row.get("can_cutover"),
        generation=row.get("generation"),
        carried=row.get("carried"),
        refused_documents=row.get("refused_documents"),
        refused=tuple(row.get("refused", ())),
        pages=row.get("pages"),
        pages_total=row.get("pages_total"),
        outside=_outside(row.get("outside")),
    )


def _replay(row: Mapping[str, Any]) -> ReplayProgress | None:
    applied = row.get("operations_applied")
    if applied is None:
        return None
    return ReplayProgress(
        operations_total=row["operations_total"],
        operations_applied=applied,
        documents_written=row.get("documents_written") or 0,
        bytes_total=row.get("bytes_total") or 0,
        bytes_applied=row.get("bytes_applied") or 0,
        operations_per_second=row.get("operations_per_second"),
        eta_seconds=row.get("eta_seconds"),
        lanes=row.get("lanes"),
        lanes_allowed=row.get("lanes_allowed") or 0,
    )


def _comparison(row: Mapping[str, Any]) -> ComparisonProgress | None:
    compared = row.get("compared")
    if compared is None:
        return None
    return ComparisonProgress(
        compared=compared, compared_total=row.get("compared_total"), different=row.get("different") or 0
    )


def _clean(row: Mapping[str, Any]) -> CleanProgress:
    return CleanProgress(archived=row.get("archived"), deleted=row.get("deleted"), outside=_outside(row.get("outside")))


def _outside(found: Mapping[str, Any] | None) -> OutsideProgress | None:
    if found is None:
        return None
    return OutsideProgress(
        is_complete=found["is_complete"],
        collections=found["collections"],
        collections_compared=found["collections_compared"],
        compared=found["compared"],
        missing=found["missing"],
        different=found["different"],
        extra=found["extra"],
        unchecked=found["unchecked"],
    )
