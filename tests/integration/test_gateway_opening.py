"""How a change stream is opened through the gateway: options, stages, tokens refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bson import (
    Timestamp,
)

from tests.integration.test_gateway_rig import (
    Rig,
    Tail,
    events_of,
    fence_in,
    fresh_name,
    read_to,
    refused,
    rig_before,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pymongo.asynchronous.database import AsyncDatabase

    from d5agent.drill.servers import Mongod

    Database = AsyncDatabase[dict[str, Any]]


async def test_start_at_operation_time_is_inclusive(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable()
        start = await rig.now()
        await rig.client[name].a.insert_many([{"_id": 1}, {"_id": 2}])
        fence = await fence_in(rig.client, name)
        events = events_of(await read_to(rig.client, fence, startAtOperationTime=start))
        at = events[1]["clusterTime"]
        again = events_of(await read_to(rig.client, fence, startAtOperationTime=at))
    assert [event["documentKey"]["_id"] for event in again] == [2, fence]


async def test_tokens_outlive_the_gateway(source_server: Mongod, tmp_path: Path) -> None:
    name = fresh_name()
    state = tmp_path / "gateway.json"
    async with rig_before(source_server, state_path=state) as rig:
        await rig.enable()
        start = await rig.now()
        await rig.client[name].a.insert_many([{"_id": 1}, {"_id": 2}])
        fence = await fence_in(rig.client, name)
        events = events_of(await read_to(rig.client, fence, startAtOperationTime=start))
    async with rig_before(source_server, state_path=state) as rig:
        again = events_of(await read_to(rig.client, fence, resumeAfter=events[0]["_id"]))
        assert [event.raw for event in again] == [event.raw for event in events[1:]]


async def test_a_foreign_or_damaged_token_is_refused(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig, rig_before(source_server) as other:
        await rig.enable()
        await other.enable()
        start = await rig.now()
        fence = await fence_in(rig.client, name)
        batches = await read_to(other.client, fence, startAtOperationTime=start)
        foreign = dict(events_of(batches)[0]["_id"])
        own = dict(events_of(await read_to(rig.client, fence, startAtOperationTime=start))[0]["_id"])
        damaged = {"_data": own["_data"][:-1] + ("0" if own["_data"][-1] != "0" else "1")}
        for token in (foreign, damaged, {"_data": "82"}, {"_data": "x" * 36}, {}):
            attempt = Tail(rig.client).open(resumeAfter=token)
            assert await refused(attempt) == (9, "Invalid resume token")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"startAfter": {"_data": "82"}}, 40415),
        ({"showExpandedEvents": True}, 40415),
        ({"fullDocumentBeforeChange": "whenAvailable"}, 40415),
        ({"fullDocument": "required"}, 303),
        ({"resumeAfter": {"_data": "82"}, "startAtOperationTime": Timestamp(1, 1)}, 2),
    ],
    ids=str,
)
async def test_watch_options_are_checked(source_server: Mongod, options: dict[str, Any], code: int) -> None:
    async with rig_before(source_server) as rig:
        await rig.enable()
        assert (await refused(Tail(rig.client).open(**options)))[0] == code


async def test_watch_stages_are_checked(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable()
        unknown: list[dict[str, Any]] = [
            {"$changeStreamSplitLargeEvent": {}},
            {"$set": {"x": 1}},
            {"$unset": "x"},
        ]
        for stage in unknown:
            assert (await refused(Tail(rig.client).open(stage)))[0] == 303
        start = await rig.now()
        fence = await fence_in(rig.client, name)
        stages: list[dict[str, Any]] = [
            {"$match": {"ns.db": name}},
            {"$project": {"updateDescription": 0, "clusterTime": 0, "ns": 0}},
            {"$addFields": {"x": {"y": 1}}},
            {"$redact": "$$KEEP"},
            {"$replaceRoot": {"newRoot": "$$ROOT"}},
        ]
        batches = await read_to(rig.client, fence, *stages, startAtOperationTime=start)
        assert list(events_of(batches)[0]) == [
            "_id",
            "operationType",
            "fullDocument",
            "documentKey",
            "x",
        ]


async def test_an_old_patch_level_has_no_post_batch_token(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server, no_post_batch_token=True) as rig:
        await rig.enable()
        start = await rig.now()
        fence = await fence_in(rig.client, name)
        batches = await read_to(rig.client, fence, startAtOperationTime=start)
        assert {batch.token for batch in batches} == {None}
        async with await rig.client[name].watch() as stream:
            assert await stream.try_next() is None
            assert stream.resume_token is None


async def test_watch_of_a_dropped_collection_ends(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable(name)
        await rig.client[name].a.insert_one({"_id": 0})
        async with await rig.client[name].a.watch() as stream:
            await rig.client[name].a.insert_one({"_id": 1})
            await rig.client[name].a.drop()
            seen = [event async for event in stream]
        assert [event["operationType"] for event in seen] == ["insert", "drop", "invalidate"]
        async with await rig.client[name].a.watch(resume_after=seen[1]["_id"]) as stream:
            assert [event["_id"] async for event in stream] == [seen[2]["_id"]]
        assert rig.gateway.status()["changeStreams"] == 0


async def test_a_watch_loop_survives_lost_cursors(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable()
        seen: list[int] = []
        async with await rig.client[name].watch(max_await_time_ms=100) as stream:
            for number in range(30):
                await rig.client[name].a.insert_one({"_id": number})
                if number % 10 == 5:
                    await _kill_streams(rig)
                while (event := await stream.try_next()) is not None:
                    seen.append(event["documentKey"]["_id"])
            while len(seen) < 30:
                event = await stream.next()
                seen.append(event["documentKey"]["_id"])
        assert seen == list(range(30))


async def _kill_streams(rig: Rig) -> None:
    cursors = list(rig.gateway.cluster.replies.streams)
    await rig.direct.admin.command({"killCursors": "$cmd.aggregate", "cursors": cursors})
