"""Operations that came into the log after what was verified: none may be dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.core.log.chain import foreign_operations, is_own
from d5agent.steps.log.reader import LogReader, link_of

if TYPE_CHECKING:
    from d5agent.core.run.services import Fence


async def operations_behind(reader: LogReader, fence: Fence, *, until: int) -> int:
    """Return how many operations of others the log holds behind the fence marker, up to and including a commit.

    By their place in the log, whenever they were read. In the marker's own commit, what has a later time is behind it.
    """
    link = await link_of(reader.store, fence.sequence)
    behind = 0
    if any(ref.last > fence.cluster_time and not is_own(ref) for ref in link.commit.segments):
        async for operation in reader.operations(link.commit):
            behind += not operation.is_ours and operation.cluster_time > fence.cluster_time
    async for newer in reader.links(after=link):
        if newer.commit.sequence > until:
            break
        behind += foreign_operations(newer.commit)
    return behind
