"""How fast capture is: our replication into S3, beside a bare raw drain of the same stream, in one run.

The bare drain is the physical limit here: `aggregate` and `getMore` with raw documents, look-ups on, nothing kept.
Client, mongod and S3 server share the cores of this machine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pymongo
import structlog

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import Client, open_mongo
from d5agent.adapters.s3 import S3Store
from d5agent.adapters.state import MirroredStateStore
from d5agent.core.operation import Position
from d5agent.core.phase import Service
from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod
from d5agent.plugins.replication import Replication
from d5agent.runtime.daemon import Daemon
from d5agent.steps.log_reader import LogReader

EVENTS = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
DOCUMENT_BYTES = 1000
ROUNDS = 3


async def write(client: Client, count: int) -> None:
    """Half inserts, half updates, documents of about 1 KB."""
    filler = "x" * (DOCUMENT_BYTES - 60)
    for at in range(0, count // 2, 1000):
        ids = range(at, min(at + 1000, count // 2))
        await client["bench"]["events"].insert_many([{"_id": n, "n": 0, "filler": filler} for n in ids])
    for at in range(0, count // 2, 1000):
        await client["bench"]["events"].update_many({"_id": {"$gte": at, "$lt": at + 1000}}, {"$inc": {"n": 1}})


async def bare_drain(source: ChangeStreamSource, start: Position, count: int) -> float:
    """Read the events and drop them; return the seconds."""
    began, seen = time.perf_counter(), 0
    async with source.stream(start) as batches:
        async for batch in batches:
            seen += len(batch.events)
            if seen >= count:
                return time.perf_counter() - began
    raise AssertionError


async def capture(source: ChangeStreamSource, start: Position, count: int, store: S3Store, folder: Path) -> float:
    """Run the service until all events are committed; return the seconds."""
    clock = SystemClock()
    states = MirroredStateStore(folder, store)

    class FromStart(ChangeStreamSource):
        async def now(self):  # noqa: ANN202 -- begin where the bare drain began
            return start.cluster_time

    from_start = FromStart(source._client, uri="", flavor="mongodb", clock=clock)  # noqa: SLF001 -- the same connection
    plugin = Replication(
        source=from_start,
        store=store,
        states=states,
        clock=clock,
        agent_id="bench",
        host=platform.node(),
        max_segment_bytes=8 * 1024 * 1024,
        max_segment_seconds=1,
    )
    daemon = Daemon(plugins={Service.REPLICATION: lambda: plugin}, states=states, clock=clock, drain_seconds=10)
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.serve(group))
        await asyncio.sleep(0)
        await daemon.start(Service.REPLICATION)
        while int(str(daemon.facts.get(Service.REPLICATION, {}).get("operations", 0))) < count:  # noqa: ASYNC110 -- facts, no event
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - began
        daemon.end()
    last = await LogReader(store=store).last()
    assert last is not None
    assert last.commit.total.operations >= count
    return seconds


async def main() -> None:
    """Measure both sides in turns, and print the best of each."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"versions: PyMongo {pymongo.version}, mongod 6.0.5, LocalStack S3 4.7.0")
    print(f"data: {EVENTS:,} events, half inserts, half updates, {DOCUMENT_BYTES} bytes a document, updateLookup on")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d5-bench-")))
        server, s3 = Mongod(folder / "source"), S3Server(folder)
        stack.push_async_callback(server.stop)
        stack.push_async_callback(s3.stop)
        await server.start()
        await s3.start()
        client = await stack.enter_async_context(open_mongo(server.uri, side="source"))
        objects = await stack.enter_async_context(s3.client())
        source = ChangeStreamSource(client, uri=server.uri, flavor="mongodb", clock=SystemClock())
        await client["bench"]["events"].insert_one({"_id": "first"})
        start = Position(cluster_time=await source.now(), token=None)
        await write(client, EVENTS)
        bare, ours = [], []
        for number in range(ROUNDS):
            bare.append(await bare_drain(source, start, EVENTS))
            await s3.create_bucket(f"bench-{number}")
            store = S3Store(objects, bucket=f"bench-{number}", prefix="", clock=SystemClock())
            (folder / f"state-{number}").mkdir()
            ours.append(await capture(source, start, EVENTS, store, folder / f"state-{number}"))
    print(f"bare raw drain:     {EVENTS / min(bare):>9,.0f} events/s (best of {ROUNDS})")
    print(f"capture, committed: {EVENTS / min(ours):>9,.0f} events/s (best of {ROUNDS})")
    print(f"ratio:              {min(bare) / min(ours):>9.2f}")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
