"""A reader that takes its time: it leaves both servers, and the event loop, to who is in a hurry."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.unique_key import Key, UniqueIndex
    from d5agent.ports import Clock, CollectionFacts, DocumentReader

_LOOK_SECONDS: Final = 0.5
_LONGEST_REST_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedReader:
    """A DocumentReader that rests after each page of a scan, `rest` times as long as the page took.

    `is_held`: while it says so, nothing is read.
    """

    reader: DocumentReader
    clock: Clock
    rest: float
    is_held: Callable[[], bool]

    async def collections(self) -> Sequence[Namespace]:
        """Return the applications' collections."""
        await self.wait()
        return await self.reader.collections()

    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        """Return the documents with these `_id`s."""
        await self.wait()
        return await self.reader.fetch(namespace, ids, most_bytes=most_bytes)

    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        """Yield a collection's documents, with a rest after each page."""
        await self.wait()
        began = self.clock.monotonic()
        async with aclosing(self.reader.scan(namespace)) as pages:
            async for page in pages:
                took = self.clock.monotonic() - began
                yield page
                await self.pause(took)
                began = self.clock.monotonic()

    async def count(self, namespace: Namespace, *, exactly: bool) -> int:
        """Return how many documents there are."""
        await self.wait()
        return await self.reader.count(namespace, exactly=exactly)

    async def facts(self, namespace: Namespace) -> CollectionFacts:
        """Return indexes and options."""
        await self.wait()
        return await self.reader.facts(namespace)

    async def holders(self, namespace: Namespace, index: UniqueIndex, keys: Sequence[Key]) -> Sequence[bytes]:
        """Return the documents that hold one of these keys."""
        await self.wait()
        return await self.reader.holders(namespace, index, keys)

    async def pause(self, took: float) -> None:
        """Rest after work that took so many seconds."""
        rest = min(_LONGEST_REST_SECONDS, self.rest * took)
        if rest > 0:
            await self.clock.sleep(rest)
        await self.wait()

    async def wait(self) -> None:
        """Wait while reading is held."""
        while self.is_held():
            await self.clock.sleep(_LOOK_SECONDS)
