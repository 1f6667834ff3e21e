"""What a person sees on a terminal: tables, followed events, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

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
    return table


def _caption(values: dict[str, Any]) -> str:
    capture, verify = values["capture"], values["verify"]
    parts = [f"run {values['run_id'] or '-'}", f"ready {values['ready_at'] or 'never'}"]
    if capture["operations"] is not None:
        parts.append(
            f"{capture['operations']:,} operations in {capture['segments']:,} segments, "
            f"{capture['lag_seconds']} s behind"
        )
    if verify["compared"] is not None:
        parts.append(f"{verify['compared']:,} documents compared, {verify['different']} different")
    return " · ".join(parts)


def _progress(row: dict[str, Any]) -> str:
    known = {"state", "reason", "since", "error", "hint"}
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
