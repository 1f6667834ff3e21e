"""A plan as a person sees it on a terminal: what restore would do, and what to look at before it does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table

from d5agent.screen.terminal import duration, escaped, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

_SHOWN: Final = 20


def plan_table(values: dict[str, Any]) -> RenderableType:
    """Return the dry run as tables and lists."""
    return Group(*_parts(values))


def _parts(values: dict[str, Any]) -> Iterator[RenderableType]:
    yield _namespaces(values)
    yield from _listed(values, "events", "drops and renames, in order", _event)
    yield from _listed(values, "unknown", "operations of a type that nobody knows how to apply", _event)
    yield from _listed(values, "conflicts", "conflicts of unique indexes foreseen", _conflict)
    unexpected = values["overwrites_unexpected"]
    surprise = f", {unexpected:,} of them inserted during the outage and yet in the target" if unexpected else ""
    yield from _listed(values, "overwrites", f"documents that would be overwritten{surprise}", _overwrite)
    if "divergence" in values:
        yield from _listed(values, "divergence", "documents that the outage did not touch, and that differ", _divergent)
    if "undelivered" in values:
        title = "documents that the outage touched, and whose last write in MongoDB DMS had not delivered"
        yield from _listed(values, "undelivered", title, _undelivered)
        kept_in = values["undelivered_kept_in"]
        if values["undelivered_total"] and kept_in:
            yield f"  restore overwrites these; MongoDB's versions stay in its dump: {escaped(kept_in)}"
    if values["indexes"]:
        yield _list("indexes and options that differ", len(values["indexes"]), values["indexes"][:_SHOWN])
    yield f"looked at: {escaped(values['looked_at'])}"
    yield from (f"not looked at: {escaped(line)}" for line in values["not_looked_at"])
    yield from (escaped(note) for note in values["notes"])
    yield from _estimate(values["estimate"])
    if "report_url" in values:
        yield f"report: {escaped(values['report_url'])}"
    yield _verdict(values)


def _namespaces(values: dict[str, Any]) -> Table:
    table = Table(
        title=f"restore would apply {values['operations']:,} operations, {size_of(values['bytes'])}",
        title_justify="left",
    )
    table.add_column("namespace", overflow="fold", min_width=12)
    for column in ("ins/upd/del/other", "bytes", "documents", "insert", "overwrite", "delete", "equal"):
        table.add_column(column, justify="right")
    for namespace, row in values["namespaces"].items():
        log = "/".join(str(row[kind]) for kind in ("inserts", "updates", "deletes", "others"))
        effects = (f"{row[column]:,}" for column in ("documents", "insert", "overwrite", "delete", "equal"))
        table.add_row(escaped(namespace), log, size_of(row["bytes"]), *effects)
    return table


def _listed(
    values: dict[str, Any], name: str, title: str, line: Callable[[dict[str, Any]], str]
) -> Iterator[RenderableType]:
    total = values[f"{name}_total"]
    if total or name == "divergence":
        yield _list(title, total, [line(row) for row in values[name][:_SHOWN]])


def _list(title: str, total: int, lines: list[str]) -> str:
    rest = [f"  … and {total - len(lines):,} more: in the report"] if total > len(lines) else []
    return "\n".join([f"{title}: [bold]{total:,}[/]", *(f"  {escaped(line)}" for line in lines), *rest])


def _event(row: dict[str, Any]) -> str:
    seconds, increment = row["cluster_time"]
    to = f" to {row['to']}" if row["to"] else ""
    return f"{row['kind']} {row['namespace']}{to}: commit {row['sequence']}, at {seconds}-{increment}"


def _conflict(row: dict[str, Any]) -> str:
    return f"{row['namespace']} {row['index']} {row['value']}: {row['id']} and {row['holder']} ({row['holder_is']})"


def _overwrite(row: dict[str, Any]) -> str:
    new = " (inserted during the outage, and yet in the target)" if row["is_new"] else ""
    return f"{row['namespace']} {row['id']}: {', '.join(row['fields'])}{new}"


def _divergent(row: dict[str, Any]) -> str:
    what = {
        "missing": "only in the source",
        "extra": "only in the target",
        "different": f"differs: {', '.join(row['fields'])}",
    }
    return f"{row['namespace']} {row['id']}: {what[row['kind']]}"


def _undelivered(row: dict[str, Any]) -> str:
    what = "deleted in MongoDB" if row["kind"] == "missing" else f"written in MongoDB: {', '.join(row['fields'])}"
    return f"{row['namespace']} {row['id']}: {what}"


def _estimate(estimate: dict[str, Any]) -> Iterator[str]:
    parts = ("reading", "writing", "comparing")
    each = ", ".join(f"{part} {duration(estimate[f'{part}_seconds'])}" for part in parts)
    yield f"restore would take about [bold]{duration(estimate['seconds'])}[/]: {each}"
    yield from (f"  [dim]{escaped(line)}[/]" for line in estimate["basis"])


def _verdict(values: dict[str, Any]) -> str:
    if values["go"]:
        return "[green]nothing stands in the way[/]"
    lines = "\n".join(f"  {escaped(obstacle)}" for obstacle in values["obstacles"])
    return (
        f"[bold red]restore would not get through:[/]\n{lines}\n  next: see the runbook, Read a plan; then plan again"
    )
