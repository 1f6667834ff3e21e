"""What a comparison found: counts, the differences by name, what was repaired."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from d5agent.core.compare import Difference

NAMED: Final = 1000  # differences that a report names; all are counted


@dataclass(slots=True, kw_only=True)
class VerifyReport:
    """The result of comparing source and target. `scope` is "touched" or "full"."""

    scope: str
    run_id: str = ""
    sequence: int | None = None
    operations: int = 0
    compared: int = 0
    namespaces: set[str] = field(default_factory=set)
    different: int = 0
    differences: list[Difference] = field(default_factory=list)
    repaired: list[Difference] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_equal(self) -> bool:
        """Whether every compared document, and every count, is the same on both sides."""
        return self.different == 0 and not self.counts

    def add(self, difference: Difference) -> None:
        """Count a difference, and name it unless too many are named already."""
        self.different += 1
        if len(self.differences) < NAMED:
            self.differences.append(difference)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for `--json` and the store."""
        return {
            "version": 1,
            "scope": self.scope,
            "run_id": self.run_id,
            "sequence": self.sequence,
            "operations": self.operations,
            "equal": self.is_equal,
            "compared": self.compared,
            "different": self.different,
            "namespaces": sorted(self.namespaces),
            "differences": [difference.to_json() for difference in self.differences],
            "repaired": [difference.to_json() for difference in self.repaired],
            "indexes": self.indexes,
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
        }


def index_differences(namespace: str, source: dict[str, str], target: dict[str, str]) -> list[str]:
    """Return the indexes that one side lacks or has otherwise, in words.

    They are told, but do not make the databases unequal: DMS copies no secondary index, and a change stream of
    DocumentDB shows none being created, so the two sides may differ for good reasons.
    """
    found = []
    for name in sorted({**source, **target}):
        if name not in target:
            found.append(f"{namespace}: index {name} is missing in the target: {source[name]}")
        elif name in source and source[name] != target[name]:
            found.append(f"{namespace}: index {name} differs: {source[name]} in the source, {target[name]}")
    return found
