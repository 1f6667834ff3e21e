"""How fast capture is, and what it takes: side by side in one run, each side a process of its own.

The bare drain is the physical limit here: the same `aggregate` and `getMore`, replies taken apart, nothing kept. All
share this machine's cores with mongod and the S3 server, whose CPU seconds stand beside the figures.

    python bench/capture.py [main|sizes|collections|stall|idle …]      without arguments: all of them
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import signal
import statistics
import string
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
from bson import Timestamp
from pymongo import AsyncMongoClient

from d5agent.core.log.segmenter import OWN_SEGMENTS
from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod, ServerOptions
from d5agent.drill.tools import inherited_environment

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

EVENTS = 240_000
DOCUMENT_BYTES = 1000
ROUNDS = 3
STALL_SECONDS = 60
_SIDE = Path(__file__).with_name("side") / "run.py"
_TICKS = os.sysconf("SC_CLK_TCK")
Client = AsyncMongoClient[dict[str, Any]]
Took = dict[str, float]


@dataclass(slots=True, kw_only=True)
class Bench:
    """One mongod, one S3 server, and the runs against them."""

    folder: Path
    server: Mongod
    s3: S3Server
    client: Client
    runs: int = 0

    async def now(self) -> Timestamp:
        """Return a moment that lies before what is written next."""
        await self.client["bench"]["marker"].insert_one({})
        time_: Timestamp = (await self.client.admin.command("hello"))["operationTime"]
        return Timestamp(time_.time, time_.inc + 1)

    async def run(self, side: str, start: Timestamp, events: int, **changed: object) -> Took:
        """Run a side over events that lie in the oplog; CPU seconds of all three processes are in what it took."""
        process, before = await self.begin(side, start, events, **changed)
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        took: Took = json.loads(out)
        after = self._cpu()
        return took | {name: after[name] - before[name] for name in after}

    async def begin(
        self, side: str, start: Timestamp, events: int, **changed: object
    ) -> tuple[asyncio.subprocess.Process, Took]:
        """Start a side; return its process, and the CPU seconds so far."""
        self.runs += 1
        bucket, state = f"bench-{self.runs}", self.folder / f"state-{self.runs}"
        state.mkdir()
        await self.s3.create_bucket(bucket)
        values = {
            "uri": self.server.uri,
            "s3": self.s3.endpoint_url,
            "bucket": bucket,
            "start": [start.time, start.inc],
            "events": events,
            "looks_up": True,
            "compression": "none",
            "own_segments": OWN_SEGMENTS,
            "looks": 0.005,
            "state": str(state),
        } | changed
        before = self._cpu()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(_SIDE), side, json.dumps(values)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=inherited_environment(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test"),  # noqa: S106 -- it accepts any
        )
        return process, before

    def _cpu(self) -> Took:
        return {"mongod_cpu": cpu_seconds(self.server.pid), "s3_cpu": cpu_seconds(self.s3.pid)}


async def run_side(script: Path, *arguments: str) -> Took:
    """Run a side of a benchmark to its end, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=inherited_environment(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test"),  # noqa: S106 -- it accepts any
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    took: Took = json.loads(out)
    return took


def print_machine() -> None:
    """Say where this is measured."""
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    print(f"versions: Python {platform.python_version()}, PyMongo {pymongo.version}, mongod 6.0.5, LocalStack S3 4.7.0")


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU seconds of a process so far (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def write(
    client: Client,
    count: int,
    *,
    document_bytes: int = DOCUMENT_BYTES,
    collections: int = 1,
    only_inserts: bool = False,
) -> None:
    """Half inserts, half updates, of text that no compressor makes small; spread over collections in turn."""
    dice = random.Random(1)
    letters = (string.ascii_letters + string.digits).encode()
    pool = dice.randbytes(2_000_000).translate(bytes(letters[n % len(letters)] for n in range(256))).decode()
    size = max(document_bytes - 60, 1)
    step = max(1, min(1000, 8_000_000 // document_bytes))
    inserts = count if only_inserts else count // 2

    def document(number: int) -> dict[str, Any]:
        at = dice.randrange(len(pool) - size)
        return {"_id": number, "n": 0, "filler": pool[at : at + size]}

    for number in range(collections):
        events = client["bench"]["events" if collections == 1 else f"events{number}"]
        if collections > 1000:  # one file each instead of two: mongod holds them all open
            clustered = {"key": {"_id": 1}, "unique": True}
            await client["bench"].create_collection(events.name, clusteredIndex=clustered)
        mine = range(number, inserts, collections)
        for at in range(0, len(mine), step):
            await events.insert_many([document(n) for n in mine[at : at + step]])
    for number in range(collections if not only_inserts else 0):
        events = client["bench"]["events" if collections == 1 else f"events{number}"]
        mine = range(number, count - inserts, collections)
        for at in range(0, len(mine), step):
            await events.update_many({"_id": {"$in": list(mine[at : at + step])}}, {"$inc": {"n": 1}})


@asynccontextmanager
async def bench() -> AsyncGenerator[Bench]:
    """Start what is measured against."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d5-bench-")))
        options = ServerOptions(cache_gigabytes=2, oplog_megabytes=4000)
        server, s3 = Mongod(folder / "source", options=options), S3Server(folder)
        stack.push_async_callback(server.stop)
        stack.push_async_callback(s3.stop)
        await server.start()
        await s3.start()
        client: Client = AsyncMongoClient(server.uri)
        stack.push_async_callback(client.close)
        yield Bench(folder=folder, server=server, s3=s3, client=client)


def show(what: str, events: int, took: Took, *, of: Took | None = None) -> None:
    """Print one line: events a second, the ratio to another side, and what it took of each process."""
    ratio = "" if of is None else f"  ratio {of['seconds'] / took['seconds']:4.2f}"
    each = 1e6 / events
    print(
        f"{what:<34}{events / took['seconds']:>9,.0f} events/s{ratio:<12}"
        f"  CPU µs/event: agent {took['cpu_seconds'] * each:5.1f}, mongod {took['mongod_cpu'] * each:5.1f},"
        f" S3 {took['s3_cpu'] * each:5.1f}  peak {took['peak_mib']:4.0f} MiB",
        flush=True,
    )


def median(turns: list[Took]) -> Took:
    """Return the turn with the median of seconds."""
    return sorted(turns, key=lambda took: took["seconds"])[len(turns) // 2]


async def side_by_side() -> None:
    """Our service, the bare drain and the peers over the same events, in turns."""
    from peers import PEERS, PeerResult  # noqa: PLC0415 -- it imports this module

    print(f"\n# {EVENTS:,} events, half inserts, half updates, {DOCUMENT_BYTES} bytes; medians of {ROUNDS} turns")
    async with bench() as at:
        start = await at.now()
        await write(at.client, EVENTS)
        sides: dict[str, list[Took]] = {"bare drain": [], "d5agent": [], "d5agent, zstd": []}
        peers: dict[str, list[PeerResult]] = {}
        for turn in range(ROUNDS):
            sides["bare drain"].append(await at.run("bare", start, EVENTS))
            sides["d5agent"].append(await at.run("capture", start, EVENTS))
            sides["d5agent, zstd"].append(await at.run("capture", start, EVENTS, compression="zstd"))
            for run in PEERS:
                own, bucket = at.folder / f"{run.__name__}-{turn}", f"{run.__name__}-{turn}".replace("_", "-")
                own.mkdir()
                await at.s3.create_bucket(bucket)
                found = await run(at.server.uri, at.s3, bucket, events=EVENTS, start=start, folder=own)
                peers.setdefault(found.name, []).append(found)
        limit = median(sides["bare drain"])
        for name, turns in sides.items():
            show(name, EVENTS, median(turns), of=limit)
        ratios = [b["seconds"] / c["seconds"] for b, c in zip(sides["bare drain"], sides["d5agent"], strict=True)]
        print(f"d5agent of the bare drain, turn by turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        ours = median(sides["d5agent"])["seconds"]
        for name, results in peers.items():
            seconds = statistics.median(result.seconds for result in results)
            version, note = results[0].version, results[0].note
            print(
                f"{name:<18}{version:<8}{EVENTS / seconds:>17,.0f} events/s  d5agent is {seconds / ours:4.2f} times as "
                f"fast  CPU µs/event {results[0].cpu_seconds / EVENTS * 1e6:5.1f}  {note}"
            )


async def sizes() -> None:
    """Documents of several sizes, and what the look-ups cost."""
    print("\n# by size of the documents, half inserts, half updates; one turn")
    for document_bytes, events in ((100, 200_000), (1000, 100_000), (10_000, 30_000), (1_000_000, 600)):
        async with bench() as at:
            start = await at.now()
            await write(at.client, events, document_bytes=document_bytes)
            bare = await at.run("bare", start, events)
            show(
                f"{document_bytes:,} bytes: bare, no look-ups",
                events,
                await at.run("bare", start, events, looks_up=False),
            )
            show(f"{document_bytes:,} bytes: bare", events, bare)
            show(f"{document_bytes:,} bytes: d5agent", events, await at.run("capture", start, events), of=bare)


async def collections() -> None:
    """One busy collection, a hundred, ten thousand."""
    print(f"\n# by number of collections, {EVENTS:,} inserts of {DOCUMENT_BYTES} bytes; one turn")
    for number in (1, 100, 10_000):
        async with bench() as at:
            start = await at.now()
            await write(at.client, EVENTS, collections=number, only_inserts=True)
            bare = await at.run("bare", start, EVENTS)
            show(f"{number:,}: bare", EVENTS, bare)
            ours = await at.run("capture", start, EVENTS)
            show(f"{number:,}: d5agent", EVENTS, ours, of=bare)
            print(f"{'':<34}{ours['segments']:,.0f} segments in {ours['commits']:,.0f} commits")


async def stall() -> None:
    """S3 answers nothing for a minute, under load: the reader waits, memory does not grow, nothing is lost."""
    print(f"\n# S3 stopped for {STALL_SECONDS} s under load")
    async with bench() as at:
        start = await at.now()
        await write(at.client, EVENTS)
        process, _ = await at.begin("capture", start, EVENTS)
        await asyncio.sleep(1.5)
        os.kill(at.s3.pid or 0, signal.SIGSTOP)
        began = time.perf_counter()
        await asyncio.sleep(STALL_SECONDS)
        os.kill(at.s3.pid or 0, signal.SIGCONT)
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        took = json.loads(out)
        print(
            f"all {EVENTS:,} events committed {time.perf_counter() - began - STALL_SECONDS:.1f} s after S3 answered "
            f"again; peak {took['peak_mib']:.0f} MiB"
        )


async def idle() -> None:
    """How much of a core it takes while nothing happens."""
    seconds = 30
    async with bench() as at:
        start = await at.now()
        process, _ = await at.begin("capture", start, 1_000_000, looks=1.0)
        await asyncio.sleep(5)
        before = cpu_seconds(process.pid)
        await asyncio.sleep(seconds)
        share = (cpu_seconds(process.pid) - before) / seconds
        process.kill()
        await process.wait()
    print(f"\n# idle\n{share:.2%} of a core, over {seconds} s")


def run_parts(parts: dict[str, Callable[[], Awaitable[None]]]) -> None:
    """Run the parts that the command line names, or all; Ctrl-C ends it."""

    async def run() -> None:
        names = sys.argv[1:] or list(parts)
        for name in names:
            if name not in parts:
                sys.exit(f"there is no part {name}: type one of {', '.join(parts)}")
        print_machine()
        for name in names:
            await parts[name]()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())


if __name__ == "__main__":
    run_parts(
        {
            "main": side_by_side,
            "sizes": sizes,
            "collections": collections,
            "stall": stall,
            "idle": idle,
        }
    )
