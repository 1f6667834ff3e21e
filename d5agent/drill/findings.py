"""What the drill found: figures for the table, and the checks that decide its exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table


@dataclass(slots=True)
class Findings:
    """Figures by name, and checks that must all hold."""

    figures: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    hashes: list[tuple[str, str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def check(self, what: str, *, holds: bool) -> None:
        """Note whether something holds."""
        self.checks[what] = holds

    @property
    def is_good(self) -> bool:
        """Whether all that was checked holds, and something was."""
        return bool(self.checks) and all(self.checks.values())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "equal": self.is_good,
            "figures": self.figures,
            "checks": self.checks,
            "db_hash": [{"database": d, "source": s, "target": t, "equal": s == t} for d, s, t in self.hashes],
            "differences": self.differences,
        }

    def table(self) -> RenderableType:
        """Return the tables that end a drill."""
        figures = Table(title="The failback in figures", title_justify="left", show_header=False)
        figures.add_column(style="dim")
        figures.add_column(justify="right", style="bold")
        for name, value in self.figures.items():
            figures.add_row(name, _shown(value))
        hashes = Table(title="dbHash of both servers", title_justify="left")
        for column in ("database", "DocumentDB", "MongoDB", ""):
            hashes.add_column(column)
        for database, source, target in self.hashes:
            hashes.add_row(database, source[:16], target[:16], _mark(holds=source == target))
        checks = Table(title="What must hold", title_justify="left", show_header=False)
        checks.add_column()
        checks.add_column()
        for what, holds in self.checks.items():
            checks.add_row(_mark(holds=holds), what)
        verdict = (
            "[bold green]Both databases are equal: no operation lost, none invented.[/]"
            if self.is_good
            else "[bold red]NOT EQUAL, or a promise is broken: see above.[/]"
        )
        return Group(figures, hashes, checks, *self.differences, verdict)


def _mark(*, holds: bool) -> str:
    return "[green]✓[/]" if holds else "[bold red]✗[/]"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f} s"
    return f"{value:,}" if isinstance(value, int) else str(value)
