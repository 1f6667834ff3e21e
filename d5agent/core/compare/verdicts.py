"""The last word of the comparisons that were made after a proof: a red one keeps clean from deleting the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

FULL: Final = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A comparison's result. `at`: when it was made, as reports' names have it; `key`: its report."""

    scope: str
    at: str
    key: str
    is_equal: bool
    different: int


def name_time(at: str) -> str:
    """Return a time in ISO 8601 as the names of reports have it."""
    return at.replace(":", "")


def red_verdicts(verdicts: Iterable[Verdict], *, since: str) -> list[Verdict]:
    """Return the comparisons since a time that found differences and that no later one has refuted.

    A full comparison refutes any earlier one; one of the touched documents does not refute a full one.
    """
    standing: dict[str, Verdict] = {}
    for verdict in sorted(verdicts, key=lambda verdict: verdict.at):
        if verdict.at < name_time(since):
            continue
        if verdict.scope == FULL:
            standing.clear()
        standing[verdict.scope] = verdict
    return [verdict for verdict in standing.values() if not verdict.is_equal]
