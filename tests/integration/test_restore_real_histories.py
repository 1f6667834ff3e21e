"""The property tests' histories into a real server: what the fakes promise of one is true of it."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from bson.raw_bson import RawBSONDocument
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import SYSTEM_DATABASES, open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.core.log.operation import OWN_DATABASE
from d5agent.core.log.raw import document_id
from tests.fakes.mortal import Life
from tests.fakes.target import FakeTarget
from tests.property.rehearsal import ANY_SHAPE, COPIED_AT, MANNERS, WILD, Manner, Rehearsal, rehearsal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from d5agent.adapters.mongo import Client
    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.pace import Tickets
    from d5agent.core.replay.replay import Barrier, Failure, WriteBatch
    from d5agent.core.replay.unique_key import Key, UniqueIndex
    from d5agent.drill.servers import Mongod
    from d5agent.ports import CollectionFacts
    from tests.fakes.documents import FakeDatabase
    from tests.property.histories import Step
    from tests.property.shapes import Shape

pytestmark = pytest.mark.timeout(3600)  # of make soak; make test takes seconds
EXAMPLES = 500 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 30


class ServerTarget(FakeTarget):
    """The calls of a target, on a real server. `database` stays what it began with."""

    def __init__(self, client: Client, began: FakeDatabase) -> None:
        super().__init__(began)
        self._client = client
        self._writer = MongoTarget(client, clock=SystemClock())
        self._reader = MongoReader(client, side="target", clock=SystemClock())

    async def load(self) -> None:
        """Put what it began with on the server, and nothing else."""
        for name in {*await self._client.list_database_names()} - SYSTEM_DATABASES:  # other tests' too
            await self._client.drop_database(name)
        for namespace, indexes in self.database.unique.items():
            collection = self._client[namespace.database][namespace.collection or ""]
            for index in indexes:
                await collection.create_index([(field, 1) for field in index.fields], **index.options)
        for namespace, documents in self.database.collections.items():
            await self._writer.create_collection(namespace)
            if documents:
                collection = self._client[namespace.database][namespace.collection or ""]
                await collection.insert_many([RawBSONDocument(document) for document in documents.values()])

    async def drop_indexes(self) -> None:
        """Do what an operator does about a unique index that only the target has."""
        for namespace in await self._reader.collections():
            await self._client[namespace.database][namespace.collection or ""].drop_indexes()

    async def contents(self) -> dict[Namespace, dict[DocumentId, bytes]]:
        """Return all documents of all collections that hold any."""
        found = {}
        for namespace in await self._reader.collections():
            documents = [document async for page in self._reader.scan(namespace) for document in page]
            if documents:
                found[namespace] = {document_id(document): document for document in documents}
        return found

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        return await self._writer.write(batch)

    @override
    async def apply(self, barrier: Barrier) -> None:
        await self._writer.apply(barrier)

    @override
    async def create_collection(self, namespace: Namespace) -> None:
        await self._writer.create_collection(namespace)

    @override
    async def collections(self) -> Sequence[Namespace]:
        return await self._reader.collections()

    @override
    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        return await self._reader.fetch(namespace, ids, most_bytes=most_bytes)

    @override
    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        async for page in self._reader.scan(namespace):
            yield page

    @override
    async def count(self, namespace: Namespace, *, exactly: bool) -> int:
        return await self._reader.count(namespace, exactly=exactly)

    @override
    async def holders(self, namespace: Namespace, index: UniqueIndex, keys: Sequence[Key]) -> Sequence[bytes]:
        return await self._reader.holders(namespace, index, keys)

    @override
    async def tickets(self) -> Tickets | None:
        return await self._writer.tickets()

    @override
    async def facts(self, namespace: Namespace) -> CollectionFacts:
        return await self._reader.facts(namespace)


@asynccontextmanager
async def on_server(case: Rehearsal, server: Mongod) -> AsyncGenerator[ServerTarget]:
    """Put a case's target on a server."""
    async with open_mongo(server.uri, side="target") as client:
        case.target = target = ServerTarget(client, case.target.database)
        await target.load()
        yield target


@settings(max_examples=EXAMPLES)
@given(
    before=WILD,
    after=WILD,
    copied_at=COPIED_AT,
    shape=ANY_SHAPE,
    manner=MANNERS,
    cuts=st.lists(st.floats(0, 1), max_size=1),
)
def test_a_real_server_becomes_what_the_source_is(
    target_server: Mongod,
    *,
    before: list[Step],
    after: list[Step],
    copied_at: float,
    shape: Shape,
    manner: Manner,
    cuts: list[float],
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, copied_at=copied_at, shape=shape)
        uncut = await case.halves()
        async with on_server(case, target_server) as target:
            await case.die(cuts, uncut)
            await case.replay(Life(None))
            report = await case.verify()
            if not report.is_equal:
                await target.drop_indexes()  # a unique one of a collection that no rename could replace there
                report = await case.verify()
            assert report.is_equal, report.differences
            found = {n: d for n, d in case.recording.cluster.database.contents().items() if n.database != OWN_DATABASE}
            assert await target.contents() == found

    asyncio.run(run())
