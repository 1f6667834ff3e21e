"""How long applications may not write: from the moment they are refused until restore is done, live and classical.

Real servers, the gateway before the source, the agent as a process. A backlog lies in the log when restore begins, and
an application goes on writing until it is refused. At the end both sides must have the same dbHash.

`barriers`: live, and one in a hundred of the application's operations is a drop, a rename, a dropDatabase or a document
of 9 MB. The agent is killed while it follows; how long it takes until it has caught up again is printed too.

    python bench/cutover.py [--operations N] [--rate N] [live|drained|barriers …]      without names: all
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture import print_machine, write
from pymongo import AsyncMongoClient, InsertOne, UpdateOne
from typing_extensions import override

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the rig of the integration tests serves here too

from d5agent.core.run.read_status import read_status
from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod, ServerOptions
from tests.integration.agent_rig import AgentRig, agent_rig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from d5agent.drill.agent import Agent

PATIENCE_SECONDS = 1800
_TICK_SECONDS = 0.1
_BARRIER_RATE = 280
_RARE = 100
_FOLLOW_SECONDS = 20
Client = AsyncMongoClient[dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class Application:
    """Writes to the source at a rate, half inserts, half updates, until a file says that it may not."""

    client: Client
    rate: int
    refused: Path
    written: int = 0
    last_write: float = 0.0

    async def work(self) -> None:
        """Write until refused."""
        collection = self.client["bench"]["application"]
        began, tick = time.monotonic(), 0
        while not self.refused.exists():
            each = max(1, round(self.rate * _TICK_SECONDS / 2))
            inserts = [InsertOne({"_id": self.written + n, "n": 0, "filler": "x" * 900}) for n in range(each)]
            asked = [self.written * 7 % (self.written + n + 1) for n in range(each)]
            updates = [UpdateOne({"_id": number}, {"$inc": {"n": 1}}) for number in asked]
            await collection.bulk_write([*inserts, *updates])
            self.written += each
            self.last_write = time.time()
            tick += 1
            await asyncio.sleep(max(0.0, began + tick * _TICK_SECONDS - time.monotonic()))


@dataclass(slots=True, kw_only=True)
class Mover(Application):
    """Writes one operation after the other, and now and then drops, renames, or writes a document of 9 MB."""

    @override
    async def work(self) -> None:
        filler, began = "x" * 9_000_000, time.monotonic()
        while not self.refused.exists():
            number = self.written
            await self._rare(number // _RARE, filler) if number % _RARE == 0 else await self._write(number)
            self.written += 1
            self.last_write = time.time()
            await asyncio.sleep(max(0.0, began + self.written / self.rate - time.monotonic()))

    async def _write(self, number: int) -> None:
        collection = self.client["bench"]["application"]
        if number % 2:
            await collection.insert_one({"_id": number, "n": 0, "filler": "x" * 900})
        else:
            await collection.update_one({"_id": (number * 7 % (number + 1)) | 1}, {"$inc": {"n": 1}})
        if number % 10 == 0:
            temporary = self.client["bench"][f"temporary{number // _RARE}"]
            await temporary.insert_one({"_id": number, "filler": "x" * 900})

    async def _rare(self, number: int, filler: str) -> None:
        """Do something to the temporary collection that was written last."""
        temporary = self.client["bench"][f"temporary{number - 1}"]
        match number % 4:
            case 0:
                await temporary.drop()
            case 1:
                await temporary.insert_one({"_id": "last"})
                await temporary.rename("renamed", dropTarget=True)
            case 2:
                await self.client["scratch"]["one"].insert_one({})
                await self.client.drop_database("scratch")
            case _:
                await self.client["bench"]["large"].replace_one({"_id": number % 3}, {"filler": filler}, upsert=True)


@asynccontextmanager
async def surroundings(mode: str) -> AsyncGenerator[tuple[AgentRig, Application, Path]]:
    """Build servers, gateway and configuration."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d5-cut-")))
        options = ServerOptions(cache_gigabytes=2, oplog_megabytes=8000)
        source, target = Mongod(folder / "source", options=options), Mongod(folder / "target", options=options)
        s3 = S3Server(folder)
        for server in (source, target):
            stack.push_async_callback(server.stop)
            await server.start()
        stack.push_async_callback(s3.stop)
        await s3.start()
        await s3.create_bucket("cutover")
        rig = await stack.enter_async_context(agent_rig(source, target, s3, "cutover"))
        refused = folder / "refused"
        del rig.config["capture"]  # as it is by default
        rig.config["restore"] = {"mode": "drained" if mode == "drained" else "live"}
        if mode != "drained":
            rig.config["cutover"] = {"command": ["touch", str(refused)]}
        client: Client = AsyncMongoClient(source.uri)
        stack.push_async_callback(client.close)
        kind = Mover if mode == "barriers" else Application
        yield rig, kind(client=client, rate=0, refused=refused), refused


def can_cutover(status: dict[str, Any]) -> bool:
    """Whether restore has caught up."""
    return read_status(status).progress.restore.can_cutover is True


def captured(status: dict[str, Any]) -> int:
    """Return how many operations the log holds."""
    capture = read_status(status).progress.capture
    return 0 if capture is None else capture.operations


async def live(agent: Agent, _: Path) -> tuple[float, dict[str, Any]]:
    """Follow, cut over; return when it was done, and what was known before."""
    await agent.call("start", "restore")
    before = await agent.until(can_cutover, what="ready", seconds=PATIENCE_SECONDS)
    await asyncio.sleep(5)  # it follows for a while
    await agent.call("cutover", "--follow")
    return time.time(), before


async def drained(agent: Agent, refused: Path) -> tuple[float, dict[str, Any]]:
    """Refuse first, then restore."""
    refused.touch()  # noqa: ASYNC240 -- one file
    await agent.call("start", "restore", "--follow")
    return time.time(), {}


async def barriers(agent: Agent, refused: Path) -> tuple[float, dict[str, Any]]:
    """Follow, be killed, catch up, cut over."""
    began = time.time()
    await agent.call("start", "restore")
    await agent.until(can_cutover, what="ready", seconds=PATIENCE_SECONDS)
    print(f"caught up {time.time() - began:.1f} s after the start of restore", flush=True)
    await asyncio.sleep(_FOLLOW_SECONDS)
    await agent.kill()
    began = time.time()
    await agent.start()
    await agent.until(
        can_cutover,
        what="ready after the kill",
        seconds=PATIENCE_SECONDS,
    )
    print(f"caught up {time.time() - began:.1f} s after the kill", flush=True)
    return await live(agent, refused)


MODES: dict[str, Callable[[Agent, Path], Awaitable[tuple[float, dict[str, Any]]]]] = {
    "live": live,
    "drained": drained,
    "barriers": barriers,
}


async def measure(mode: str, operations: int, rate: int) -> None:
    """Build the backlog, let the application write, and take the time of its silence."""
    async with surroundings(mode) as (rig, application, refused):
        application.rate = rate = _BARRIER_RATE if mode == "barriers" else rate
        agent = await rig.captured_agent()
        await write(application.client, operations)
        await agent.until(
            lambda status: captured(status) >= operations,
            what="captured",
            seconds=PATIENCE_SECONDS,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(application.work())
            await asyncio.sleep(2)
            began = time.time()
            done, before = await MODES[mode](agent, refused)
        refused_at = refused.stat().st_mtime
        seen = read_status(await agent.status())
        source, target = await rig.hashes()
        agent.note_memory()
    assert source == target, "the two sides differ"
    replay, comparison = seen.progress.restore.replay, seen.comparison
    assert replay is not None
    assert comparison is not None
    window = done - refused_at
    print(
        f"\n# {mode}: {operations:,} operations in the log, {rate:,} writes/s until refused\n"
        f"read-only window {window:6.2f} s; restore as a whole {done - began:6.1f} s; "
        f"{application.written * (1 if mode == 'barriers' else 2):,} operations while it went on; dbHash equal\n"
        f"restored {replay.operations_applied:,} operations, compared {comparison.compared:,} "
        f"documents, {comparison.different} different; peak {agent.peak_bytes / 1024**2:.0f} MiB",
        flush=True,
    )
    if before:
        row = read_status(before).progress.restore
        print(f"caught up in generation {row.generation}, {row.carried} carried, {row.lag_seconds} s behind")


async def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="The read-only window.")
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=2_000)
    parser.add_argument("modes", nargs="*", help=", ".join(MODES))
    asked = parser.parse_args()
    print_machine()
    for mode in asked.modes or MODES:
        await measure(mode, asked.operations, asked.rate)


if __name__ == "__main__":
    asyncio.run(main())
