"""One side of the restore benchmark, a process of its own: `bulk` writes the final documents, `replay` the log.

`reading` replays it into nowhere; `the target itself` does what the log tells of temporary collections, in order.
Arguments: the side, then a JSON of source, target (URIs), s3, bucket, state, lanes, connections. Prints a JSON. The
bulk side has its documents in memory before the clock starts: it is what writing alone costs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from peak import peak_mib
from pymongo import AsyncMongoClient, DeleteOne, InsertOne, ReplaceOne, WriteConcern
from pymongo.errors import PyMongoError
from temporary import temporary
from typing_extensions import override

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.adapters.s3 import open_s3
from d5agent.adapters.state import MirroredStateStore
from d5agent.core.replay.pace import Pace
from d5agent.errors import AgentError
from d5agent.runtime.garbage import collect_garbage_rarely
from d5agent.runtime.memory import give_large_buffers_back
from d5agent.settings import Settings, SourceSettings, StoreSettings, TargetSettings
from d5agent.steps.log.reader import LogReader
from d5agent.steps.replay.checkpoint import Checkpoint
from d5agent.steps.replay.replayer import Replayer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from d5agent.core.replay.replay import Barrier, Failure, WriteBatch

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_BATCH = 1000
Request = InsertOne[RawBSONDocument] | ReplaceOne[RawBSONDocument] | DeleteOne


async def bulk(values: dict[str, Any]) -> dict[str, float]:
    """Write what differs between the two databases as unordered bulk writes of raw documents."""
    source: AsyncMongoClient[RawBSONDocument] = AsyncMongoClient(values["source"], document_class=RawBSONDocument)
    target: AsyncMongoClient[RawBSONDocument] = AsyncMongoClient(
        values["target"], document_class=RawBSONDocument, maxPoolSize=values["connections"], retryWrites=False
    )
    work: list[tuple[str, list[Request]]] = []
    for name in await source["bench"].list_collection_names():
        if not name.startswith("events"):
            continue
        before = {d["_id"]: d.raw async for d in target["bench"][name].find()}
        requests: list[Request] = []
        async for document in source["bench"][name].find():
            old = before.pop(document["_id"], None)
            if old is None:
                requests.append(InsertOne(document))
            elif old != document.raw:
                requests.append(ReplaceOne({"_id": document["_id"]}, document))
        requests += [DeleteOne({"_id": id_}) for id_ in before]
        work += [(name, requests[at : at + _BATCH]) for at in range(0, len(requests), _BATCH)]
    free = asyncio.Semaphore(values["connections"])
    concern = WriteConcern("majority", j=True)

    async def write(name: str, requests: list[Request]) -> None:
        async with free:
            await target["bench"].get_collection(name, write_concern=concern).bulk_write(requests, ordered=False)

    began, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for name, requests in work:
            group.create_task(write(name, requests))
    took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    await source.close()
    await target.close()
    return took | {"written": sum(len(requests) for _, requests in work)}


async def direct(values: dict[str, Any]) -> dict[str, float]:
    """Do to the target what was done to the source's temporary collections, over so many connections."""
    count = values["connections"]
    async with AsyncMongoClient[dict[str, Any]](values["target"], maxPoolSize=count, retryWrites=False) as client:
        await client.admin.command("ping")
        began, cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for first in range(count):
                group.create_task(temporary(client, range(first, values["cycles"], count)))
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return took | {"written": values["cycles"]}


class Nowhere(MongoTarget):
    """Takes everything at once: what is left is reading the log and compacting it."""

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        return ()

    @override
    async def apply(self, barrier: Barrier) -> None:
        return


async def replay(values: dict[str, Any], kind: type[MongoTarget] = MongoTarget) -> dict[str, float]:
    """Replay the log as the service does, with its settings."""
    collect_garbage_rarely()
    give_large_buffers_back()
    settings = Settings(source=SourceSettings(), target=TargetSettings(), store=StoreSettings(bucket="bench"))
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(open_mongo(values["source"], side="source"))
        writer = await stack.enter_async_context(open_mongo(values["target"], side="target", pool_size=values["lanes"]))
        store = await stack.enter_async_context(
            open_s3(
                bucket=values["bucket"], prefix="", endpoint_url=values["s3"], region="us-east-1", clock=SystemClock()
            )
        )
        await writer.admin.command("ping")
        reader = LogReader(store=store)
        replayer = Replayer(
            reader=reader,
            target=kind(writer, clock=clock),
            target_reader=MongoReader(writer, side="target", clock=clock),
            source=MongoReader(source, side="source", clock=clock),
            states=MirroredStateStore(Path(values["state"]), store),
            journal=structlog.get_logger(),
            checkpoint=Checkpoint(run_id="bench"),
            clock=clock,
            pace=Pace(lanes=values["lanes"]),
            window_bytes=settings.window_bytes,
        )
        began, cpu = time.perf_counter(), time.process_time()
        await replayer.apply_log(reader.links())
        refused = await replayer.settle()
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    assert not refused
    return took | {"written": replayer.checkpoint.written, "operations": replayer.checkpoint.operations}


async def main(side: str, values: dict[str, Any]) -> None:
    """Run that side, and print what it took."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    sides: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, float]]]] = {
        "bulk": bulk,
        "replay": replay,
        "reading": partial(replay, kind=Nowhere),
        "the target itself": direct,
    }
    took = await sides[side](values)
    print(json.dumps(took | {"peak_mib": peak_mib()}))


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
    except (AgentError, PyMongoError) as error:
        sys.exit(f"{error}: {getattr(error, 'hint', '')}")
