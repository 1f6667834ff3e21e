"""Indexes and options of real collections: read, lost with a drop, and built again as they were."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pymongo import ASCENDING, TEXT, AsyncMongoClient, IndexModel

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_specifications import MongoSpecifications
from d5agent.core.log.operation import Namespace
from d5agent.core.replay.specification import ttl_of, with_ttl_held
from d5agent.core.replay.ttl import NEVER, numbered
from d5agent.steps.compare.held_reader import HeldReader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from pymongo.asynchronous.database import AsyncDatabase

    from d5agent.drill.servers import Mongod

Server = tuple["AsyncDatabase[dict[str, Any]]", MongoSpecifications, MongoReader]
MODELS = [
    IndexModel([("email", ASCENDING)], unique=True, sparse=True),
    IndexModel([("at", ASCENDING)], expireAfterSeconds=3600),
    IndexModel([("a.b", ASCENDING)], partialFilterExpression={"n": {"$gt": 5}}, name="part"),
    IndexModel([("text", TEXT)], default_language="spanish"),
    IndexModel([("c", ASCENDING)], collation={"locale": "en", "strength": 2}),
]


@asynccontextmanager
async def server(mongod: Mongod, name: str) -> AsyncGenerator[Server]:
    clock = SystemClock()
    async with (
        open_mongo(mongod.uri, side="target") as client,
        AsyncMongoClient[dict[str, Any]](mongod.uri) as direct,
    ):
        yield direct[name], MongoSpecifications(client, clock=clock), MongoReader(client, side="target", clock=clock)
        await direct.drop_database(name)


async def facts_of(reader: MongoReader, namespace: Namespace) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return what a collection has, whichever collection it is."""
    facts = await reader.facts(namespace)
    return facts.indexes, facts.options


async def test_a_dropped_collection_is_built_as_it_was(mongod: Mongod, fresh_name: str) -> None:
    async with server(mongod, fresh_name) as (database, specifications, reader):
        orders, log = Namespace(fresh_name, "orders"), Namespace(fresh_name, "log")
        validator = {"$jsonSchema": {"required": ["n"]}}
        await database.create_collection("orders", validator=validator, validationLevel="moderate")
        await database["orders"].create_indexes(MODELS)
        await database.create_collection("log", capped=True, size=4096, max=3)
        await database["plain"].insert_one({})
        before = [await facts_of(reader, namespace) for namespace in (orders, log)]
        found = {n: s for n, s in (await specifications.specifications()).items() if n.database == fresh_name}
        assert set(found) == {orders, log}
        for namespace, specification in found.items():
            await database.drop_collection(str(namespace.collection))
            for _ in range(2):
                assert await specifications.build(namespace, specification) == []
        assert [await facts_of(reader, namespace) for namespace in (orders, log)] == before


async def test_a_renamed_collection_gets_what_its_new_name_had(mongod: Mongod, fresh_name: str) -> None:
    async with server(mongod, fresh_name) as (database, specifications, reader):
        orders = Namespace(fresh_name, "orders")
        await database.create_collection("orders", validator={"n": {"$gt": 0}})
        await database["orders"].create_index("n", unique=True)
        before = await facts_of(reader, orders)
        found = (await specifications.specifications())[orders]
        await database["new"].insert_many([{"n": 1}, {"n": 2}])
        await database["new"].rename("orders", dropTarget=True)
        assert (await reader.facts(orders)).indexes == {}
        for _ in range(2):
            assert await specifications.build(orders, found) == []
        assert await facts_of(reader, orders) == before


async def test_what_cannot_be_built_is_told_by_name(mongod: Mongod, fresh_name: str) -> None:
    async with server(mongod, fresh_name) as (database, specifications, _):
        orders = Namespace(fresh_name, "orders")
        await database.create_collection("orders", capped=True, size=4096, validator={"n": {"$gt": 0}})
        await database["orders"].create_indexes([IndexModel("n", unique=True), IndexModel("m")])
        found = (await specifications.specifications())[orders]
        await database["orders"].drop()
        await database["orders"].insert_many([{"n": 1}, {"n": 1}])
        options, index = await specifications.build(orders, found)
        assert options == "options that only a new collection can have: capped, size"
        assert index.startswith("index n_1: ")
        assert "duplicate key" in index
        assert "m_1" in await database["orders"].index_information()


async def test_a_view_of_the_name_is_told(mongod: Mongod, fresh_name: str) -> None:
    async with server(mongod, fresh_name) as (database, specifications, _):
        orders = Namespace(fresh_name, "orders")
        await database.create_collection("orders", validator={"n": {"$gt": 0}})
        found = (await specifications.specifications())[orders]
        await database["orders"].drop()
        await database.command({"create": "other"})
        await database.command({"create": "orders", "viewOn": "other", "pipeline": []})
        assert await specifications.build(orders, found) == ["options: what has its name is no collection"]


async def test_names_that_drivers_refuse_are_kept_too(mongod: Mongod, fresh_name: str) -> None:
    async with server(mongod, fresh_name) as (database, specifications, reader):
        odd = Namespace(fresh_name, "a..b")
        command = {"createIndexes": "a..b", "indexes": [{"key": {"n": 1}, "name": "n_1", "unique": True}]}
        await database.command(command)
        found = (await specifications.specifications())[odd]
        await database.command({"drop": "a..b"})
        assert await specifications.build(odd, found) == []
        assert set((await reader.facts(odd)).indexes) == {"n_1"}


async def test_what_is_held_can_be_built_again(mongod: Mongod, fresh_name: str) -> None:
    async with server(mongod, fresh_name) as (database, specifications, reader):
        days, orders = Namespace(fresh_name, "days"), Namespace(fresh_name, "orders")
        clustered = {"key": {"_id": 1}, "unique": True}
        await database.command({"create": "days", "clusteredIndex": clustered, "expireAfterSeconds": 100})
        await database["orders"].create_indexes([IndexModel([("at", ASCENDING)], expireAfterSeconds=60.5)])
        found = {n: s for n, s in (await specifications.specifications()).items() if n.database == fresh_name}
        held = numbered(ttl_of(found), (), ())
        for namespace, specification in found.items():
            await database.drop_collection(namespace.collection or "")
            assert await specifications.build(namespace, with_ttl_held(specification, held)) == []
        built = {n: [(i.name, i.seconds) for i in (await reader.facts(n)).ttl] for n in (days, orders)}
        assert built == {days: [("", NEVER)], orders: [("at_1", NEVER - 1)]}
        assert [index.seconds for index in held] == [100, 60]  # a server keeps whole seconds
        shown = HeldReader(reader=reader, held=held)
        assert (await shown.facts(days)).options["expireAfterSeconds"] == "100"
        assert (await shown.facts(orders)).indexes == {"at_1": '{"at": 1} {"expireAfterSeconds": 60}'}
