"""What the drill's microservices were told by the database: the books that a restore is held to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Ledger:
    """Counts by kind of operation, and by kind of elementary write."""

    attempted: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    # The connection broke before the answer: done or not, nobody knows.
    unknown: Counter[str] = field(default_factory=Counter)
    # The server said no; `refusals` holds its codes.
    refused: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    # insert, update, replace, delete, drop, rename, dropDatabase, create: each acknowledged.
    writes: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All acknowledged operations."""
        return self.acknowledged.total()

    def wrote(self, kind: str, count: int = 1) -> None:
        """Book acknowledged writes."""
        self.writes[kind] += count
