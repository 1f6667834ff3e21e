"""Finds the small segments of a log in its packs, part by part, as a reader goes through the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.log.chain import ROLLUP_SIZE
from d5agent.core.log.pack import damaged_pack, decode_pack, is_small, pack_key
from d5agent.core.log.segment import is_intact
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from d5agent.core.log.chain import Link
    from d5agent.core.log.segment import SegmentRef
    from d5agent.ports import ObjectStore

_AT_ONCE: Final = 16


@dataclass(slots=True)
class _Pack:
    """A thousand's pack: the part that was read last. `is_last`: there is no further one."""

    part: int
    bodies: Mapping[str, bytes]
    is_last: bool


@dataclass(slots=True, kw_only=True)
class Packs:
    """The packs of one pass through a log, in order. `packed`: the thousands that have one."""

    store: ObjectStore
    packed: Container[int]
    _open: dict[int, _Pack] = field(default_factory=dict)

    async def bodies_of(self, group: Sequence[Link]) -> dict[str, bytes]:
        """Return the segments of some commits that packs hold, by key; the group after may share a pack with them.

        CorruptDataError: a pack has another segment than its commit says.
        """
        firsts = {first for link in group if (first := thousand_of(link)) in self.packed}
        for first in self._open.keys() - firsts:
            del self._open[first]
        missing = sorted(firsts - self._open.keys())
        self._open.update(zip(missing, await parallel(self._begin, missing, limit=_AT_ONCE), strict=True))
        found: dict[str, bytes] = {}
        for link in group:
            if (first := thousand_of(link)) in firsts:
                for ref in filter(is_small, link.commit.segments):
                    body = await self._find(first, ref)
                    if body is not None:
                        found[ref.key] = body
        return found

    async def _begin(self, first: int) -> _Pack:
        body = await self.store.get(pack_key(first))
        return _Pack(1, {} if body is None else decode_pack(body, key=pack_key(first)), is_last=body is None)

    async def _find(self, first: int, ref: SegmentRef) -> bytes | None:
        """Return a segment; parts hold the log's segments in order, so a part that is left is not needed again."""
        pack = self._open[first]
        while ref.key not in pack.bodies and not pack.is_last:
            key = pack_key(first, pack.part + 1)
            body = await self.store.get(key)
            if body is None:  # an earlier version wrote one part only
                pack.is_last = True
            else:
                pack.part, pack.bodies = pack.part + 1, decode_pack(body, key=key)
        found = pack.bodies.get(ref.key)
        if found is not None and not is_intact(ref, found):
            raise damaged_pack(pack_key(first, pack.part))
        return found


def thousand_of(link: Link) -> int:
    """Return the first sequence number of the thousand that a commit belongs to."""
    return link.commit.sequence - link.commit.sequence % ROLLUP_SIZE
