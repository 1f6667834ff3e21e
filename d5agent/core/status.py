"""The document of `status --json`: the phase state and what services have reported, as JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from d5agent.core.services import Service

if TYPE_CHECKING:
    from d5agent.core.service_progress import AgentProgress, CaptureProgress, HorizonProgress, SideProgress
    from d5agent.core.services import PhaseState

_CAPTURE: Final = ("operations", "bytes", "segments", "last_cluster_time", "queue_bytes")
_HORIZON: Final = (
    "lag_seconds",
    "safe_seconds",
    "retention_seconds",
    "retention_basis",
    "catch_up_rate",
    "caught_up_in_seconds",
)
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
    compared = {**reported[Service.RESTORE], **reported[Service.VERIFY]}
    verified = state.verified
    return {
        "daemon": "up" if is_up else "down",
        "phase": str(state.phase),
        "run_id": state.run_id,
        "ready_at": state.ready_at,
        "services": services,
        "capture": {name: reported[Service.REPLICATION].get(name) for name in (*_CAPTURE, *_HORIZON)},
        "restore": {
            **{name: reported[Service.RESTORE].get(name) for name in _RESTORE},
            "is_paused": state.is_paused,
            "mode": mode or state.mode or None,
        },
        "fence": None if state.fence is None else {"sequence": state.fence.sequence, "at": state.fence.at},
        "verify": {
            "compared": compared.get("compared", verified.compared if verified else None),
            "compared_total": compared.get("compared_total"),
            "different": compared.get("different", 0 if verified else None),
        },
        "outside": reported[Service.CLEAN].get("outside") or reported[Service.RESTORE].get("outside"),
    }


def _reported(service: Service, progress: AgentProgress) -> dict[str, Any]:
    """Return what a service has reported, as it stands beside its state."""
    if service is Service.REPLICATION:
        return _capture(progress.capture) | horizon_to_json(progress.horizon)
    if service is Service.BACKUP:
        return _side("target", progress.backup.target) | _side("source", progress.backup.source)
    return dict(progress.facts.get(service, {}))


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
