"""What `d5agent status` says: the phase state and what the services reported, as JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from d5agent.adapters.state import read_state_file
from d5agent.core.phase_codec import PHASE, decode_phase
from d5agent.core.services import PhaseState, Service

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CAPTURE = (
    "operations",
    "bytes",
    "segments",
    "lag_seconds",
    "last_cluster_time",
    "safe_seconds",
    "retention_seconds",
    "retention_basis",
    "catch_up_rate",
    "caught_up_in_seconds",
    "queue_bytes",
)
_RESTORE = (
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


def local_phase(directory: Path) -> PhaseState:
    """Return the phase state in this machine's state file."""
    value = read_state_file(directory / f"{PHASE}.json")
    return PhaseState() if value is None else decode_phase(value)


def status_of(
    state: PhaseState, facts: Mapping[Service, Mapping[str, object]], *, is_up: bool, mode: str = ""
) -> dict[str, Any]:
    """Return the status. `is_up`: the daemon runs; without it the rows are what it left behind.

    `mode`: how this run is restored; empty: as the state says, if it does.
    """
    services = {}
    for service, row in state.services.items():
        reported = facts.get(service, {})
        services[str(service)] = {
            "state": str(row.status),
            "reason": row.reason,
            "since": row.since,
            "error": row.error,
            "hint": row.hint,
            **{name: value for name, value in reported.items() if name != "seen_at"},
        }
    compared = {**facts.get(Service.RESTORE, {}), **facts.get(Service.VERIFY, {})}
    verified = state.verified
    return {
        "daemon": "up" if is_up else "down",
        "phase": str(state.phase),
        "run_id": state.run_id,
        "ready_at": state.ready_at,
        "services": services,
        "capture": {name: facts.get(Service.REPLICATION, {}).get(name) for name in _CAPTURE},
        "restore": {
            **{name: facts.get(Service.RESTORE, {}).get(name) for name in _RESTORE},
            "is_paused": state.is_paused,
            "mode": mode or state.mode or None,
        },
        "fence": None if state.fence is None else {"sequence": state.fence.sequence, "at": state.fence.at},
        "verify": {
            "compared": compared.get("compared", verified.compared if verified else None),
            "compared_total": compared.get("compared_total"),
            "different": compared.get("different", 0 if verified else None),
        },
        "outside": facts.get(Service.CLEAN, {}).get("outside") or facts.get(Service.RESTORE, {}).get("outside"),
    }
