"""Tells how far a restore is: its facts every second, also while the target stands still, and a line now and then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.log import Total
from d5agent.core.progress import BusyLanes, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from d5agent.core.log import Link
    from d5agent.core.pace import Pace
    from d5agent.ports import Clock
    from d5agent.service import Coordinator
    from d5agent.steps.checkpoint import Checkpoint

_TELL_SECONDS: Final = 1.0


@dataclass(slots=True, kw_only=True)
class RestoreProgress:
    """Follows a checkpoint: the replayer reads `watched(links)`, writes at `pace`, counts `busy` and calls `advance`.

    `keep_telling` runs beside it.

    What the service reported as `operations_total` and `bytes_total` on checking the log is the whole to begin with.
    """

    coordinator: Coordinator
    clock: Clock
    checkpoint: Checkpoint
    pace: Pace
    progress: Progress = field(default_factory=Progress)
    busy: BusyLanes = field(default_factory=BusyLanes)

    def __post_init__(self) -> None:
        """Take up what is known."""
        operations, bytes_ = (self.coordinator.facts.get(name, 0) for name in ("operations_total", "bytes_total"))
        self.progress.expect(Total(operations=int(str(operations)), bytes=int(str(bytes_))))
        self.advance()

    async def watched(self, links: AsyncIterator[Link]) -> AsyncGenerator[Link]:
        """Yield commits as they come, and note what they add to the whole."""
        async for link in links:
            self.progress.expect(link.commit.total, sequence=link.commit.sequence)
            yield link

    def advance(self) -> None:
        """Note where the checkpoint is."""
        point = self.checkpoint
        self.progress.advance(
            now=self.clock.monotonic(),
            sequence=point.sequence,
            operations=point.operations,
            documents=point.written,
        )
        self.tell()

    def tell(self) -> None:
        """Report the facts, and write a line if one is due."""
        now = self.clock.monotonic()
        lanes = self.busy.average(now)
        facts = {
            **self.progress.facts(now),
            "lanes": None if lanes is None else round(lanes, 1),
            "lanes_allowed": self.pace.allowed,
        }
        self.coordinator.report(**facts)
        if self.progress.is_line_due(now):
            self.coordinator.journal.info("restore_progress", percent=round(100 * self.progress.share), **facts)

    async def keep_telling(self) -> None:
        """Tell every second: a target that stands still shows a rate that falls."""
        while True:
            await self.clock.sleep(_TELL_SECONDS)
            self.tell()
