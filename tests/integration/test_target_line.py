"""The target behind a middlebox that forgets one flow: the driver's heartbeat runs on another, and finds all well."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from bson import Timestamp, encode
from pymongo.errors import OperationFailure

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.replay.replay import Barrier, Write, WriteBatch
from d5agent.drill.servers import Mongod, ServerOptions
from d5agent.errors import TransientError
from tests.fakes.documents import raw_id
from tests.integration.agent_rig import PATIENCE_SECONDS, Client
from tests.integration.capture_ledger import until
from tests.integration.relay import relay

if TYPE_CHECKING:
    from pathlib import Path

ORDERS = Namespace("shop", "orders")


@pytest.mark.usefixtures("clean_databases")
async def test_a_write_and_a_drop_that_are_never_answered_are_sent_again(target_server: Mongod) -> None:
    batch = WriteBatch(namespace=ORDERS, writes=(Write(id=raw_id(1), document=encode({"_id": 1})),))
    barrier = Barrier(kind="drop", namespace=ORDERS, rename_to=None, cluster_time=ClusterTime(1, 1))
    async with (
        relay(f"127.0.0.1:{target_server.port}") as between,
        open_mongo(f"mongodb://{between.address}/?directConnection=true", side="target") as client,
        Client(target_server.uri) as direct,
    ):
        target = MongoTarget(client, clock=SystemClock(), answer_seconds=1)
        assert not await target.write(batch)
        between.forget_connections(that_asked=b"ordered")
        assert not await target.write(batch)
        assert await direct["shop"]["orders"].count_documents({}) == 1
        between.forget_connections(that_asked=b"ordered")
        await target.apply(barrier)
        assert await direct["shop"].list_collection_names() == []


@pytest.mark.usefixtures("clean_databases")
async def test_a_look_up_that_is_never_answered_is_sent_again_and_a_scan_says_so(target_server: Mongod) -> None:
    async with (
        relay(f"127.0.0.1:{target_server.port}") as between,
        open_mongo(f"mongodb://{between.address}/?directConnection=true", side="target") as client,
        Client(target_server.uri) as direct,
    ):
        await direct["shop"]["orders"].insert_many([{"_id": number} for number in range(300)])
        reader = MongoReader(client, side="target", clock=SystemClock(), answer_seconds=1)
        assert len(await reader.fetch(ORDERS, [raw_id(1)])) == 1
        between.forget_connections(that_asked=b"find")
        assert len(await reader.fetch(ORDERS, [raw_id(1)])) == 1
        between.forget_connections(that_asked=b"find")
        with pytest.raises(TransientError, match="the target does not answer"):
            await anext(reader.scan(ORDERS))


@pytest.mark.parametrize(("documents", "held"), [(1, "update"), (100, "update"), (100, "commitTransaction")])
async def test_a_write_that_comes_late_changes_nothing_any_more(tmp_path: Path, documents: int, held: str) -> None:
    server = Mongod(tmp_path / "late", options=ServerOptions(test_commands=True))
    await server.start()
    try:
        async with open_mongo(server.uri, side="target") as client, Client(server.uri) as direct:
            orders = direct["shop"]["orders"]
            target = MongoTarget(client, clock=SystemClock(), answer_seconds=0.5)
            data = {"failCommands": [held], "blockConnection": True, "blockTimeMS": 3_000}
            await direct.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)
            # The server holds the first attempt, and performs the second.
            assert not await target.write(batch_of(documents, 1))
            assert not await target.write(batch_of(documents, 2))
            assert await under_way(direct, held), "the first attempt is not late"
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await under_way(direct, held):  # noqa: ASYNC110 -- the server tells of no end
                    await asyncio.sleep(0.05)
            assert await orders.distinct("n") == [2]
            assert await orders.count_documents({}) == documents
    finally:
        await server.kill()


@pytest.mark.usefixtures("clean_databases")
async def test_updates_are_one_transaction_and_a_refused_one_leaves_nothing_undone(target_server: Mongod) -> None:
    async with open_mongo(target_server.uri, side="target") as client, Client(target_server.uri) as direct:
        target, oplog = MongoTarget(client, clock=SystemClock()), direct.local["oplog.rs"]
        applied = {"op": "c", "ns": "admin.$cmd", "o.applyOps.ns": str(ORDERS)}
        await direct["shop"]["orders"].insert_many([{"_id": number} for number in range(100)])
        before = await oplog.count_documents(applied)
        assert not await target.write(batch_of(100, 1))
        assert await oplog.count_documents(applied) == before + 1
        await direct["shop"]["orders"].create_index("n", unique=True, partialFilterExpression={"n": {"$gt": 1}})
        refused = await target.write(batch_of(100, 2))
        assert len(refused) == 99, "one of them has the value, and the others are told that it is taken"
        assert {failure.index for failure in refused} == {"n_1"}
        assert await direct["shop"]["orders"].count_documents({"n": 2}) == 1


@pytest.mark.usefixtures("clean_databases")
async def test_updates_of_documents_that_are_not_there_become_inserts_until_they_are(target_server: Mongod) -> None:
    async with open_mongo(target_server.uri, side="target") as client, Client(target_server.uri) as direct:
        target, oplog, orders = (
            MongoTarget(client, clock=SystemClock()),
            direct.local["oplog.rs"],
            direct["shop"]["orders"],
        )
        transactions = {"op": "c", "ns": "admin.$cmd", "o.applyOps.ns": str(ORDERS)}
        inserts = {"op": "i", "ns": str(ORDERS), "o.n": 2}
        before, others = await oplog.count_documents(transactions), await oplog.count_documents(inserts)
        told = []
        for documents, n in ((100, 1), (300, 2), (300, 3), (300, 4)):
            assert not await target.write(batch_of(documents, n))
            assert await orders.distinct("n") == [n]
            assert await orders.count_documents({}) == documents
            told.append(await oplog.count_documents(transactions) - before)
        assert await oplog.count_documents(inserts) == others + 200, (
            "once they are seen to be missing they are inserted"
        )
        assert told == [1, 2, 3, 4], "what is there is replaced in a transaction, also after an insert has found it"


@pytest.mark.parametrize("before", [{"a": 1}, {"a": 1, "b": 2}, None], ids=["other", "more", "nothing"])
@pytest.mark.usefixtures("clean_databases")
async def test_two_fields_of_one_name_beside_a_zero_timestamp_end_no_server(
    target_server: Mongod, before: dict[str, int] | None
) -> None:
    twice = encode({"_id": 1, "t": Timestamp(0, 0), "a": 1, "b": 2}).replace(b"b\0", b"a\0")
    async with open_mongo(target_server.uri, side="target") as client, Client(target_server.uri) as direct:
        reader = MongoReader(client, side="target", clock=SystemClock())
        if before is not None:
            await direct["shop"]["orders"].insert_one({"_id": 1, **before})
        write = Write(id=raw_id(1), document=twice)
        target = MongoTarget(client, clock=SystemClock())
        for _ in range(2):
            assert not await target.write(WriteBatch(namespace=ORDERS, writes=(write,)))
            assert await reader.fetch(ORDERS, [write.id]) == {write.id: twice}


@pytest.mark.usefixtures("clean_databases")
async def test_a_refused_document_with_a_zero_timestamp_stays_as_it_was(target_server: Mongod) -> None:
    async with open_mongo(target_server.uri, side="target") as client, Client(target_server.uri) as direct:
        orders = direct["shop"]["orders"]
        await orders.create_index("n", unique=True)
        await orders.insert_many([{"_id": 1, "n": 1}, {"_id": 2, "n": 2}])
        write = Write(id=raw_id(1), document=encode({"_id": 1, "t": Timestamp(0, 0), "n": 2}))
        (refused,) = await MongoTarget(client, clock=SystemClock()).write(WriteBatch(namespace=ORDERS, writes=(write,)))
        assert (refused.is_conflict, refused.index, refused.write) == (True, "n_1", write)
        assert await orders.find(sort=[("_id", 1)]).to_list() == [{"_id": 1, "n": 1}, {"_id": 2, "n": 2}]


@pytest.mark.usefixtures("clean_databases")
async def test_a_transaction_that_a_killed_daemon_left_open_is_ended_and_nobody_elses(target_server: Mongod) -> None:
    async with (
        Client(target_server.uri, appname="d5agent") as killed,
        Client(target_server.uri, appname="shop") as somebody,
        open_mongo(target_server.uri, side="target") as client,
    ):
        await somebody["shop"]["orders"].insert_many([{"_id": id_, "n": 0} for id_ in (*range(100), 1000)])
        async with killed.start_session() as left, somebody.start_session() as other:
            await left.start_transaction()
            await killed["shop"]["orders"].update_many({"_id": {"$lt": 100}}, {"$set": {"n": 1}}, session=left)
            await other.start_transaction()
            await somebody["shop"]["orders"].update_one({"_id": 1000}, {"$set": {"n": 3}}, session=other)
            async with asyncio.timeout(PATIENCE_SECONDS):  # the server itself ends it after 60 s
                assert not await MongoTarget(client, clock=SystemClock()).write(batch_of(100, 2))
            await other.commit_transaction()
            assert sorted(await somebody["shop"]["orders"].distinct("n")) == [2, 3]
            with pytest.raises(OperationFailure, match="Transaction"):
                await left.commit_transaction()


@pytest.mark.usefixtures("clean_databases")
async def test_a_write_that_is_stopped_within_its_transaction_does_not_block_the_next(tmp_path: Path) -> None:
    server = Mongod(tmp_path / "stopped", options=ServerOptions(test_commands=True))
    await server.start()
    try:
        async with open_mongo(server.uri, side="target") as client, Client(server.uri) as direct:
            target = MongoTarget(client, clock=SystemClock())
            assert not await target.write(batch_of(100, 1))
            data = {"failCommands": ["commitTransaction"], "blockConnection": True, "blockTimeMS": 3_000}
            await direct.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)
            stopped = asyncio.create_task(target.write(batch_of(100, 2)))
            await until(lambda: under_way(direct, "commitTransaction"), what="the commit is held")
            stopped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopped
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert not await target.write(batch_of(100, 3))
            assert await direct["shop"]["orders"].distinct("n") == [3]
    finally:
        await server.kill()


async def test_a_document_that_the_cache_has_no_room_for_is_written_all_the_same(tmp_path: Path) -> None:
    server = Mongod(tmp_path / "small", options=ServerOptions(cache_gigabytes=0.25))
    await server.start()
    try:
        async with open_mongo(server.uri, side="target") as client, Client(server.uri) as direct:
            target = MongoTarget(client, clock=SystemClock())
            for n in range(3):
                large = encode({"_id": 1, "n": n, "filler": bytes([n]) * (15 * 1024 * 1024)})
                write = Write(id=raw_id(1), document=large, is_new=n == 0)
                assert not await target.write(WriteBatch(namespace=ORDERS, writes=(write,)))
            assert await direct["shop"]["orders"].distinct("n") == [2]
    finally:
        await server.kill()


def batch_of(documents: int, n: int) -> WriteBatch:
    writes = tuple(Write(id=raw_id(id_), document=encode({"_id": id_, "n": n})) for id_ in range(documents))
    return WriteBatch(namespace=ORDERS, writes=writes)


async def under_way(direct: Client, command: str) -> bool:
    """Whether the server is at a command of that name that a client has asked for."""
    ours = {"currentOp": 1, f"command.{command}": {"$exists": True}}
    return bool((await direct.admin.command(ours))["inprog"])
