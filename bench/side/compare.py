"""One side of the comparison benchmark, as a process of its own.

`bare` is the limit here: two sorted raw cursors (`find_raw_batches`), read at the same time, pages compared as bytes,
nothing named or counted. `bare-ids`: the same by `_id`, batches of 500 (`$in`), four at a time; `bare-log`: with the
log's segments fetched beside it, and dropped. `log` reads the log and drops its operations. `full` and `touched` are
d5agent's, as its settings make them. Arguments: the side, then a JSON of source, target, documents, s3, bucket. Prints
a JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, cast

from peak import peak_mib

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.s3 import open_s3
from d5agent.core.compare.report import VerifyReport
from d5agent.settings import LimitsSettings, Settings, SourceSettings, StoreSettings, TargetSettings
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.log.reader import LogReader

if TYPE_CHECKING:
    from d5agent.adapters.mongo import Client

_PAGE = 1000
_BATCH = 500
_AT_ONCE = 4


async def bare(clients: tuple[Client, Client], names: list[str]) -> int:
    """Read both sides and compare; pages of equal collections are equal."""
    compared = 0
    for name in names:
        cursors = [c["bench"][name].find_raw_batches({}, sort=[("_id", 1)], batch_size=_PAGE) for c in clients]
        while True:
            pages = await asyncio.gather(*(anext(cursor, None) for cursor in cursors))
            if pages[0] is None:
                break
            assert pages[0] == pages[1]
            compared += 1
    return compared


async def bare_ids(clients: tuple[Client, Client], name: str, documents: int) -> int:
    """Look all documents up on both sides."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def read(client: Client, first: int) -> bytes:
        which = {"_id": {"$in": list(range(first, min(first + _BATCH, documents)))}}
        pages = client["bench"][name].find_raw_batches(which, batch_size=_BATCH + 1)
        return b"".join([cast("bytes", page) async for page in pages])

    async def compare(first: int) -> None:
        async with free:
            one, other = await asyncio.gather(*(read(client, first) for client in clients))
            assert one == other

    async with asyncio.TaskGroup() as group:
        for first in range(0, documents, _BATCH):
            group.create_task(compare(first))
    return documents


async def fetch_log(reader: LogReader) -> None:
    """Fetch the log's segments and drop them: what nobody can do without who wants to know what was touched."""
    async for _ in reader.segments_of(reader.links()):
        pass


async def main(side: str, values: dict[str, Any]) -> None:
    """Run that side, and print what it took."""
    settings = Settings(
        source=SourceSettings(), target=TargetSettings(), store=StoreSettings(bucket="bench"), limits=LimitsSettings()
    )
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(open_mongo(values["source"], side="source"))
        target = await stack.enter_async_context(open_mongo(values["target"], side="target"))
        store = await stack.enter_async_context(
            open_s3(bucket=values["bucket"], prefix="", endpoint_url=values["s3"], region="us-east-1", clock=clock)
        )
        for client in (source, target):
            await client.admin.command("ping")
        verifier = Verifier(
            source=MongoReader(source, side="source", clock=clock),
            target=MongoReader(target, side="target", clock=clock),
            repair_into=None,
            clock=clock,
            waiting_bytes=settings.waiting_bytes,
            report=VerifyReport(scope=side),
        )
        names = await source["bench"].list_collection_names()
        reader = LogReader(store=store)
        began = time.perf_counter()
        if side == "bare":
            await bare((source, target), names)
        elif side == "bare-ids":
            await bare_ids((source, target), names[0], values["documents"])
        elif side == "bare-log":
            async with asyncio.TaskGroup() as group:
                group.create_task(fetch_log(reader))
                group.create_task(bare_ids((source, target), names[0], values["documents"]))
        elif side == "log":
            async for _ in reader.operations_of(reader.links()):
                pass
        elif side == "touched":
            await verifier.touched(reader, reader.links(), ())
        else:
            await verifier.full()
        seconds = time.perf_counter() - began
    report = verifier.report
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "compared": report.compared,
                "different": report.different,
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "peak_mib": peak_mib(),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
