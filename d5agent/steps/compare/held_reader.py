"""Reads the target as it is once the hold has ended: a held TTL index has the expiry that it gets back."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from d5agent.core.replay.ttl import seconds_before

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.ttl import TtlIndex
    from d5agent.core.replay.unique_key import Key, UniqueIndex
    from d5agent.ports import CollectionFacts, DocumentReader


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldReader:
    """A DocumentReader that tells no expiry of the hold's. `held`: what is held."""

    reader: DocumentReader
    held: Sequence[TtlIndex]

    async def collections(self) -> Sequence[Namespace]:
        """Return the applications' collections."""
        return await self.reader.collections()

    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        """Return the documents with these `_id`s."""
        return await self.reader.fetch(namespace, ids, most_bytes=most_bytes)

    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        """Yield a collection's documents."""
        async with aclosing(self.reader.scan(namespace)) as pages:
            async for page in pages:
                yield page

    async def count(self, namespace: Namespace, *, exactly: bool) -> int:
        """Return how many documents there are."""
        return await self.reader.count(namespace, exactly=exactly)

    async def facts(self, namespace: Namespace) -> CollectionFacts:
        """Return indexes and options."""
        found = await self.reader.facts(namespace)
        indexes, options = dict(found.indexes), dict(found.options)
        for index in found.ttl:
            seconds = seconds_before(index, self.held)
            if seconds is not None and index.name:
                number = _expiry(index.seconds)
                indexes[index.name] = indexes[index.name].replace(number, _expiry(seconds))
            elif seconds is not None:
                options["expireAfterSeconds"] = _whole(seconds)
        return replace(found, indexes=indexes, options=options)

    async def holders(self, namespace: Namespace, index: UniqueIndex, keys: Sequence[Key]) -> Sequence[bytes]:
        """Return the documents that hold one of these keys."""
        return await self.reader.holders(namespace, index, keys)


def _expiry(seconds: float) -> str:
    return f'"expireAfterSeconds": {_whole(seconds)}'


def _whole(seconds: float) -> str:
    """Return a number as readers tell it: 60.0 is 60."""
    return json.dumps(int(seconds) if float(seconds).is_integer() else seconds)
