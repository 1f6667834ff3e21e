"""Looks repairs up in the log: where their last events are stored, and what these told."""

from __future__ import annotations

from collections import defaultdict
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from d5agent.steps.log.reader import link_of

if TYPE_CHECKING:
    from d5agent.core.compare.repair import Repair
    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.log.segment import SegmentRef
    from d5agent.steps.log.reader import LogReader

_LOOKED_INTO: Final = 50  # repairs: each may cost the reading of a segment, while applications wait


async def explain_repairs(reader: LogReader, report: VerifyReport) -> None:
    """Let the first repairs know what their last events told."""
    by_commit: dict[int, list[Repair]] = defaultdict(list)
    for repair in report.repaired[:_LOOKED_INTO]:
        if repair.event is not None and not repair.segment:
            by_commit[repair.event.sequence].append(repair)
    for sequence, repairs in sorted(by_commit.items()):
        link = await link_of(reader.store, sequence)
        for ref in link.commit.segments:
            some = [r for r in repairs if r.event is not None and ref.first <= r.event.cluster_time <= ref.last]
            if some:
                await _look_into(reader, ref, some)


async def _look_into(reader: LogReader, ref: SegmentRef, repairs: list[Repair]) -> None:
    by_document = {(repair.difference.namespace, repair.difference.id): repair for repair in repairs}
    async with aclosing(reader.segment(ref)) as operations:
        async for operation in operations:
            if operation.document_id is None:
                continue
            repair = by_document.get((operation.namespace, operation.document_id))
            if repair is not None:  # of several events, the last one counts
                document = None if operation.kind == "delete" else operation.document
                repair.segment, repair.event_hash = ref.key, None if document is None else hash(document)
