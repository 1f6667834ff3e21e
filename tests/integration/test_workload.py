"""The drill's workload does what it says, keeps true books, and lives through a broken line."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient

from d5agent.drill import dataset
from d5agent.drill.child import wait_until
from d5agent.drill.servers import Mongod
from d5agent.drill.workload import KINDS, WEIGHTS, Workload
from tests.integration.agent_rig import PATIENCE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    from bson import Timestamp

OPERATIONS = 2_000


async def server_time(client: AsyncMongoClient[Any]) -> Timestamp:
    found: Timestamp = (await client.admin.command("ping"))["operationTime"]
    return found


async def events_since(client: AsyncMongoClient[Any], start: Timestamp) -> list[dict[str, Any]]:
    """Every event after that time, as far as the stream goes now."""
    end = await server_time(client)
    events = []
    raw = client.codec_options.with_options(document_class=RawBSONDocument)
    admin = client.get_database("admin", codec_options=raw)
    pipeline = [
        {
            "$changeStream": {
                "allChangesForCluster": True,
                "fullDocument": "updateLookup",
                "startAtOperationTime": type(start)(start.time, start.inc + 1),
            }
        },
        {
            "$project": {
                "type": "$operationType",
                "at": "$clusterTime",
                "isNull": {"$eq": ["$fullDocument", None]},
                "ns": 1,
            }
        },
    ]
    async with client.start_session(causal_consistency=False) as session:
        reply = await admin.command("aggregate", 1, pipeline=pipeline, cursor={"batchSize": 0}, session=session)
        is_drained = False
        while not is_drained:
            reply = await admin.command(
                "getMore",
                reply["cursor"]["id"],
                collection="$cmd.aggregate",
                maxTimeMS=500,
                session=session,
            )
            batch = [dict(event) for event in reply["cursor"]["nextBatch"]]
            is_drained = not batch and reply["operationTime"] >= end
            events += batch
    return events


@pytest.mark.usefixtures("clean_databases")
async def test_every_kind_happens_and_the_books_agree_with_the_stream(
    source_server: Mongod,
) -> None:
    workload = Workload(source_server.uri, seed=1)
    client: AsyncMongoClient[Any] = AsyncMongoClient(source_server.uri)
    try:
        before = await server_time(client)
        ledger = await workload.run(operations=OPERATIONS)
        assert ledger.refusals == {}
        assert ledger.unknown == {}
        assert ledger.total == OPERATIONS
        assert set(ledger.acknowledged) == {kind for kind, weight in WEIGHTS.items() if weight}
        events = await events_since(client, before)
    finally:
        await client.close()
    booked = +Counter(ledger.writes)
    del booked["create"]  # no event tells of a collection without documents
    assert Counter(event["type"] for event in events) == booked
    # Three updates of one transaction share one time, and look-ups come too late for some.
    assert max(Counter(event["at"] for event in events).values()) >= 3
    assert any(event["isNull"] for event in events if event["type"] == "update")


@pytest.mark.usefixtures("clean_databases")
async def test_the_same_seed_gives_the_same_operations(source_server: Mongod, target_server: Mongod) -> None:
    first = await Workload(source_server.uri, seed=7).run(operations=300)
    same = await Workload(target_server.uri, seed=7).run(operations=300)
    assert first.attempted == same.attempted
    assert first.acknowledged == same.acknowledged
    other = await Workload(target_server.uri, seed=8).run(operations=300)
    assert other.attempted != first.attempted
    assert other.refusals == {}


@pytest.mark.usefixtures("clean_databases")
async def test_it_stops_when_it_is_told_to(source_server: Mongod) -> None:
    stop = asyncio.Event()
    workload = Workload(source_server.uri, seed=2, weights={"insert_one": 1}, pause_seconds=0.001)
    prepared = (await workload.run(operations=0)).writes["insert"]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(workload.run(stop=stop))

        async def has_begun() -> bool:
            return workload.ledger.total > 10

        await wait_until(has_begun, seconds=PATIENCE_SECONDS, what="it writes", log=source_server.log)
        stop.set()
    ledger = running.result()
    assert ledger.writes["insert"] == ledger.total + prepared
    assert set(ledger.acknowledged) == {"insert_one"}


async def test_a_killed_server_leaves_unknown_answers_and_the_work_goes_on(tmp_path: Path) -> None:
    server = Mongod(tmp_path)
    stop = asyncio.Event()
    try:
        await server.start()
        workload = Workload(server.uri, seed=3)
        async with asyncio.TaskGroup() as group:
            group.create_task(workload.run(stop=stop))

            async def has_written() -> bool:
                return workload.ledger.total > 100

            await wait_until(has_written, seconds=PATIENCE_SECONDS, what="it writes", log=server.log)
            await server.kill()

            async def is_broken() -> bool:
                return workload.ledger.unknown.total() > 0

            await wait_until(is_broken, seconds=PATIENCE_SECONDS, what="the line is broken", log=server.log)
            await server.start()
            at_restart = workload.ledger.total

            async def goes_on() -> bool:
                return workload.ledger.total > at_restart + 100

            await wait_until(goes_on, seconds=PATIENCE_SECONDS, what="it writes again", log=server.log)
            stop.set()
    finally:
        await server.kill()


@pytest.mark.usefixtures("clean_databases")
async def test_an_update_can_be_too_big_for_one_event(source_server: Mongod) -> None:
    workload = Workload(source_server.uri, seed=4, weights={"oversized_update": 1})
    ledger = await workload.run(operations=2)
    assert ledger.acknowledged == {"oversized_update": 2}


def test_a_pack_names_known_kinds_only() -> None:
    assert set(WEIGHTS) == set(KINDS)
    assert all(operation.__doc__ for operation, _ in KINDS.values())


@pytest.mark.usefixtures("clean_databases")
async def test_both_servers_get_the_same_data_set(source_server: Mongod, target_server: Mongod) -> None:
    hashes = []
    for server in (source_server, target_server):
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(server.uri)
        try:
            loaded = await dataset.load(client)
            assert loaded > 60_000
            for database in ("geography", "aviation"):
                reply = await client.get_database(database).command("dbHash")
                hashes.append((database, reply["collections"]))
            held = [
                await client.get_database(part.database).get_collection(part.name).estimated_document_count()
                for part in dataset.collections()
            ]
            assert sum(held) == loaded
        finally:
            await client.close()
    assert hashes[:2] == hashes[2:]
