"""What a person sees of a comparison: how far it is while it runs, and what it found."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from d5agent.core.compare.report import VerifyReport


@contextmanager
def verify_progress(console: Console | None = None) -> Iterator[Callable[[VerifyReport], None]]:
    """Show on the terminal how far a comparison is; nothing where standard error is no terminal."""
    console = console or Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("comparing")

        def tell(report: VerifyReport) -> None:
            whole = f" of about {report.expected:,}" if report.expected and report.expected > report.compared else ""
            words = f"{report.compared:,}{whole} documents compared in {len(report.namespaces):,} collections"
            colour = "bold red" if report.different else "green"
            progress.update(task, description=f"{words}, [{colour}]{report.different:,} different[/]")

        yield tell


def verify_table(values: dict[str, Any]) -> RenderableType:
    """Return the result of a comparison as a table, and below it what is no document."""
    verdict = "[green]equal[/]" if values["equal"] else "[bold red]not equal[/]"
    counts = f"{values['compared']:,} documents compared ({values['scope']}), {values['different']:,} different"
    table = Table()
    for column in ("namespace", "_id", "difference", "fields"):
        table.add_column(column, overflow="fold")
    for row in values["differences"]:
        table.add_row(escape(row["namespace"]), escape(row["id"]), row["kind"], escape(", ".join(row["fields"])))
    more = values["different"] - len(values["differences"])
    below = [f"and {more:,} more documents, counted and not named"] if more > 0 else []
    below += [f"[bold red]{escape(line)}[/]" for line in values["counts"]]
    below += [f"[yellow]{escape(line)}[/]" for line in values["indexes"]]
    below += [_certificate(values["certificate"]), f"report: {escape(values['report_url'])}, as a page beside it"]
    return Group(f"{verdict}: {counts}", *([table] if values["differences"] else []), *below)


def _certificate(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "no certificate has been issued in this run"
    if certificate["valid"]:
        said = f"whole, {certificate['reason']}" if certificate["reason"] else "whole, and this log's"
        return f"certificate: [green]{escape(said)}[/]: {escape(certificate['url'])}"
    return f"certificate: [bold red]{escape(certificate['reason'])}[/]: {escape(certificate['url'])}"
