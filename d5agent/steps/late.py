"""Operations that came into the log after what was verified: none may be dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.core.log import foreign_operations
from d5agent.steps.log_reader import LogReader

if TYPE_CHECKING:
    from d5agent.core.log import Link
    from d5agent.core.services import Verified
    from d5agent.ports import ObjectStore


async def operations_after(reader: LogReader, last: Link | None) -> int:
    """Return how many operations of others the log holds behind a commit."""
    return sum([foreign_operations(link.commit) async for link in reader.links(after=last)])


async def late_operations(store: ObjectStore, verified: Verified | None) -> int:
    """Return how many operations of others the log holds behind the proof (all of them, without one)."""
    covered = -1 if verified is None else verified.sequence
    links = LogReader(store=store).links()
    return sum([foreign_operations(link.commit) async for link in links if link.commit.sequence > covered])
