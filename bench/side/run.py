"""One side of the capture benchmark, as a process of its own: `bare` reads and drops, `capture` is the service.

Arguments: bare|capture, then a JSON of uri, s3, bucket, start, events, looks_up, compression, looks (seconds between
looks whether all is committed), state. Prints a JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from peak import peak_mib
from pymongo.errors import PyMongoError
from typing_extensions import override

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.s3 import open_s3
from d5agent.adapters.state import MirroredStateStore
from d5agent.adapters.stream_cursor import ANSWER_SECONDS, StreamCursor, View
from d5agent.core.log.batch_size import BatchSize
from d5agent.core.log.operation import ClusterTime, Position
from d5agent.core.run.services import Service
from d5agent.errors import AgentError
from d5agent.plugins.replication import Replication
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.garbage import collect_garbage_rarely
from d5agent.runtime.memory import give_large_buffers_back
from d5agent.settings import CaptureSettings, LimitsSettings, Settings, SourceSettings, StoreSettings, TargetSettings
from d5agent.steps.capture.kept_changes import KeptChanges
from d5agent.steps.log.reader import LogReader

if TYPE_CHECKING:
    from d5agent.adapters.mongo import Client
    from d5agent.ports import ObjectStore

_PATIENCE_SECONDS = 600


class PlainCursor(StreamCursor):
    """Asks for no look-ups: to show apart what they cost."""

    @override
    def _open_command(self) -> dict[str, Any]:
        command = super()._open_command()
        command["pipeline"][0]["$changeStream"].pop("fullDocument", None)
        return command


async def bare(client: Client, values: dict[str, Any]) -> dict[str, float]:
    """Read the events and drop them: the replies are taken apart into events, which is what anybody must do."""
    kind = StreamCursor if values["looks_up"] else PlainCursor
    cursor = kind(
        client=client,
        clock=SystemClock(),
        position=start_of(values),
        view=View.WHOLE,
        portion=BatchSize(answer_seconds=ANSWER_SECONDS),
    )
    began, seen = time.perf_counter(), 0
    async with aclosing(cursor.batches()) as batches:
        async for batch in batches:
            seen += len(batch.events)
            if seen >= values["events"]:
                break
    return {"seconds": time.perf_counter() - began}


async def capture(client: Client, store: ObjectStore, values: dict[str, Any]) -> dict[str, float]:
    """Run the service, as its settings make it, until all events are committed."""
    collect_garbage_rarely()
    give_large_buffers_back()
    clock = SystemClock()
    states = MirroredStateStore(Path(values["state"]), store)
    settings = Settings(
        source=SourceSettings(),
        target=TargetSettings(),
        store=StoreSettings(bucket="bench"),
        capture=CaptureSettings(compression=values["compression"], own_segments=values["own_segments"]),
        limits=LimitsSettings(),
    )

    class FromStart(ChangeStreamSource):
        @override
        async def now(self) -> ClusterTime:
            return start_of(values).cluster_time  # begin where the bare drain began

    source = FromStart(client, uri=values["uri"], flavor="mongodb", clock=clock)
    plugin = Replication(
        source=source,
        store=store,
        states=states,
        kept=KeptChanges(source=source, states=states, store=store, clock=clock),
        clock=clock,
        agent_id="bench",
        host="bench",
        max_segment_bytes=settings.capture.max_segment_bytes,
        max_segment_seconds=settings.capture.max_segment_seconds,
        own_segments=settings.capture.own_segments,
        ahead_bytes=settings.ahead_bytes,
        upload_bytes=settings.upload_bytes,
        compresses=settings.capture.compression == "zstd",
    )
    daemon = Daemon(plugins={Service.REPLICATION: lambda: plugin}, states=states, clock=clock, drain_seconds=10)
    committed = asyncio.Event()

    async def watch() -> None:
        while (capture := daemon.progress.capture) is None or capture.operations < values["events"]:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(values["looks"])
        committed.set()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.serve(group))
        await asyncio.sleep(0)
        await daemon.start(Service.REPLICATION)
        group.create_task(watch())
        await asyncio.wait_for(committed.wait(), _PATIENCE_SECONDS)
        seconds = time.perf_counter() - began
        daemon.end()
    last = await LogReader(store=store).last()
    assert last is not None
    assert last.commit.total.operations >= values["events"]
    return {"seconds": seconds, "commits": last.commit.sequence + 1, "segments": last.commit.total.segments}


def start_of(values: dict[str, Any]) -> Position:
    """Return where to begin."""
    return Position(cluster_time=ClusterTime(*values["start"]), token=None)


async def main(side: str, values: dict[str, Any]) -> None:
    """Run that side, and print what it took."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_mongo(values["uri"], side="source"))
        await client.admin.command("ping")
        if side == "bare":
            took = await bare(client, values)
        else:
            store = await stack.enter_async_context(
                open_s3(
                    bucket=values["bucket"],
                    prefix="",
                    endpoint_url=values["s3"],
                    region="us-east-1",
                    clock=SystemClock(),
                )
            )
            took = await capture(client, store, values)
    used = resource.getrusage(resource.RUSAGE_SELF)
    took |= {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_mib": peak_mib()}
    print(json.dumps(took))


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
    except (AgentError, PyMongoError) as error:
        sys.exit(f"{error}: {getattr(error, 'hint', '')}")
