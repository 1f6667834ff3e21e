"""What a person sees on a terminal: tables, followed events, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group
from rich.table import Table

from d5agent.core.horizon import Horizon, Level

if TYPE_CHECKING:
    from rich.console import RenderableType

    from d5agent.errors import AgentError

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
# What replication reports and the lines below the table say in words.
_IN_WORDS: Final = (
    "lag_seconds",
    "is_caught_up",
    "safe_seconds",
    "retention_seconds",
    "retention_basis",
    "catch_up_rate",
    "caught_up_in_seconds",
)


def print_(what: RenderableType) -> None:
    """Print to standard output."""
    Console(highlight=False).print(what)


def print_error(error: AgentError) -> None:
    """Print an error: what, the facts, and what to do next."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"d5agent: {error.message}", style="bold red")
    for name, value in error.facts.items():
        console.print(f"  {name}: {value}")
    if error.hint:
        console.print(f"  next: {error.hint}")


def print_answer(answer: dict[str, Any]) -> None:
    """Print one answer of the daemon."""
    error = "error" in answer
    console = Console(stderr=error, highlight=False, markup=False, soft_wrap=True)
    if "accepted" in answer:
        console.print(f"{answer['accepted']}: accepted")
    elif "status" in answer:
        console.print(answer["status"], style="dim")
    elif "event" in answer:
        console.print(" ".join([answer["event"], *(f"{name}={value}" for name, value in answer["facts"].items())]))
    elif error:
        console.print(f"d5agent: {answer['error']}", style="bold red")
        console.print(f"  next: {answer['hint']}")


def status_table(values: dict[str, Any]) -> RenderableType:
    """Return the status as a table."""
    daemon = values["daemon"]
    title = f"phase [bold]{values['phase']}[/], daemon [{_COLOURS[daemon]}]{daemon}[/]"
    table = Table(title=title, title_justify="left", caption=_caption(values), caption_justify="left")
    for column in ("service", "state", "since", "what"):
        table.add_column(column)
    for name, row in values["services"].items():
        what = "; ".join(part for part in (row["error"], row["reason"]) if part) or _progress(row)
        hint = f"\n[bold]next:[/] {_escaped(row['hint'])}" if row["hint"] else ""
        table.add_row(name, f"[{_COLOURS[row['state']]}]{row['state']}[/]", row["since"], _escaped(what) + hint)
    # Below the table, not in its caption: a warning must be neither dim nor as narrow as the table.
    capture = values["capture"]
    return Group(table, *filter(None, (_pace(capture), _safety(capture))))


def _caption(values: dict[str, Any]) -> str:
    capture, verify = values["capture"], values["verify"]
    parts = [f"run {values['run_id'] or '-'}", f"ready {values['ready_at'] or 'never'}"]
    if capture["operations"] is not None:
        parts.append(f"{capture['operations']:,} operations in {capture['segments']:,} segments")
    if verify["compared"] is not None:
        parts.append(f"{verify['compared']:,} documents compared, {verify['different']} different")
    return " · ".join(parts)


def _pace(capture: dict[str, Any]) -> str:
    """Return how far capture is behind, and whether that gets better."""
    lag, rate, end = (capture.get(name) for name in ("lag_seconds", "catch_up_rate", "caught_up_in_seconds"))
    if lag is None:
        return ""
    if end == 0:
        return f"capture keeps up, {_duration(lag)} behind the source"
    if end is not None:
        return f"capture is {_duration(lag)} behind the source, catching up: done in about {_duration(end)}"
    if rate is None:
        return f"capture is {_duration(lag)} behind the source"
    return f"[yellow]capture is {_duration(lag)} behind the source and does not catch up[/]"


def _safety(capture: dict[str, Any]) -> str:
    """Return how long the position can still be resumed from, and how that is known."""
    safe, kept = capture.get("safe_seconds"), capture.get("retention_seconds")
    if safe is None or kept is None:
        return ""
    basis = _BASES.get(capture.get("retention_basis") or "", "")
    text = f"the position is safe for {_duration(safe)}: the source keeps its changes for {_duration(kept)} ({basis})"
    if safe == 0:
        text = f"THE POSITION HAS EXPIRED: the source keeps its changes for {_duration(kept)} only ({basis})"
    level = Horizon(lag_seconds=0, age_seconds=kept - safe, retention_seconds=kept, catch_up_rate=None).level
    return f"[{_LEVEL_COLOURS[level]}]{_escaped(text)}[/]"


def _duration(seconds: float) -> str:
    """Return a duration in the two units that matter."""
    left = round(seconds)
    for size, unit, smaller, small_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {unit} {rest} {small_unit}" if rest else f"{left // size} {unit}"
    return f"{left} s"


def _progress(row: dict[str, Any]) -> str:
    known = {"state", "reason", "since", "error", "hint", *_IN_WORDS}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name not in known)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


def check_table(values: dict[str, Any]) -> RenderableType:
    """Return the preflight's result as a table."""
    table = Table(title="ready to work" if values["ok"] else "not ready", title_justify="left")
    for column in ("", "what", "found", "next"):
        table.add_column(column)
    for row in values["checks"]:
        mark = "[green]ok[/]" if row["ok"] else "[bold red]no[/]"
        table.add_row(mark, row["what"], _escaped(row["found"]), _escaped(row["hint"]))
    return table


def segments_table(values: dict[str, Any]) -> RenderableType:
    """Return segments as a table."""
    table = Table()
    for column in ("commit", "operations", "bytes", "key"):
        table.add_column(column, justify="left" if column == "key" else "right", no_wrap=column != "key")
    for row in values["segments"]:
        table.add_row(str(row["commit"]), f"{row['count']:,}", f"{row['bytes']:,}", _escaped(row["key"]))
    return table


def log_table(values: dict[str, Any]) -> RenderableType:
    """Return the result of checking the log."""
    return (
        f"[green]the log is whole[/]: {values['commits']:,} commits, {values['segments']:,} segments, "
        f"{values['operations']:,} operations, {values['bytes']:,} bytes, to {values['cluster_time']}; "
        f"{len(values['orphans']):,} orphans of crashes, which nobody reads"
    )


def plan_table(values: dict[str, Any]) -> RenderableType:
    """Return the dry run as a table."""
    table = Table(
        title=f"restore would apply {values['operations']:,} operations",
        title_justify="left",
        caption="; ".join(values["notes"]),
        caption_justify="left",
    )
    table.add_column("namespace", overflow="fold", min_width=12)
    for column in ("ins/upd/del/other", "documents", "insert", "overwrite", "delete", "equal"):
        table.add_column(column, justify="right")
    for namespace, row in values["namespaces"].items():
        log = "/".join(str(row[kind]) for kind in ("inserts", "updates", "deletes", "others"))
        effects = (f"{row[column]:,}" for column in ("documents", "insert", "overwrite", "delete", "equal"))
        table.add_row(_escaped(namespace), log, *effects)
    return table


def verify_table(values: dict[str, Any]) -> RenderableType:
    """Return the result of a comparison as a table."""
    verdict = "[green]equal[/]" if values["equal"] else "[bold red]not equal[/]"
    table = Table(
        title=f"{verdict}: {values['compared']:,} documents compared ({values['scope']}), "
        f"{values['different']:,} different",
        title_justify="left",
        caption="\n".join(_escaped(line) for line in [*values["counts"], *values["indexes"]]) or None,
        caption_justify="left",
    )
    for column in ("namespace", "_id", "difference", "fields"):
        table.add_column(column)
    for row in values["differences"]:
        table.add_row(_escaped(row["namespace"]), _escaped(row["id"]), row["kind"], _escaped(", ".join(row["fields"])))
    return table
