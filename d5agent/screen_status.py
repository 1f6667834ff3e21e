"""The status as a person sees it on a terminal: rows of services, and how far capture, restore and comparison are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table

from d5agent.core.backup import SIDES
from d5agent.core.horizon import Horizon, Level
from d5agent.screen import duration, escaped, size_of

if TYPE_CHECKING:
    from rich.console import RenderableType

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
    "aws": "says AWS",
    "setting": "says [source] retention_seconds",
    "default": "assumed, its default: AWS did not tell, see the journal",
}
# What services report and the lines below the table say in words.
_IN_WORDS: Final = (
    "operations_total",
    "operations_applied",
    "documents_written",
    "bytes_total",
    "bytes_applied",
    "operations_per_second",
    "eta_seconds",
    "lanes",
    "lanes_allowed",
    "compared",
    "compared_total",
    "different",
    "outside",
    "lag_seconds",
    "is_caught_up",
    "safe_seconds",
    "retention_seconds",
    "retention_basis",
    "catch_up_rate",
    "caught_up_in_seconds",
    *(f"{side}_{what}" for side in SIDES for what in ("databases", "databases_stored", "documents", "bytes")),
)
_BAR_WIDTH: Final = 20


def status_table(values: dict[str, Any]) -> RenderableType:
    """Return the status as a table."""
    daemon = values["daemon"]
    title = f"phase [bold]{values['phase']}[/], daemon [{_COLOURS[daemon]}]{daemon}[/]"
    table = Table(title=title, title_justify="left", caption=_caption(values), caption_justify="left")
    for column in ("service", "state", "since", "what"):
        table.add_column(column)
    for name, row in values["services"].items():
        what = "; ".join(part for part in (row["error"], row["reason"]) if part) or _progress(row)
        hint = f"\n[bold]next:[/] {escaped(row['hint'])}" if row["hint"] else ""
        table.add_row(name, f"[{_COLOURS[row['state']]}]{row['state']}[/]", row["since"], escaped(what) + hint)
    # Below the table, not in its caption: a warning must be neither dim nor as narrow as the table.
    capture = values["capture"]
    lines = (_pace(capture), _safety(capture), _dumped(values), _applied(values), _compared(values), _outside(values))
    return Group(table, *filter(None, lines))


def _caption(values: dict[str, Any]) -> str:
    capture = values["capture"]
    parts = [f"run {values['run_id'] or '-'}", f"ready {values['ready_at'] or 'never'}"]
    if capture["operations"] is not None:
        parts.append(f"{capture['operations']:,} operations in {capture['segments']:,} segments")
    return " · ".join(parts)


def _pace(capture: dict[str, Any]) -> str:
    """Return how far capture is behind, and whether that gets better."""
    lag, rate, end = (capture.get(name) for name in ("lag_seconds", "catch_up_rate", "caught_up_in_seconds"))
    if lag is None:
        return ""
    if end == 0:
        return f"capture keeps up, {duration(lag)} behind the source"
    if end is not None:
        return f"capture is {duration(lag)} behind the source, catching up: done in about {duration(end)}"
    if rate is None:
        return f"capture is {duration(lag)} behind the source"
    return f"[yellow]capture is {duration(lag)} behind the source and does not catch up[/]"


def _dumped(values: dict[str, Any]) -> str:
    """Return how far the dumps of each side are."""
    row = values["services"].get("backup", {})
    parts = [
        f"{side} {row[f'{side}_databases_stored']} of {row[f'{side}_databases']} databases stored, "
        f"{row[f'{side}_documents']:,} documents, {size_of(row[f'{side}_bytes'])}"
        for side in SIDES
        if f"{side}_databases" in row
    ]
    return f"backup  {'; '.join(parts)}" if parts else ""


def _applied(values: dict[str, Any]) -> str:
    """Return how far the replay is, how fast it goes, and when it ends."""
    restore = values["restore"]
    total, applied, rate = (restore.get(f"operations_{name}") for name in ("total", "applied", "per_second"))
    if not total or applied is None:
        return ""
    parts = [f"restore {_bar(applied / total)} {applied:,} of {total:,} operations"]
    if restore.get("bytes_total") is not None:
        parts.append(f"{size_of(restore['bytes_applied'])} of {size_of(restore['bytes_total'])}")
    if restore.get("documents_written") is not None:
        parts.append(f"{restore['documents_written']:,} documents written")
    if applied < total:
        parts.append("…/s" if rate is None else f"{rate:,.0f}/s")
        parts.append(_until(restore.get("eta_seconds")))
    if restore.get("lanes") is not None:
        parts.append(f"{restore['lanes']} of {restore['lanes_allowed']} lanes")
    if restore.get("lag_seconds") is not None:
        parts.append(f"{duration(restore['lag_seconds'])} behind the source")
    return ", ".join(parts)


def _compared(values: dict[str, Any]) -> str:
    """Return how far the comparison is, or what it found."""
    verify = values["verify"]
    compared, total, different = (verify.get(name) for name in ("compared", "compared_total", "different"))
    if compared is None:
        return ""
    bar = f"{_bar(compared / total)} " if total else ""
    whole = f" of about {total:,}" if total and total > compared else ""
    colour = "bold red" if different else "green"
    return f"verify  {bar}{compared:,}{whole} documents compared, [{colour}]{different or 0:,} different[/]"


def _outside(values: dict[str, Any]) -> str:
    """Return how far the comparison of what the log does not touch is, and what it found."""
    found = values.get("outside")
    if found is None:
        return ""
    total, compared = found["collections"], found["collections_compared"]
    done = "done" if found["is_complete"] else f"{compared:,} of {total:,} collections"
    lost = found["missing"] + found["different"]
    parts = [
        f"outside {done}, {found['compared']:,} documents compared",
        f"[{'bold red' if lost else 'green'}]{lost:,} missing or different in the target[/]",
        f"{found['extra']:,} only there",
    ]
    return ", ".join(parts) + (f", {found['unchecked']:,} to look at again" if found["unchecked"] else "")


def _bar(share: float) -> str:
    """Return a share as a bar and percent; a hundred only when it is all."""
    filled = int(min(share, 1.0) * _BAR_WIDTH)
    return f"[cyan]{'━' * filled}[/][dim]{'━' * (_BAR_WIDTH - filled)}[/] {int(min(share, 1.0) * 100)} %"


def _until(seconds: float | None) -> str:
    return "end not known" if seconds is None else f"done in about {duration(seconds)}"


def _safety(capture: dict[str, Any]) -> str:
    """Return how long the position can still be resumed from, and how that is known."""
    safe, kept = capture.get("safe_seconds"), capture.get("retention_seconds")
    if safe is None or kept is None:
        return ""
    basis = _BASES.get(capture.get("retention_basis") or "", "")
    text = f"the position is safe for {duration(safe)}: the source keeps its changes for {duration(kept)} ({basis})"
    if safe == 0:
        text = f"THE POSITION HAS EXPIRED: the source keeps its changes for {duration(kept)} only ({basis})"
    level = Horizon(lag_seconds=0, age_seconds=kept - safe, retention_seconds=kept, catch_up_rate=None).level
    return f"[{_LEVEL_COLOURS[level]}]{escaped(text)}[/]"


def _progress(row: dict[str, Any]) -> str:
    known = {"state", "reason", "since", "error", "hint", *_IN_WORDS}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name not in known)
