"""How long the source keeps its changes, without AWS."""

from __future__ import annotations

from dataclasses import dataclass, field

from d5agent.core.run.horizon import Basis, Retention


@dataclass(slots=True, kw_only=True)
class FakeRetention:
    """Answers what it was given; `asked` counts."""

    found: Retention = field(default_factory=lambda: Retention(seconds=10_800, basis=Basis.AWS))
    asked: int = 0

    async def read(self) -> Retention:
        self.asked += 1
        return self.found
