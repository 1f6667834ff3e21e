"""The document of `status --json`: the phase state and what services have reported, as JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from d5agent.core.run.progress import ComparisonProgress
from d5agent.core.run.services import Service

if TYPE_CHECKING:
    from d5agent.core.run.progress import (
        AgentProgress,
        CaptureProgress,
        HorizonProgress,
        OutsideProgress,
        ReplayProgress,
        RestoreProgress,
        SideProgress,
    )
    from d5agent.core.run.services import PhaseState

_CAPTURE: Final = ("operations", "bytes", "segments", "last_cluster_time", "queue_bytes")
_HORIZON: Final = (
    "lag_seconds",
    "safe_seconds",
    "retention_seconds",
    "retention_basis",
    "catch_up_rate",
    "caught_up_in_seconds",
)
_COMPARISON: Final = ("compared", "compared_total", "different")
_RESTORE: Final = (
    "operations_total",
    "operations_applied",
    "documents_written",
    "bytes_total",
    "bytes_applied",
    "operations_per_second",
    "eta_seconds",
    "lag_seconds",
    "lanes",
    "lanes_allowed",
)


def status_of(state: PhaseState, progress: AgentProgress, *, is_up: bool, mode: str = "") -> dict[str, Any]:
    """Return the status. `is_up`: the daemon runs; without it the rows are what it left behind.

    `mode`: how this run is restored; empty: as the state says, if it does.
    """
    reported = {service: _reported(service, progress) for service in Service}
    services = {
        str(service): {
            "state": str(row.status),
            "reason": row.reason,
            "since": row.since,
            "error": row.error,
            "hint": row.hint,
            **reported[service],
        }
        for service, row in state.services.items()
    }
    outside = progress.clean.outside or progress.restore.outside
    return {
        "daemon": "up" if is_up else "down",
        "phase": str(state.phase),
        "run_id": state.run_id,
        "ready_at": state.ready_at,
        "services": services,
        "capture": {
            **{name: reported[Service.REPLICATION].get(name) for name in (*_CAPTURE, *_HORIZON)},
            "failing_since": progress.failing_since,
        },
        "restore": {
            **{name: reported[Service.RESTORE].get(name) for name in _RESTORE},
            "is_paused": state.is_paused,
            "mode": mode or state.mode or None,
        },
        "fence": None if state.fence is None else {"sequence": state.fence.sequence, "at": state.fence.at},
        "verify": dict.fromkeys(_COMPARISON) | _comparison(last_comparison(state, progress)),
        "outside": None if outside is None else _outside(outside),
    }


def _reported(service: Service, progress: AgentProgress) -> dict[str, Any]:
    """Return what a service has reported, as its row shows it."""
    step = progress.steps.get(service)
    return ({} if step is None else {"step": step}) | _reported_beside_step(service, progress)


def _reported_beside_step(service: Service, progress: AgentProgress) -> dict[str, Any]:
    if service is Service.REPLICATION:
        return _capture(progress.capture) | horizon_to_json(progress.horizon)
    if service is Service.BACKUP:
        return _side("target", progress.backup.target) | _side("source", progress.backup.source)
    if service is Service.RESTORE:
        return _restore(progress.restore)
    if service is Service.VERIFY:
        return _comparison(progress.verify)
    if service is Service.CLEAN:
        return _known({"archived": progress.clean.archived, "deleted": progress.clean.deleted}) | _beside(
            progress.clean.outside
        )
    return {}


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def last_comparison(state: PhaseState, progress: AgentProgress) -> ComparisonProgress | None:
    """Return the last comparison; without one, that of the proof."""
    comparison, verified = progress.verify or progress.restore.comparison, state.verified
    if comparison is None and verified is not None:
        return ComparisonProgress(compared=verified.compared, compared_total=None, different=0)
    return comparison


def _capture(progress: CaptureProgress | None) -> dict[str, Any]:
    if progress is None:
        return {}
    return {
        "operations": progress.operations,
        "bytes": progress.bytes,
        "segments": progress.segments,
        "last_cluster_time": list(progress.last_cluster_time),
        "is_caught_up": progress.is_caught_up,
        "operations_after_fence": progress.operations_after_fence,
        "queue_bytes": progress.queue_bytes,
        **({} if progress.is_drained is None else {"is_drained": progress.is_drained}),
    }


def _side(name: str, progress: SideProgress | None) -> dict[str, Any]:
    if progress is None:
        return {}
    return {
        f"{name}_databases": progress.databases,
        f"{name}_databases_stored": progress.databases_stored,
        f"{name}_documents": progress.documents,
        f"{name}_bytes": progress.bytes,
    }


def _restore(progress: RestoreProgress) -> dict[str, Any]:
    block = progress.target_write_block
    values = {
        "target_write_block": None if block is None else str(block),
        "operations_total": progress.operations_total,
        "bytes_total": progress.bytes_total,
        "lag_seconds": progress.lag_seconds,
        "in_doubt": progress.in_doubt,
        "can_cutover": progress.can_cutover,
        "generation": progress.generation,
        "carried": progress.carried,
        "refused_documents": progress.refused_documents,
        "refused": None if progress.refused_documents is None else list(progress.refused),
        "pages": progress.pages,
        "pages_total": progress.pages_total,
    }
    replay = {} if progress.replay is None else replay_to_json(progress.replay)
    return _known(values) | replay | _comparison(progress.comparison) | _beside(progress.outside)


def replay_to_json(progress: ReplayProgress) -> dict[str, Any]:
    """Return how far the replay is as `status` and the journal show it."""
    return {
        "operations_total": progress.operations_total,
        "operations_applied": progress.operations_applied,
        "documents_written": progress.documents_written,
        "bytes_total": progress.bytes_total,
        "bytes_applied": progress.bytes_applied,
        "operations_per_second": progress.operations_per_second,
        "eta_seconds": progress.eta_seconds,
        "lanes": progress.lanes,
        "lanes_allowed": progress.lanes_allowed,
    }


def _comparison(progress: ComparisonProgress | None) -> dict[str, Any]:
    if progress is None:
        return {}
    return {
        "compared": progress.compared,
        "compared_total": progress.compared_total,
        "different": progress.different,
    }


def _beside(outside: OutsideProgress | None) -> dict[str, Any]:
    return {} if outside is None else {"outside": _outside(outside)}


def _outside(progress: OutsideProgress) -> dict[str, Any]:
    return {
        "is_complete": progress.is_complete,
        "collections": progress.collections,
        "collections_compared": progress.collections_compared,
        "compared": progress.compared,
        "missing": progress.missing,
        "different": progress.different,
        "extra": progress.extra,
        "unchecked": progress.unchecked,
    }


def horizon_to_json(progress: HorizonProgress | None) -> dict[str, Any]:
    """Return the horizon as `status` and the journal show it."""
    if progress is None:
        return {}
    basis = progress.retention_basis
    return {
        "lag_seconds": progress.lag_seconds,
        "safe_seconds": progress.safe_seconds,
        "retention_seconds": progress.retention_seconds,
        "retention_basis": None if basis is None else str(basis),
        "catch_up_rate": progress.catch_up_rate,
        "caught_up_in_seconds": progress.caught_up_in_seconds,
    }
