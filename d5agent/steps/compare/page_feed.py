"""One side of a comparison: the next page is asked for while this one is worked on, unless pages are large."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_AHEAD_BYTES: Final = 4 * 1024 * 1024  # a page may be 16 MiB, and two collections are read at a time, on two sides


@dataclass(slots=True, kw_only=True)
class PageFeed:
    """Pages that were read and not yet taken. `fill` runs beside whoever takes them."""

    pages: AsyncGenerator[Sequence[bytes]]
    has_ended: bool = False
    _read: deque[Sequence[bytes]] = field(default_factory=deque)
    _held: int = 0
    _lent: int = 0
    """The bytes of the page that is worked on."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def fill(self) -> None:
        """Read on while little waits, or is worked on."""
        async for page in self.pages:
            self._read.append(page)
            self._held += _size(page)
            self._changed.set()
            while self._held > _AHEAD_BYTES or len(self._read) > 1:
                self._changed.clear()
                await self._changed.wait()
        self.has_ended = True
        self._changed.set()

    async def next_page(self) -> Sequence[bytes]:
        """Return the next page; none at the end. The one before counts as done with."""
        self._held -= self._lent
        self._lent = 0
        self._changed.set()
        while not self._read:
            if self.has_ended:
                return ()
            self._changed.clear()
            await self._changed.wait()
        page = self._read.popleft()
        self._lent = _size(page)
        return page


def _size(page: Sequence[bytes]) -> int:
    size: int | None = getattr(page, "size", None)
    return sum(map(len, page)) if size is None else size
