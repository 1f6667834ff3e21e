"""A log written one object after the other: for tests whose subject is not how capture overlaps its work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d5agent.core.log.segment import SegmentRef
    from d5agent.core.log.segmenter import Cut
    from d5agent.steps.log.writer import LogWriter


class OneByOne:
    """Takes what a segmenter cuts, as the pipeline does."""

    def __init__(self, writer: LogWriter) -> None:
        self.writer = writer
        self._stored: list[SegmentRef] = []

    async def take(self, cut: Cut) -> None:
        self._stored += [await self.writer.store_segment(segment) for segment in cut.segments]
        if cut.position is not None:
            stored = [_done(ref) for ref in self._stored]
            await self.writer.publish(stored, cut.position, renames_within=cut.renames_within)
            self._stored = []


async def _done(ref: SegmentRef) -> SegmentRef:
    return ref
