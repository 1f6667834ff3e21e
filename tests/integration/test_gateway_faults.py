"""What can go wrong with DocumentDB goes wrong on command, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, ConnectionFailure, NotPrimaryError, PyMongoError
from pymongo.write_concern import WriteConcern

from d5agent.drill.child import pause
from d5agent.drill.servers import Mongod, ReplicaSet
from tests.integration.test_gateway_rig import (
    Client,
    Rig,
    Tail,
    connected,
    events_of,
    fence_in,
    fresh_name,
    read_to,
    refused,
    rig_before,
)

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


async def test_the_cursor_quota_refuses_a_stream(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        await rig.enable()
        await rig.fault("maxCursors", count=1)
        first, second = Tail(rig.client), Tail(rig.client)
        await first.open()
        assert "too many cursors are already opened" in (await refused(second.open()))[1]
        await first.close()
        await second.open()
        await second.close()


async def test_a_cut_breaks_every_connection_mid_flight(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig, connected(rig.uri) as other:
        await rig.enable()
        tail = Tail(rig.client)
        await tail.open()
        waiting = asyncio.ensure_future(tail.more(wait_ms=40_000))
        await _in_flight(rig, tail.cursor)
        answer = await other.admin.command({"d5Gateway": 1, "action": "cutConnections"})
        assert answer["cut"] >= 1
        with pytest.raises(AutoReconnect):
            await waiting
        assert (await rig.client.admin.command("ping"))["ok"] == 1.0


async def _in_flight(rig: Rig, cursor: int) -> None:
    pipeline: list[dict[str, Any]] = [{"$currentOp": {"idleCursors": False}}, {"$match": {"command.getMore": cursor}}]
    while not await (await rig.direct.admin.aggregate(pipeline)).to_list():
        await pause(0.01)


async def test_a_client_that_vanishes_leaves_nothing(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        await rig.enable()
        async with connected(rig.uri) as doomed:
            await Tail(doomed).open()
            busy = rig.gateway.status()["connections"]
        while rig.gateway.status()["connections"] >= busy:
            await pause(0.01)


async def test_a_delay_slows_every_request(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        await rig.fault("delay", ms=200)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await rig.client.admin.command("ping")
        assert loop.time() - began >= 0.2
        assert (await rig.fault("status"))["delayMs"] == 200
        await rig.fault("delay", ms=0)


async def test_a_black_hole_answers_nothing_then_resets(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.client[name].a.insert_one({"_id": 1})
        await rig.client.admin.command({"d5Gateway": 1, "action": "blackhole", "seconds": 1})
        began = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionFailure):
            await rig.client[name].a.insert_one({"_id": 2})
        assert asyncio.get_running_loop().time() - began >= 0.9
        assert await rig.client[name].a.count_documents({}) == 1


async def test_an_unknown_fault_is_an_error(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        assert (await refused(rig.fault("explode")))[0] == 2


async def test_while_failing_over_it_is_no_primary(source_server: Mongod) -> None:
    async with rig_before(source_server) as rig:
        rig.gateway.fail_over(60.0)
        uri = f"mongodb://{rig.gateway.address}/?directConnection=true&retryWrites=false"
        async with connected(uri) as client:
            hello = await client.admin.command("hello")
            assert not hello["isWritablePrimary"]
            assert hello["secondary"]
            assert "primary" not in hello
            with pytest.raises(NotPrimaryError):
                await client.a.a.insert_one({"_id": 1})
            with pytest.raises(NotPrimaryError):
                await Tail(client).open()


@pytest.mark.timeout(120)
async def test_a_fail_over_loses_nothing(tmp_path: Path) -> None:
    servers = ReplicaSet(tmp_path / "set", members=3)
    try:
        await servers.start()
        old = await servers.find_primary()
        assert old is not None
        async with rig_before(servers) as rig:
            rig.gateway.cluster.upstream = old.address
            await rig.enable()
            start = await rig.now()
            done = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(_write_through(rig, done))
                new = await servers.step_down()
                assert new.address != old.address
                await rig.fault("failover", seconds=0.5, upstream=new.address)
                await pause(2.0)
                done.set()
            fence = await fence_in(rig.client, "a", "b")
            events = events_of(await read_to(rig.client, fence, startAtOperationTime=start))
            seen = [event["documentKey"]["_id"] for event in events]
            acknowledged = writing.result()
            assert set(acknowledged) <= set(seen)
            assert len(seen) == len(set(seen))
            assert rig.gateway.status()["upstream"] == new.address
    finally:
        await servers.kill()


async def _write_through(rig: Rig, done: asyncio.Event) -> list[int]:
    """Write until told to stop; return what was acknowledged."""
    acknowledged: list[int] = []
    number = 0
    collection = rig.client.a.get_collection("b", write_concern=WriteConcern("majority"))
    while not done.is_set():
        number += 1
        try:
            await collection.insert_one({"_id": number})
        except PyMongoError:
            await pause(0.02)
        else:
            acknowledged.append(number)
    return acknowledged


async def test_it_serves_as_a_process_and_ends_on_sigterm(source_server: Mongod) -> None:
    process = await _start_process(source_server)
    address = await _address(process)
    async with connected(f"mongodb://{address}/?replicaSet=rs0") as client:
        assert (await client.admin.command("ping"))["ok"] == 1.0
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


async def test_it_dies_with_its_parent(source_server: Mongod) -> None:
    script = """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, *sys.argv[1:]])
        print(child.pid, flush=True)
        time.sleep(60)
    """
    arguments = ["-m", "d5agent.drill.gateway", "--upstream", source_server.members[0].address]
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", textwrap.dedent(script)),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    await _address(parent)
    parent.kill()
    await parent.wait()
    while _is_alive(child):
        await pause(0.02)


async def _start_process(server: Mongod) -> asyncio.subprocess.Process:
    arguments = ["-m", "d5agent.drill.gateway", "--upstream", server.members[0].address]
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(await process.stdout.readline())
    return str(line["address"])


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
