"""Reports how far a replay is every second, also while the target does not answer, and writes a line now and then."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.log.chain import Total
from d5agent.core.run.replay_progress import BusyLanes, ReplayCounts
from d5agent.core.run.status import replay_to_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from d5agent.core.log.chain import Link
    from d5agent.core.replay.pace import Pace
    from d5agent.ports import Clock
    from d5agent.service import Coordinator
    from d5agent.steps.replay.checkpoint import Checkpoint

_TELL_SECONDS: Final = 1.0


@dataclass(slots=True, kw_only=True)
class ReplayReporter:
    """Follows a checkpoint: the replayer reads `watched(links)`, writes at `pace`, counts `busy` and calls `advance`.

    `keep_telling` runs beside it.

    What the log held when it was checked is the whole to begin with.
    """

    coordinator: Coordinator
    clock: Clock
    checkpoint: Checkpoint
    pace: Pace
    counts: ReplayCounts = field(default_factory=ReplayCounts)
    busy: BusyLanes = field(default_factory=BusyLanes)

    def __post_init__(self) -> None:
        """Take up what is known."""
        restore = self.coordinator.progress.restore
        self.counts.expect(Total(operations=restore.log_operations or 0, bytes=restore.log_bytes or 0))
        self.advance()

    async def watched(self, links: AsyncIterator[Link]) -> AsyncGenerator[Link]:
        """Yield commits as they come, and note what they add to the whole."""
        async for link in links:
            self.counts.expect(link.commit.total, sequence=link.commit.sequence)
            yield link

    def advance(self) -> None:
        """Note where the checkpoint is."""
        point = self.checkpoint
        self.counts.advance(
            now=self.clock.monotonic(),
            sequence=point.sequence,
            operations=point.operations,
            documents=point.written,
        )
        self.tell()

    def tell(self) -> None:
        """Report it, and write a line if one is due."""
        now = self.clock.monotonic()
        replay = self.counts.at(now, lanes=self.busy.average(now), lanes_allowed=self.pace.allowed)
        progress = self.coordinator.progress
        progress.restore = replace(progress.restore, replay=replay)
        if self.counts.is_line_due(now):
            percent = round(100 * self.counts.share)
            self.coordinator.journal.info("restore_progress", percent=percent, **replay_to_json(replay))

    async def keep_telling(self) -> None:
        """Tell every second: a target that stands still shows a rate that falls."""
        while True:
            await self.clock.sleep(_TELL_SECONDS)
            self.tell()
