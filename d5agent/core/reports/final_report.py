"""The final report of a failback: what was when, what was removed and kept, on whose word, and how it ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.backup import run_folder
from d5agent.core.log.naming import REPORTS
from d5agent.errors import CorruptDataError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.run.services import PhaseState

VERSION: Final = 1


@dataclass(slots=True, kw_only=True)
class Clearing:
    """What clean removes, and how far it is: a state of its own, so that a restart goes on and counts on.

    `log`: what the log held before anything was removed; None: nothing that could be read. `last_sequence`: the number
    of its last commit; -1: none, or an earlier version began. `archive`: where it went instead, or nothing. `archived`:
    the last commit that is copied there. `is_deleting`: from now on the log has gaps.
    """

    run_id: str
    began_at: str
    log: Mapping[str, Any] | None = None
    last_sequence: int = -1
    archive: str = ""
    archived: int = -1
    is_deleting: bool = False
    deleted: int = 0
    uploads_aborted: int = 0
    change_stream: str = ""
    version: int = field(default=VERSION)

    def is_deleting_of(self, run_id: str) -> bool:
        """Whether the log of that run is being deleted."""
        return self.is_deleting and self.run_id == run_id

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Clearing:
        """Return what `to_json` wrote. OperatorError: a newer agent did; CorruptDataError: it is damaged."""
        if value.get("version") != VERSION:
            raise OperatorError(
                "the state of clean is of another version",
                hint="run the d5agent version that wrote it, or a newer one",
                version=value.get("version"),
            )
        try:
            return cls(**value)
        except TypeError as error:
            raise CorruptDataError(
                "the state of clean is damaged",
                hint="move clearing.json aside, on disk and under state/: clean begins anew to count and to archive",
                reason=str(error),
            ) from error


def final_report_key(run_id: str) -> str:
    """Return where the final report of a run is."""
    return f"{REPORTS}{run_id}/final.json"


def final_report(state: PhaseState, clearing: Clearing, *, keep_log_days: int | None, now: str) -> dict[str, Any]:
    """Return the report as it is when all is removed; the power-off is added by whoever asks for it."""
    fence, verified = state.fence, state.verified
    return {
        "version": VERSION,
        "kind": "final report",
        "run_id": state.run_id,
        "written_at": now,
        "timeline": {
            "ready_at": state.ready_at,
            "read_only_at": "" if fence is None else fence.read_only_at,
            "fence_at": "" if fence is None else fence.at,
            "verified_at": "" if verified is None else verified.at,
            "clean_began_at": clearing.began_at,
            "clean_ended_at": now,
        },
        "services": _services(state),
        "forced_at": state.forced_at or None,
        "late": [asdict(word) for word in state.late.words],
        "differences_accepted_at": state.differences_accepted_at or None,
        "verified": None if verified is None else asdict(verified),
        "log": clearing.log,
        "last_sequence": clearing.last_sequence,
        "removed": {
            "objects": clearing.deleted,
            "uploads_aborted": clearing.uploads_aborted,
            "change_stream": clearing.change_stream,
        },
        "kept": {
            "archive": clearing.archive or None,
            "keep_log_days": keep_log_days if clearing.archive else None,
            "dump": run_folder(state.run_id),
            "reports": f"{REPORTS}{state.run_id}/",
        },
        "power_off": None,
    }


def next_sequence(report: Mapping[str, Any]) -> int:
    """Return the number with which the log of a later run may begin; earlier versions only told how many there were."""
    log = report.get("log") or {}
    return max(int(report.get("last_sequence", -1)) + 1, int(log.get("commits", 0)))


def with_power_off(report: Mapping[str, Any], state: PhaseState, *, now: str) -> dict[str, Any]:
    """Return the report with how the services ended, and the power-off that is asked for now."""
    return {**report, "services": _services(state), "power_off": {"requested_at": now}}


def _services(state: PhaseState) -> dict[str, Any]:
    return {
        str(service): {"state": str(row.status), "since": row.since, "error": row.error}
        for service, row in state.services.items()
    }


def encode_report(report: Mapping[str, Any]) -> bytes:
    """Return the report's bytes."""
    return json.dumps(report, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def decode_report(body: bytes, *, key: str) -> dict[str, Any]:
    """Return what `encode_report` wrote. CorruptDataError: it is damaged."""
    try:
        report: dict[str, Any] = json.loads(body)
    except ValueError as error:
        raise CorruptDataError(
            "the final report is damaged",
            hint="bring its version before back, or delete it; then type: d5agent start monitor-clean",
            key=key,
        ) from error
    return report
