"""What a person sees on a terminal: tables, followed events, errors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from d5agent.errors import AgentError


def print_(what: RenderableType) -> None:
    """Print to standard output."""
    # A text is not broken into lines of the terminal's width: what is copied from it stays whole.
    Console(highlight=False).print(what, soft_wrap=isinstance(what, str))


@contextmanager
def redrawn(console: Console, *, is_wanted: bool) -> Iterator[Callable[[RenderableType], None]]:
    """Give what shows a thing again and again in the same place; where there is no terminal, it prints."""
    if not (is_wanted and console.is_terminal):
        yield console.print
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        yield lambda what: live.update(what, refresh=True)


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


_MARKS: Final = {
    "ok": "[green]ok[/]",
    "no": "[bold red]no[/]",
    "later": "[yellow]later[/]",
    "warning": "[yellow]warning[/]",
}
_NEEDED: Final = {"now": "now", "restore": "for restore", "clean": "for clean"}


def check_table(values: dict[str, Any]) -> RenderableType:
    """Return the preflight's result as a table."""
    ready = [phase for phase, is_ready in values["ready"].items() if is_ready]
    title = f"ready for {', '.join(ready)}" if ready else "not ready"
    table = Table(title=title, title_justify="left")
    for column in ("", "what", "needed", "found", "next"):
        table.add_column(column)
    for row in values["checks"]:
        mark, needed = _MARKS[row["state"]], _NEEDED[row["needed"]]
        table.add_row(mark, row["what"], needed, escaped(row["found"]), escaped(row["hint"]))
    return table


def segments_table(values: dict[str, Any]) -> RenderableType:
    """Return segments as a table."""
    table = Table()
    for column in ("commit", "operations", "bytes", "address"):
        table.add_column(column, justify="left" if column == "address" else "right", no_wrap=column != "address")
    for row in values["segments"]:
        table.add_row(str(row["commit"]), f"{row['count']:,}", f"{row['bytes']:,}", escaped(row["url"]))
    return table


def log_table(values: dict[str, Any]) -> RenderableType:
    """Return the result of checking the log."""
    return (
        f"[green]the log is whole[/]: {values['commits']:,} commits, {values['segments']:,} segments, "
        f"{values['operations']:,} operations, {values['bytes']:,} bytes, to {values['cluster_time']}; "
        f"{len(values['orphans']):,} orphans of crashes, which nobody reads"
    )


def escaped(text: str) -> str:
    """Return a text that rich shows as it is."""
    return text.replace("[", "\\[")


def duration(seconds: float) -> str:
    """Return a duration in the two units that matter."""
    left = round(seconds)
    for size, unit, smaller, small_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {unit} {rest} {small_unit}" if rest else f"{left // size} {unit}"
    return f"{left} s"


def size_of(count: float) -> str:
    """Return bytes in the largest unit that leaves a digit before the point."""
    for size, unit in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,} bytes"
