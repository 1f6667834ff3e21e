"""The target's own change stream: in memory, and on a real MongoDB server."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from bson import encode
from pymongo import AsyncMongoClient

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.adapters.target_changes import MongoTargetChanges
from d5agent.core.log.operation import OWN_DATABASE, ClusterTime, Namespace
from d5agent.core.log.raw import document_id
from d5agent.core.replay.replay import Barrier, Write, WriteBatch
from d5agent.errors import OperatorError
from tests.fakes.documents import raw_id
from tests.fakes.target import FakeTarget, FakeTargetChanges

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from d5agent.core.log.operation import Operation
    from d5agent.drill.servers import Mongod
    from d5agent.ports import Target, TargetChanges


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A database that is written, and its changes."""

    target: Target
    changes: TargetChanges
    name: str

    def collection(self, name: str) -> Namespace:
        return Namespace(self.name, name)

    async def put(self, namespace: Namespace, *documents: dict[str, Any]) -> None:
        """Write documents."""
        raw = [encode(document) for document in documents]
        writes = tuple(Write(id=document_id(document), document=document) for document in raw)
        assert not await self.target.write(WriteBatch(namespace=namespace, writes=writes))

    async def apply(self, kind: str, namespace: Namespace, *, to: Namespace | None = None) -> None:
        """Apply a barrier."""
        await self.target.apply(Barrier(kind=kind, namespace=namespace, rename_to=to, cluster_time=ClusterTime(1, 1)))

    async def until_mark(self, position: bytes, mark_id: str) -> tuple[list[Operation], bytes]:
        """Write a mark, and return what came before it, and where the stream goes on."""
        await self.changes.mark(mark_id)
        found: list[Operation] = []
        async with aclosing(self.changes.after(position)) as batches:
            async for batch in batches:
                for operation in batch:
                    if operation.is_ours and operation.document_id == raw_id(mark_id):
                        return found, operation.token
                    if not operation.is_ours:
                        found.append(operation)
        raise AssertionError("the mark did not come")


@pytest.fixture(params=["fake", "mongodb"])
async def watched(request: pytest.FixtureRequest, mongod: Mongod, fresh_name: str) -> AsyncIterator[Watched]:
    if request.param == "fake":
        fake = FakeTarget()
        yield Watched(target=fake, changes=FakeTargetChanges(fake), name=fresh_name)
        return
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongod.uri)
    async with client, open_mongo(mongod.uri, side="target") as opened:
        clock = SystemClock()
        yield Watched(
            target=MongoTarget(opened, clock=clock),
            changes=MongoTargetChanges(opened, clock=clock),
            name=fresh_name,
        )
        await client.drop_database(fresh_name)
        await client.drop_database(OWN_DATABASE)


async def test_each_document_that_was_written_or_deleted_is_told(watched: Watched) -> None:
    orders = watched.collection("orders")
    await watched.put(orders, {"_id": "before"})
    position = await watched.changes.position()
    await watched.put(orders, {"_id": 1}, {"_id": {"a": 1.0}, "filling": "x" * 1_000_000})
    await watched.target.write(WriteBatch(namespace=orders, writes=(Write(id=raw_id(1), document=None),)))
    found, position = await watched.until_mark(position, "one")
    assert {(o.namespace, o.document_id) for o in found} == {(orders, raw_id(1)), (orders, raw_id({"a": 1.0}))}
    assert {o.document_id for o in found if o.kind == "delete"} == {raw_id(1)}
    await watched.put(orders, {"_id": "after"})
    found, _ = await watched.until_mark(position, "two")
    assert [o.document_id for o in found] == [raw_id("after")]


async def test_drops_and_renames_are_told_by_name(watched: Watched) -> None:
    one, two = watched.collection("one"), watched.collection("two")
    await watched.put(one, {"_id": 1})
    position = await watched.changes.position()
    await watched.apply("rename", one, to=two)
    await watched.apply("drop", two)
    await watched.put(one, {"_id": 2})
    await watched.apply("dropDatabase", Namespace(watched.name))
    found, _ = await watched.until_mark(position, "moved")
    moved = {name for o in found if o.is_barrier for name in (o.namespace, o.rename_to) if name is not None}
    assert moved == {one, two, Namespace(watched.name)}
    assert [(o.namespace, o.rename_to) for o in found if o.kind == "rename"] == [(one, two)]


async def test_marks_take_each_others_place_and_go(watched: Watched) -> None:
    position = await watched.changes.position()
    for mark_id in ("one", "two", "two"):
        found, position = await watched.until_mark(position, mark_id) if mark_id == "one" else ([], position)
        await watched.changes.mark(mark_id)
        assert not found
    for _ in range(2):
        await watched.changes.remove_marks()


async def test_a_token_that_is_none_is_refused(mongod: Mongod) -> None:
    async with open_mongo(mongod.uri, side="target") as opened:
        changes = MongoTargetChanges(opened, clock=SystemClock())
        with pytest.raises(OperatorError):
            async with aclosing(changes.after(encode({"_data": "00"}))) as batches, asyncio.timeout(20):
                await anext(batches)
