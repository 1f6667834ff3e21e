"""A set that takes a dozen bytes an element: which documents a log of millions of operations touches."""

from __future__ import annotations

from array import array
from typing import Final

_FLAG: Final = 1 << 63
_HASH: Final = _FLAG - 1
_ROOM: Final = 1.5  # slots an element: beyond it, looking for a free one takes long
BYTES_EACH: Final = 12
"""What an element costs: a slot of eight bytes, and room."""
MASK_BYTES_EACH: Final = 6
"""What the mask of an element costs besides."""


class CompactHashSet:
    """Remembers about `most` things by 63 bits of their hashes, more if they come; each can be marked once.

    Two things of one hash are taken for one: with ten million, the chance that there is such a pair is one in 100,000.
    A Python set takes five times the memory. `has_masks`: each has a mask of 32 bits too, zero to begin with.
    """

    def __init__(self, most: int, *, has_masks: bool = False) -> None:
        self._slots = int(most * _ROOM) + 2
        self._table = array("Q", bytes(8 * self._slots))
        self._has_masks = has_masks
        self._masks = self._new_masks()
        self._room = most
        self._count = 0

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether there are `most`: more take more memory."""
        return self._count >= self._room

    def add(self, thing: object) -> bool:
        """Remember a thing; return whether it is new."""
        if self._count + 1 >= self._slots:
            self._grow()
        at, hash_ = self._find(thing)
        if self._table[at]:
            return False
        self._table[at] = hash_
        self._count += 1
        return True

    def __contains__(self, thing: object) -> bool:
        """Whether it was added."""
        return self._table[self._find(thing)[0]] != 0

    def mark(self, thing: object) -> bool:
        """Mark what was added; return whether it was not marked before."""
        at, _ = self._find(thing)
        if self._table[at] & _FLAG:
            return False
        self._table[at] |= _FLAG
        return True

    def set_bits(self, thing: object, bits: int) -> None:
        """Set bits in the mask of what was added."""
        self._masks[self._find(thing)[0]] |= bits

    def mask(self, thing: object) -> int:
        """Return the mask of what was added."""
        return self._masks[self._find(thing)[0]]

    def _new_masks(self) -> array[int]:
        return array("I", bytes(4 * self._slots if self._has_masks else 0))

    def _find(self, thing: object) -> tuple[int, int]:
        """Return the slot that holds a thing, or the free one where it belongs; and its hash, which is never nought."""
        hash_ = hash(thing) & _HASH or 1
        return self._slot(hash_), hash_

    def _slot(self, hash_: int) -> int:
        # One slot at least is free: else this had no end.
        table, slots = self._table, self._slots
        at = hash_ % slots
        while table[at] and table[at] & _HASH != hash_:
            at = at + 1 if at + 1 < slots else 0
        return at

    def _grow(self) -> None:
        before, masks, self._slots = self._table, self._masks, 2 * self._slots
        self._table, self._masks = array("Q", bytes(8 * self._slots)), self._new_masks()
        for at, entry in enumerate(before):
            if entry:
                slot = self._slot(entry & _HASH)
                self._table[slot] = entry
                if self._has_masks:
                    self._masks[slot] = masks[at]
