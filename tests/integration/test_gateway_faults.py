"""What can go wrong with DocumentDB goes wrong on command, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from bson.timestamp import Timestamp


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
        assert (await refused(rig.fault("delay")))[0] == 2


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


async def test_an_upstream_that_dies_takes_the_connections_with_it(tmp_path: Path) -> None:
    server = Mongod(tmp_path / "mongod")
    try:
        await server.start()
        async with rig_before(server) as rig:
            line = f"mongodb://{rig.gateway.address}/?directConnection=true"
            async with connected(line, serverMonitoringMode="poll") as client:
                await client.admin.command("ping")
                await server.kill()
                with pytest.raises(AutoReconnect):
                    await client.admin.command("hello")
                await server.start()
                assert (await client.admin.command("ping"))["ok"] == 1.0
    finally:
        await server.kill()


async def test_a_reader_cut_again_and_again_sees_each_event_once(source_server: Mongod) -> None:
    name = fresh_name()
    seed = random.Random(7)
    async with rig_before(source_server) as rig:
        await rig.enable()
        start = await rig.now()
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_read_on(rig, start, done, seed))
            cutting = group.create_task(_cut_on(rig, seed))
            await _write_hostile(rig.direct, name, seed)
            cutting.cancel()
            done.set()
        fence = await fence_in(rig.direct, name)
        seen, token = reading.result()
        rest = events_of(await read_to(rig.client, fence, resumeAfter=token))
        expected = events_of(await read_to(rig.client, fence, startAtOperationTime=start))
        assert [*seen, *(event.raw for event in rest)] == [event.raw for event in expected]
        assert len(expected) > 2_000


async def _write_hostile(client: Client, name: str, seed: random.Random) -> None:
    async with client.start_session() as session:
        for number in range(300):
            rows = [{"_id": number * 10 + each, "x": "y" * 500} for each in range(5)]
            await client[name].a.insert_many(rows)
            async with await session.start_transaction():
                for each in range(seed.randrange(1, 6)):
                    change = {"$set": {"v": each}}
                    await client[name].a.update_one({"_id": number * 10}, change, session=session)


async def _cut_on(rig: Rig, seed: random.Random) -> None:
    while True:
        await pause(seed.uniform(0.01, 0.1))
        rig.gateway.cut_connections()


async def _read_on(
    rig: Rig, start: Timestamp, done: asyncio.Event, seed: random.Random
) -> tuple[list[bytes], dict[str, str]]:
    """Read and resume until told to stop: from an event's token, or from a batch's."""
    seen: list[bytes] = []
    token: dict[str, str] = {}
    options: dict[str, Any] = {"startAtOperationTime": start}
    line = f"mongodb://{rig.gateway.address}/?directConnection=true&retryReads=false"
    async with connected(line) as client:
        while not done.is_set() or not token:
            tail = Tail(client, size=seed.choice([1, 2, 7, 100]))
            try:
                batch = await tail.open(**options)
                while not done.is_set():
                    seen += [bytes(event.raw) for event in batch.events]
                    of_batch = not batch.events or seed.random() < 0.5
                    token = (batch.token or {}) if of_batch else dict(batch.events[-1]["_id"])
                    options = {"resumeAfter": token}
                    batch = await tail.more(wait_ms=20)
            except PyMongoError:
                continue
    return seen, token


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
