"""The status as a person sees it on a terminal: rows of services, and how far capture, restore and comparison are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table

from d5agent.core.run.horizon import Basis, Horizon, Level
from d5agent.core.run.services import Service
from d5agent.screen.terminal import duration, escaped, size_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from d5agent.core.run.progress import (
        AgentProgress,
        BackupProgress,
        CaptureProgress,
        ComparisonProgress,
        HorizonProgress,
        OutsideProgress,
        RestoreProgress,
    )
    from d5agent.core.run.read_status import AgentStatus

_COLOURS: Final = {
    "done": "green",
    "running": "cyan",
    "waiting": "yellow",
    "pending": "dim",
    "stopped": "dim",
    "failed": "bold red",
    "up": "green",
    "down": "bold red",
}
_LEVEL_COLOURS: Final = {
    Level.FINE: "default",
    Level.HALF: "yellow",
    Level.QUARTER: "bold red",
    Level.LOST: "bold red",
}
_BASES: Final = {
    Basis.AWS: "says AWS",
    Basis.SETTING: "says [source] retention_seconds",
    Basis.DEFAULT: "assumed, its default: AWS did not tell, see the journal",
}
_BAR_WIDTH: Final = 20


def status_table(seen: AgentStatus) -> RenderableType:
    """Return the status as a table."""
    title = f"phase [bold]{seen.phase}[/], daemon [{_COLOURS[seen.daemon]}]{seen.daemon}[/]"
    table = Table(title=title, title_justify="left", caption=_caption(seen), caption_justify="left")
    for column in ("service", "state", "since", "what"):
        table.add_column(column)
    for name, row in seen.rows.items():
        what = "; ".join(part for part in (row.error, row.reason) if part) or _what(name, seen.progress)
        hint = f"\n[bold]next:[/] {escaped(row.hint)}" if row.hint else ""
        table.add_row(name, f"[{_COLOURS[row.status]}]{row.status}[/]", row.since, escaped(what) + hint)
    # Below the table, not in its caption: a warning must be neither dim nor as narrow as the table.
    progress = seen.progress
    lines = (
        _pace(progress.horizon),
        _failing(progress.failing_since, progress.horizon),
        _safety(progress.horizon),
        _dumped(progress.backup),
        _applied(progress.restore),
        _compared(seen.comparison),
        _outside(seen.outside),
    )
    return Group(table, *filter(None, lines))


def _caption(seen: AgentStatus) -> str:
    capture = seen.progress.capture
    parts = [f"run {seen.run_id or '-'}", f"ready {seen.ready_at or 'never'}"]
    if capture is not None:
        parts.append(f"{capture.operations:,} operations in {capture.segments:,} segments")
    return " · ".join(parts)


def _pace(horizon: HorizonProgress | None) -> str:
    """Return how far capture is behind, and whether that gets better."""
    if horizon is None:
        return ""
    lag, end = horizon.lag_seconds, horizon.caught_up_in_seconds
    if end == 0:
        return f"capture keeps up, {duration(lag)} behind the source"
    if end is not None:
        return f"capture is {duration(lag)} behind the source, catching up: done in about {duration(end)}"
    if horizon.catch_up_rate is None:
        return f"capture is {duration(lag)} behind the source"
    return f"[yellow]capture is {duration(lag)} behind the source and does not catch up[/]"


def _dumped(backup: BackupProgress) -> str:
    """Return how far the dumps of each side are."""
    parts = [
        f"{name} {side.databases_stored} of {side.databases} databases stored, "
        f"{side.documents:,} documents, {size_of(side.bytes)}"
        for name, side in (("target", backup.target), ("source", backup.source))
        if side is not None
    ]
    return f"backup  {'; '.join(parts)}" if parts else ""


def _applied(restore: RestoreProgress) -> str:
    """Return how far the replay is, how fast it goes, and when it ends."""
    replay = restore.replay
    if replay is None or not replay.operations_total:
        return ""
    applied, total, rate = replay.operations_applied, replay.operations_total, replay.operations_per_second
    parts = [
        f"restore {_bar(applied / total)} {applied:,} of {total:,} operations",
        f"{size_of(replay.bytes_applied)} of {size_of(replay.bytes_total)}",
        f"{replay.documents_written:,} documents written",
    ]
    if applied < total:
        parts.append("…/s" if rate is None else f"{rate:,.0f}/s")
        parts.append(_until(replay.eta_seconds))
    if replay.lanes is not None:
        parts.append(f"{replay.lanes} of {replay.lanes_allowed} lanes")
    if restore.lag_seconds is not None:
        parts.append(f"{duration(restore.lag_seconds)} behind the source")
    return ", ".join(parts)


def _compared(comparison: ComparisonProgress | None) -> str:
    """Return how far the comparison is, or what it found."""
    if comparison is None:
        return ""
    compared, total, different = comparison.compared, comparison.compared_total, comparison.different
    bar = f"{_bar(compared / total)} " if total else ""
    whole = f" of about {total:,}" if total and total > compared else ""
    colour = "bold red" if different else "green"
    return f"verify  {bar}{compared:,}{whole} documents compared, [{colour}]{different:,} different[/]"


def _outside(found: OutsideProgress | None) -> str:
    """Return how far the comparison of what the log does not touch is, and what it found."""
    if found is None:
        return ""
    total, compared = found.collections, found.collections_compared
    done = "done" if found.is_complete else f"{compared:,} of {total:,} collections"
    lost = found.missing + found.different
    parts = [
        f"outside {done}, {found.compared:,} documents compared",
        f"[{'bold red' if lost else 'green'}]{lost:,} missing or different in the target[/]",
        f"{found.extra:,} only there",
    ]
    return ", ".join(parts) + (f", {found.unchecked:,} to look at again" if found.unchecked else "")


def _bar(share: float) -> str:
    """Return a share as a bar and percent; a hundred only when it is all."""
    filled = int(min(share, 1.0) * _BAR_WIDTH)
    return f"[cyan]{'━' * filled}[/][dim]{'━' * (_BAR_WIDTH - filled)}[/] {int(min(share, 1.0) * 100)} %"


def _until(seconds: float | None) -> str:
    return "end not known" if seconds is None else f"done in about {duration(seconds)}"


def _safety(horizon: HorizonProgress | None) -> str:
    """Return how long the position can still be resumed from, and how that is known."""
    if horizon is None or horizon.safe_seconds is None or horizon.retention_seconds is None:
        return ""
    safe, kept, known = horizon.safe_seconds, horizon.retention_seconds, horizon.retention_basis
    basis = "" if known is None else _BASES[known]
    text = f"the position is safe for {duration(safe)}: the source keeps its changes for {duration(kept)} ({basis})"
    if safe == 0:
        text = f"THE POSITION HAS EXPIRED: the source keeps its changes for {duration(kept)} only ({basis})"
    return f"[{_colour(safe, kept)}]{escaped(text)}[/]"


def _colour(safe: float, kept: int) -> str:
    """Return how loud it is to be said."""
    horizon = Horizon(lag_seconds=0, age_seconds=kept - safe, retention_seconds=kept, catch_up_rate=None)
    return _LEVEL_COLOURS[horizon.level]


def _failing(since: str | None, horizon: HorizonProgress | None) -> str:
    """Return since when capture fails and is tried again, and how long that may go on."""
    if since is None:
        return ""
    safe, kept = (None, None) if horizon is None else (horizon.safe_seconds, horizon.retention_seconds)
    if safe is None or kept is None:
        return f"[yellow]capture fails since {since}, and is tried again[/]"
    colour = _colour(safe, kept).replace("default", "yellow")
    return f"[{colour}]capture fails since {since}, and is tried again: {duration(safe)} are left for that[/]"


def _what(service: str, progress: AgentProgress) -> str:
    """Return what a service has reported and the lines below the table do not say."""
    values: dict[str, object] = {"step": next((s for known, s in progress.steps.items() if known == service), None)}
    if service == Service.REPLICATION:
        values |= _captured(progress.capture)
    elif service == Service.RESTORE:
        values |= _restored(progress.restore)
    elif service == Service.CLEAN:
        values |= {"archived": progress.clean.archived, "deleted": progress.clean.deleted}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _captured(capture: CaptureProgress | None) -> dict[str, object]:
    if capture is None:
        return {}
    return {
        "operations": capture.operations,
        "bytes": capture.bytes,
        "segments": capture.segments,
        "last cluster time": list(capture.last_cluster_time),
        "operations after fence": capture.operations_after_fence,
        "queue bytes": capture.queue_bytes,
        "is drained": capture.is_drained,
    }


def _restored(restore: RestoreProgress) -> dict[str, object]:
    return {
        "target write block": restore.target_write_block,
        "in doubt": restore.in_doubt,
        "can cutover": restore.can_cutover,
        "generation": restore.generation,
        "carried": restore.carried,
        "refused documents": restore.refused_documents,
        "refused": None if restore.refused_documents is None else list(restore.refused),
        "pages": restore.pages,
        "pages total": restore.pages_total,
    }
