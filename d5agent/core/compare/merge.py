"""Two scans of one collection, side by side: equal pages pass as a whole, equal runs too; the rest goes by `_id`.

Both sides send a collection in `_id` order, so pages are nearly always the same bytes. The order is only a hint: what
does not fit into it waits for its partner in a Matcher.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.compare import Matcher
from d5agent.core.log.raw import document_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.log.raw import DocumentId

_BLOCK: Final = 64  # documents compared at once, where two pages are not the same


@dataclass(slots=True)
class Merger:
    """Takes pages of both sides (0 source, 1 target). What differs, or has no partner, ends up in `matcher`."""

    matcher: Matcher = field(default_factory=Matcher)
    _buffers: tuple[list[bytes], list[bytes]] = field(default_factory=lambda: ([], []))
    _indexes: dict[int, dict[DocumentId, int]] = field(default_factory=dict)

    def needs(self, side: int) -> bool:
        """Whether there is nothing left of that side's pages."""
        return not self._buffers[side]

    def add(self, source: Sequence[bytes], target: Sequence[bytes]) -> None:
        """Take the next page of both sides; an empty one where a side has enough, or has ended."""
        if self.needs(0) and self.needs(1) and source == target:
            self.matcher.compared += len(source)
            return
        ours, theirs = [*self._buffers[0], *source], [*self._buffers[1], *target]
        self._indexes.clear()
        at, other = self._merge(ours, theirs)
        self._buffers = ours[at:], theirs[other:]

    def drain(self, side: int) -> None:
        """Take what is left of a side whose other side has ended: it has no partner, unless that waits already."""
        self._leave(side, self._buffers[side])
        self._buffers[side].clear()

    def _merge(self, ours: list[bytes], theirs: list[bytes]) -> tuple[int, int]:
        """Go through both until one of them ends; return how far each was gone through."""
        i = j = 0
        while True:
            run = _same(ours, i, theirs, j)
            self.matcher.compared += run
            i, j = i + run, j + run
            if i == len(ours) or j == len(theirs):
                return i, j
            i, j = self._step(ours, i, theirs, j)

    def _step(self, ours: list[bytes], i: int, theirs: list[bytes], j: int) -> tuple[int, int]:
        """Pass over the first two documents that are not the same; return where to go on."""
        one, other = document_id(ours[i]), document_id(theirs[j])
        if one == other:
            self.matcher.meet(one, ours[i], theirs[j])
            return i + 1, j + 1
        # A partner that came before: the other side stands still, and both are level again.
        if self.matcher.is_waiting(1, one):
            self.matcher.add(0, one, ours[i])
            return i + 1, j
        if self.matcher.is_waiting(0, other):
            self.matcher.add(1, other, theirs[j])
            return i, j + 1
        # A partner that is to come: what lies before it is one side's alone, as far as the order can be trusted.
        ahead = self._index(0, ours).get(other, -1)
        if ahead > i:
            self._leave(0, ours[i:ahead])
            return ahead, j
        ahead = self._index(1, theirs).get(one, -1)
        if ahead > j:
            self._leave(1, theirs[j:ahead])
            return i, ahead
        self._leave(0, ours[i : i + 1])
        self._leave(1, theirs[j : j + 1])
        return i + 1, j + 1

    def _index(self, side: int, documents: list[bytes]) -> dict[DocumentId, int]:
        if side not in self._indexes:
            self._indexes[side] = {document_id(document): number for number, document in enumerate(documents)}
        return self._indexes[side]

    def _leave(self, side: int, documents: Sequence[bytes]) -> None:
        for document in documents:
            self.matcher.add(side, document_id(document), document)


def _same(ours: list[bytes], i: int, theirs: list[bytes], j: int) -> int:
    """Return how many documents from there on are the same, one by one."""
    begin, most = i, min(len(ours) - i, len(theirs) - j)
    end = i + most
    while i < end and ours[i : (stop := min(i + _BLOCK, end))] == theirs[j : j + stop - i]:
        i, j = stop, j + stop - i
    while i < end and ours[i] == theirs[j]:
        i, j = i + 1, j + 1
    return i - begin
