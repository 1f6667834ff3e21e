"""What modifyChangeStreams enables, and which positions the log has lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.test_gateway_rig import (
    Client,
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

    from d5agent.drill.servers import Mongod

LOST = "CappedPositionLost: CollectionScan died due to position in capped collection being deleted"


NEVER = "modifyChangeStreams has not been run for this collection"


async def _listed(client: Client) -> list[tuple[str, str]]:
    cursor = await client.admin.aggregate([{"$listChangeStreams": 1}])
    return sorted([(row["database"], row["collection"]) async for row in cursor])


async def test_scopes_are_enabled_and_listed(source_server: Mongod, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    async with rig_before(source_server, state_path=state) as rig:
        assert await _listed(rig.client) == []
        await rig.enable()
        await rig.enable()
        await rig.enable("d")
        await rig.enable("d", "c")
        await rig.enable("d", on=False)
        assert await _listed(rig.client) == [("", ""), ("d", "c")]
        command = {"modifyChangeStreams": 1, "database": "", "collection": "c", "enable": True}
        assert (await refused(rig.client.admin.command(command)))[0] == 2
        assert (await refused(rig.client.d.command({**command, "database": "d"})))[0] == 2
    async with rig_before(source_server, state_path=state) as rig:
        assert await _listed(rig.client) == [("", ""), ("d", "c")]


async def test_a_cluster_stream_is_silent_until_enabled(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        tail = Tail(rig.client)
        batch = await tail.open()
        first = batch.token
        for number in range(3):
            await rig.client[name].a.insert_one({"_id": number})
            batch = await tail.more(wait_ms=50)
            assert batch.events == []
            assert batch.token == first
        await rig.enable(name)
        fence = await fence_in(rig.client, name)
        while not (batch := await tail.more()).events:
            pass
        assert [event["documentKey"]["_id"] for event in batch.events] == [fence]
        assert batch.token != first
        await tail.close()
        again = events_of(await read_to(rig.client, fence, resumeAfter=first))
        assert [event["documentKey"]["_id"] for event in again] == [fence]


async def test_a_collection_stream_needs_enabling(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.client[name].a.insert_one({"_id": 0})
        for over in ((name, "a"), (name, "")):
            assert await refused(Tail(rig.client, over=over).open()) == (136, NEVER)
        await rig.enable(name, "other")
        assert await refused(Tail(rig.client, over=(name, "a")).open()) == (136, NEVER)
        for scope in ((name, "a"), (name, ""), ("", "")):
            await rig.enable(*scope)
            tail = Tail(rig.client, over=(name, "a"))
            await tail.open()
            await tail.close()
            await rig.enable(*scope, on=False)


async def test_enabling_covers_later_events_only(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        start = await rig.now()
        await rig.client[name].a.insert_one({"_id": 1})
        await rig.enable(name, "a")
        await rig.client[name].a.insert_one({"_id": 2})
        await rig.client[name].b.insert_one({"_id": 3})
        fence = await fence_in(rig.client, name, "a")
        events = events_of(await read_to(rig.client, fence, startAtOperationTime=start))
    assert [event["documentKey"]["_id"] for event in events] == [2, fence]


async def test_off_and_on_again_ends_the_history(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable()
        await rig.enable(name)
        start = await rig.now()
        fence = await fence_in(rig.client, name)
        batches = await read_to(rig.client, fence, startAtOperationTime=start)
        token = dict(events_of(batches)[-1]["_id"])
        await rig.enable(on=False)
        await rig.enable()
        for options in ({"resumeAfter": token}, {"startAtOperationTime": start}):
            assert await refused(Tail(rig.client).open(**options)) == (136, LOST)
        # The database was on all the while: a stream over it has lost nothing.
        over = Tail(rig.client, over=(name, ""))
        await over.open(resumeAfter=token)
        await over.close()
        now = await rig.now()
        fence = await fence_in(rig.client, name)
        assert events_of(await read_to(rig.client, fence, startAtOperationTime=now))


async def test_an_expired_position_is_lost(source_server: Mongod, tmp_path: Path) -> None:
    name = fresh_name()
    state = tmp_path / "state.json"
    async with rig_before(source_server, state_path=state) as rig:
        await rig.enable()
        start = await rig.now()
        fence = await fence_in(rig.client, name)
        batches = await read_to(rig.client, fence, startAtOperationTime=start)
        tokens = [dict(events_of(batches)[0]["_id"]), batches[-1].token]
        await rig.fault("expireLog", seconds=3_600)
        for token in tokens:
            tail = Tail(rig.client)
            await tail.open(resumeAfter=token)
            await tail.close()
        await rig.fault("expireLog")
        for token in tokens:
            assert await refused(Tail(rig.client).open(resumeAfter=token)) == (136, LOST)
    async with rig_before(source_server, state_path=state) as rig:
        assert await refused(Tail(rig.client).open(resumeAfter=tokens[0])) == (136, LOST)
        assert await refused(Tail(rig.client).open(startAtOperationTime=start)) == (136, LOST)


async def test_a_position_older_than_the_retention_is_lost(source_server: Mongod) -> None:
    async with rig_before(source_server, log_seconds=3_600) as rig:
        await rig.enable()
        now = await rig.now()
        tail = Tail(rig.client)
        await tail.open(startAtOperationTime=now)
        await tail.close()
        rig.gateway.cluster.log_seconds = 0
        early = type(now)(now.time - 1, 1)
        assert await refused(Tail(rig.client).open(startAtOperationTime=early)) == (136, LOST)
