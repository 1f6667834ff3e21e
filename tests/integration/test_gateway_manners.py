"""Before the gateway a mongod has DocumentDB's manners; each row of the table has its test."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import bson
import pytest
from bson import SON
from pymongo import MongoClient, UpdateOne, monitoring
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from typing_extensions import override

from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from tests.integration.agent_rig import PATIENCE_SECONDS
from tests.integration.test_gateway_rig import connected, fresh_name, refused, rig_before

if TYPE_CHECKING:
    from pathlib import Path


async def test_hello_names_the_gateway_alone(source_server: Mongod) -> None:
    async with rig_before(source_server, set_name="docdb") as rig:
        uri = f"mongodb://{rig.gateway.address}/?replicaSet=docdb"
        async with connected(uri) as client:
            hello = await client.admin.command("hello")
            assert hello["hosts"] == [rig.gateway.address]
            assert hello["me"] == hello["primary"] == rig.gateway.address
            assert hello["setName"] == "docdb"
            assert hello["isWritablePrimary"]
            assert hello["logicalSessionTimeoutMinutes"] == 30


async def test_no_reply_carries_cluster_time(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        commands: list[dict[str, Any]] = [
            {"hello": 1},
            {"ping": 1},
            {"insert": "a", "documents": [{"_id": 1}]},
            {"find": "a"},
            {"listCollections": 1},
            {"listIndexes": "a"},
            {"aggregate": "a", "pipeline": [], "cursor": {}},
        ]
        for command in commands:
            reply = await rig.client[name].command(command)
            assert "$clusterTime" not in reply
            assert "operationTime" in reply
        with pytest.raises(OperationFailure) as caught:
            await rig.client[name].command({"noSuchCommand": 1})
        assert "$clusterTime" not in (caught.value.details or {})
        enabled = await rig.client.admin.command("modifyChangeStreams", enable=True)
        assert "$clusterTime" not in enabled


async def test_operation_time_stands_still_while_idle(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        await rig.client[fresh_name()].a.insert_one({"_id": 1})
        before = await rig.now()
        found = await rig.direct.admin.command({"getParameter": 1, "writePeriodicNoops": 1})
        assert not found["writePeriodicNoops"]
        assert await rig.now() == before


async def test_no_compression_is_offered(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        hello = await rig.client.admin.command({"hello": 1, "compression": ["zlib"]})
        assert "compression" not in hello
        uri = f"mongodb://{rig.gateway.address}/?replicaSet=rs0&compressors=zlib"
        async with connected(uri) as client:
            assert (await client.admin.command("ping"))["ok"] == 1.0


async def test_a_retryable_write_is_refused(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        async with connected(f"mongodb://{rig.gateway.address}/?replicaSet=rs0") as client:
            attempt = client[name].a.insert_one({"_id": 1})
            assert await refused(attempt) == (301, "Retryable writes are not supported")
        assert await rig.direct[name].a.count_documents({}) == 0


async def test_a_transaction_commits(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.client[name].a.insert_one({"_id": 0})
        async with rig.client.start_session(causal_consistency=False) as session:
            async with await session.start_transaction():
                await rig.client[name].a.insert_one({"_id": 1}, session=session)
            await session.start_transaction(read_concern=ReadConcern("snapshot"))
            await rig.client[name].a.insert_one({"_id": 2}, session=session)
            await session.abort_transaction()
        ids = [each["_id"] async for each in rig.direct[name].a.find().sort("_id")]
        assert ids == [0, 1]


async def test_causal_consistency_is_refused(source_server: Mongod) -> None:
    name = fresh_name()
    text = "Feature not supported: 'causal consistency'"
    async with rig_before(source_server) as rig:
        async with rig.client.start_session() as session:
            await rig.client[name].a.insert_one({"_id": 1}, session=session)
            attempt = rig.client[name].a.find_one({}, session=session)
            assert await refused(attempt) == (303, text)
        async with rig.client.start_session(snapshot=True) as session:
            attempt = rig.client[name].a.find_one({}, session=session)
            assert await refused(attempt) == (303, text)


@pytest.mark.parametrize(
    "command",
    [
        {"getParameter": 1, "featureCompatibilityVersion": 1},
        {"dbHash": 1},
        {"appendOplogNote": 1, "data": {}},
        {"atlasVersion": 1},
    ],
    ids=lambda command: next(iter(command)),
)
async def test_an_unsupported_command_is_refused(source_server: Mongod, command: dict[str, Any]) -> None:
    name = next(iter(command))
    async with rig_before(source_server) as rig:
        attempt = rig.client.admin.command(command)
        assert await refused(attempt) == (303, f"Feature not supported: {name}")
    async with rig_before(source_server, allow=frozenset({name})) as rig:
        attempt = rig.client.admin.command({"atlasVersion": 1})
        assert (await refused(attempt))[0] == (59 if name == "atlasVersion" else 303)


async def test_capped_collections_are_refused(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        database = rig.client[fresh_name()]
        create = database.create_collection("capped", capped=True, size=4096)
        assert await refused(create) == (303, "Feature not supported: capped:true")
        convert = database.command({"convertToCapped": "a", "size": 4096})
        assert (await refused(convert))[0] == 303
        await database.create_collection("plain")


async def test_views_are_refused(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        attempt = rig.client[fresh_name()].create_collection("view", viewOn="a", pipeline=[])
        assert await refused(attempt) == (303, "Feature not supported: viewOn")


async def test_collations_are_refused(source_server: Mongod) -> None:
    english, answer = {"locale": "en", "strength": 2}, (303, "Feature not supported: collation")
    async with rig_before(source_server) as rig:
        database = rig.client[fresh_name()]
        orders = database["orders"]
        await orders.insert_one({"_id": "A", "collation": {"locale": "a field of a document"}})
        await orders.update_one({"_id": "A"}, {"$set": {"deletes": [{"collation": {}}]}})
        delete = {"delete": "orders", "deletes": [{"q": {}, "limit": 0, "collation": english}]}
        for attempt in (
            database.create_collection("c", collation=english),
            orders.create_index("u", collation=english),
            orders.find_one({"_id": "a"}, collation=english),
            orders.aggregate([], collation=english),
            orders.delete_one({"_id": "a"}, collation=english),
            orders.bulk_write([UpdateOne({"_id": "a"}, {"$set": {"n": 1}}, collation=english)]),
            database.command(delete),
        ):
            assert await refused(attempt) == answer
        assert await rig.direct[database.name]["orders"].count_documents({}) == 1


async def test_local_is_refused(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        assert (await refused(rig.client.local["oplog.rs"].find_one({})))[0] == 303
        assert "local" not in await rig.client.list_database_names()
        assert "local" in await rig.direct.list_database_names()


async def test_listings_look_like_documentdb(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        database = rig.client[name]
        for number in range(5):
            await database[f"c{number}"].create_index([("x", 1)], unique=True)
        listed = [each async for each in await database.list_collections(cursor={"batchSize": 2})]
        assert {each["name"] for each in listed} == {f"c{number}" for number in range(5)}
        for each in listed:
            assert each["info"] == {"readOnly": False}
            assert each["options"] == {"autoIndexId": True, "storageEngine": {"documentDB": {}}}
            assert each["idIndex"]["ns"] == f"{name}.{each['name']}"
        indexes = [dict(each) async for each in await database.c1.list_indexes()]
        assert indexes == [
            {"v": 4, "key": SON(_id=1), "name": "_id_", "ns": f"{name}.c1"},
            {"v": 4, "key": SON(x=1), "name": "x_1", "unique": True, "ns": f"{name}.c1"},
        ]
        assert await database.list_collection_names(filter={"name": "c1"}) == ["c1"]


async def test_a_streaming_hello_keeps_monitors_alive(source_server: Mongod) -> None:
    class Listener(monitoring.ServerHeartbeatListener):
        def __init__(self) -> None:
            self.awaited = 0
            self.failures = 0
            self.enough = asyncio.Event()

        @override
        def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None: ...

        @override
        def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:
            self.awaited += event.awaited
            if self.awaited >= 4:
                self.enough.set()

        @override
        def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
            self.failures += event.duration >= 0

    listener = Listener()
    async with (
        rig_before(source_server) as rig,
        connected(rig.uri, heartbeatFrequencyMS=500, event_listeners=[listener]) as client,
    ):
        await client.admin.command("ping")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listener.enough.wait()
        assert (await client.admin.command("ping"))["ok"] == 1.0
    assert listener.failures == 0


async def test_clients_of_all_kinds_work_at_once(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:

        def write_blocking(worker: int) -> None:
            blocking: MongoClient[dict[str, Any]] = MongoClient(rig.uri)
            with blocking:
                for number in range(100):
                    row: dict[str, Any] = {"_id": worker * 1_000 + number, "x": "y" * 5_000}
                    blocking[name].a.insert_one(row)

        async def write(worker: int) -> None:
            ids = range(worker * 1_000, worker * 1_000 + 100)
            rows = [{"_id": each, "w": worker, "x": "y" * 50_000} for each in ids]
            await rig.client[name].a.insert_many(rows)
            assert len(await rig.client[name].a.find({"w": worker}).to_list()) == 100

        async with asyncio.TaskGroup() as group:
            for worker in range(4):
                group.create_task(asyncio.to_thread(write_blocking, worker))
                group.create_task(write(10 + worker))
        assert await rig.direct[name].a.count_documents({}) == 800


async def test_authentication_passes_through(tmp_path: Path) -> None:
    root = Credentials(username="root", password="s3cret")
    server = Mongod(tmp_path / "mongod", options=ServerOptions(credentials=root))
    try:
        await server.start()
        async with rig_before(server) as rig:
            at = rig.gateway.address
            tail = "?replicaSet=rs0&retryWrites=false&authSource=admin"
            async with connected(f"mongodb://root:s3cret@{at}/{tail}") as client:
                await client.a.a.insert_one({"_id": 1})
                await client.admin.command("modifyChangeStreams", enable=True)
                await client.admin.command("createUser", "app", pwd="x", roles=["readWrite"])
            async with connected(f"mongodb://root:wrong@{at}/{tail}") as client:
                assert (await refused(client.a.a.find_one({})))[0] == 18
            async with connected(f"mongodb://app:x@{at}/{tail}") as client:
                attempt = client.admin.command("modifyChangeStreams", enable=False)
                assert (await refused(attempt))[0] == 13
            async with connected(f"mongodb://{at}/?replicaSet=rs0") as client:
                asked = client.admin.aggregate([{"$listChangeStreams": 1}])
                assert (await refused(asked))[0] == 13
    finally:
        await server.kill()


async def test_only_hello_may_come_the_legacy_way(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        host, port = rig.gateway.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            hello = await _op_query(reader, writer, {"isMaster": 1, "helloOk": True})
            assert hello["hosts"] == [rig.gateway.address]
            assert hello["helloOk"]
            assert "$clusterTime" not in hello
            assert (await _op_query(reader, writer, {"find": "a"}))["code"] == 352
        finally:
            writer.close()
            await writer.wait_closed()


async def _op_query(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: dict[str, Any]
) -> dict[str, Any]:
    body = struct.pack("<i", 4) + b"admin.$cmd\0" + struct.pack("<ii", 0, -1) + bson.encode(command)
    writer.write(struct.pack("<iiii", len(body) + 16, 5, 0, 2004) + body)
    size, _, answers, opcode = struct.unpack("<iiii", await reader.readexactly(16))
    assert (answers, opcode) == (5, 1)
    return bson.decode((await reader.readexactly(size - 16))[20:])
