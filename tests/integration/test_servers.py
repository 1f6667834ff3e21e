"""The drill's servers are real: they keep what was acknowledged, and they never outlive us."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from d5agent.drill.child import Child, pause, wait_until
from d5agent.drill.servers import Credentials, Mongod, ReplicaSet, ServerOptions
from d5agent.drill.tools import find_tool
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from d5agent.drill.s3_server import S3Server

Client = AsyncMongoClient[dict[str, Any]]


@asynccontextmanager
async def connected(uri: str) -> AsyncIterator[Client]:
    client: Client = AsyncMongoClient(uri, serverSelectionTimeoutMS=10_000)
    try:
        yield client
    finally:
        await client.close()


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


async def test_what_was_acknowledged_survives_a_kill_and_a_restart(tmp_path: Path) -> None:
    server = Mongod(tmp_path)
    try:
        await server.start()
        port = server.port
        async with connected(server.uri) as client:
            written = client.get_database("shop").get_collection("orders")
            await written.insert_one({"_id": 1})
        await server.kill()
        assert server.pid is None
        await server.start()
        assert server.port == port
        async with connected(server.uri) as client:
            assert await client.shop.orders.find_one() == {"_id": 1}
    finally:
        await server.kill()


async def test_a_stopped_server_starts_again_on_its_data(tmp_path: Path) -> None:
    server = Mongod(tmp_path)
    try:
        await server.start()
        async with connected(server.uri) as client:
            await client.shop.orders.insert_one({"_id": 1})
        await server.stop()
        assert server.pid is None
        await server.start()
        async with connected(server.uri) as client:
            assert await client.shop.orders.count_documents({}) == 1
    finally:
        await server.kill()


async def test_access_control_lets_the_root_user_in_and_nobody_else(tmp_path: Path) -> None:
    credentials = Credentials(username="ro@t", password="p/w:@%")
    server = Mongod(tmp_path, options=ServerOptions(credentials=credentials))
    try:
        await server.start()
        async with connected(server.uri) as client:
            await client.shop.orders.insert_one({"_id": 1})
        anonymous = f"mongodb://127.0.0.1:{server.port}/?replicaSet=rs0"
        async with connected(anonymous) as client:
            with pytest.raises(OperationFailure) as refused:
                await client.shop.orders.find_one()
            assert refused.value.code == 13
        await server.kill()
        await server.start()
        async with connected(server.uri) as client:
            assert await client.shop.orders.count_documents({}) == 1
    finally:
        await server.kill()


async def test_another_member_takes_over_when_the_primary_steps_down(tmp_path: Path) -> None:
    server = ReplicaSet(tmp_path, members=3)
    try:
        await server.start()
        before = await server.find_primary()
        async with connected(server.uri) as client:
            await client.shop.orders.insert_one({"_id": 1})
            after = await server.step_down()
            assert before is not None
            assert after.address != before.address
            await client.shop.orders.insert_one({"_id": 2})
            assert await client.shop.orders.count_documents({}) == 2
    finally:
        await server.kill()


def test_no_server_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, pathlib, signal, sys
        from d5agent.drill.servers import Mongod
        async def main():
            server = Mongod(pathlib.Path(sys.argv[1]))
            await server.start()
            print(server.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    pid = int(ended.stdout)

    async def is_gone() -> bool:
        return not is_running(pid)

    asyncio.run(wait_until(is_gone, seconds=10, what="mongod has ended", log=tmp_path))


async def test_a_server_that_ends_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    child = Child(["false"], log=tmp_path / "log")
    child.start()
    while child.pid is not None:
        await pause(0.01)
    with pytest.raises(OperatorError) as reported:
        child.require_alive()
    assert str(tmp_path / "log") in reported.value.hint


async def test_a_wait_ends_in_time_and_says_what_did_not_come_true(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    with pytest.raises(OperatorError, match="the moon is blue"):
        await wait_until(never, seconds=0.05, what="the moon is blue", log=tmp_path)


def test_a_missing_program_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D5AGENT_TOOLS", "/nonexistent")
    with pytest.raises(OperatorError, match="no-such-program") as missing:
        find_tool("no-such-program")
    assert missing.value.hint == "make setup"


def test_a_program_of_the_tools_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "some-program"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("D5AGENT_TOOLS", str(tmp_path))
    assert find_tool("some-program") == program
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "some-program").symlink_to(program)
    assert find_tool("some-program") == tmp_path / "some-program"


async def test_one_of_32_conditional_puts_wins(s3_server: S3Server, bucket: str) -> None:
    outcomes: list[int | str] = []
    async with s3_server.client() as s3:

        async def put(number: int) -> None:
            try:
                await s3.put_object(Bucket=bucket, Key="key", Body=str(number).encode(), IfNoneMatch="*")
            except ClientError as error:
                outcomes.append(error.response["Error"]["Code"])
            else:
                outcomes.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(32):
                group.create_task(put(number))
        winners = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert len(winners) == 1
        stored = await s3.get_object(Bucket=bucket, Key="key")
        assert await stored["Body"].read() == str(winners[0]).encode()


async def test_requests_are_counted_by_the_server_itself(s3_server: S3Server, bucket: str) -> None:
    before = s3_server.count_requests().get("PutObject", 0)
    async with s3_server.client() as s3:
        for number in range(5):
            await s3.put_object(Bucket=bucket, Key=str(number), Body=b"")
    assert s3_server.count_requests()["PutObject"] == before + 5


async def test_a_put_whose_client_goes_away_stores_all_of_it_or_nothing(s3_server: S3Server, bucket: str) -> None:
    old, new = b"old" * 100, b"new" * 200
    address = s3_server.endpoint_url.removeprefix("http://")
    async with s3_server.client() as s3:
        url = await s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "k"})
        head = f"PUT {url.partition(address)[2]} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(new)}\r\n\r\n"
        for _ in range(30):
            await s3.put_object(Bucket=bucket, Key="k", Body=old)
            _, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(head.encode() + new)
            await writer.drain()
            writer.close()
            await pause(0.02)
            async with asyncio.timeout(5):
                found = await s3.get_object(Bucket=bucket, Key="k")
                assert await found["Body"].read() in {old, new}
