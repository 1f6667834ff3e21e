"""How fast a comparison is, and what it takes: side by side in one run, each side a process of its own.

The bare raw merge compare is the limit here: two sorted raw cursors, or look-ups by `_id`, read at the same time, bytes
compared, nothing named. All share this machine's cores with both mongods.

    python bench/verify.py [main|sizes|differing|touched …]      without arguments: all of them
"""

from __future__ import annotations

import json
import random
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson import Timestamp
from capture import run_parts, run_side
from pymongo import AsyncMongoClient

from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod, ServerOptions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DOCUMENTS = 300_000
DOCUMENT_BYTES = 1000
ROUNDS = 3
_SIDE = Path(__file__).with_name("side") / "compare.py"
_CAPTURE = Path(__file__).with_name("side") / "run.py"
Client = AsyncMongoClient[dict[str, Any]]
Took = dict[str, float]


@dataclass(slots=True, kw_only=True)
class Bench:
    """Two servers, one S3 server, and the runs against them."""

    folder: Path
    source: Mongod
    target: Mongod
    s3: S3Server

    async def run(self, side: str, documents: int) -> Took:
        """Run a side."""
        values = {
            "source": self.source.uri,
            "target": self.target.uri,
            "documents": documents,
            "s3": self.s3.endpoint_url,
            "bucket": "bench",
        }
        return await run_side(_SIDE, side, json.dumps(values))

    async def write(
        self, documents: int, *, document_bytes: int = DOCUMENT_BYTES, every: int | None = None, collections: int = 1
    ) -> Timestamp:
        """Write the same into both; with `every`, each such document differs. Return a moment before the first."""
        async with Client(self.source.uri) as client:
            time: Timestamp = (await client.admin.command("hello"))["operationTime"]
        for server, is_target in ((self.source, False), (self.target, True)):
            async with Client(server.uri) as client:
                for number in range(collections):
                    mine = range(number, documents, collections)
                    await _fill(client, f"c{number}", mine, document_bytes, every if is_target else None)
        return Timestamp(time.time, time.inc + 1)

    async def capture(self, start: Timestamp, events: int) -> None:
        """Put what was written into the source into the log."""
        state = self.folder / "state"
        state.mkdir()
        values = {
            "uri": self.source.uri,
            "s3": self.s3.endpoint_url,
            "bucket": "bench",
            "start": [start.time, start.inc],
            "events": events,
            "looks_up": True,
            "compression": "none",
            "looks": 0.05,
            "state": str(state),
        }
        await run_side(_CAPTURE, "capture", json.dumps(values))


async def _fill(client: Client, name: str, mine: range, document_bytes: int, every: int | None) -> None:
    dice = random.Random(1)
    size = max(document_bytes - 60, 1)
    pool = dice.randbytes(size + 500_000).hex()
    step = max(1, min(1000, 8_000_000 // document_bytes))
    for at in range(0, len(mine), step):
        documents = []
        for n in mine[at : at + step]:
            begin = (n * 7919) % max(1, len(pool) - size)
            filler = (
                (pool * (size // len(pool) + 2))[begin : begin + size]
                if size > len(pool)
                else pool[begin : begin + size]
            )
            documents.append({"_id": n, "n": -1 if every and n % every == 0 else n, "filler": filler})
        await client["bench"][name].insert_many(documents)


@asynccontextmanager
async def bench() -> AsyncGenerator[Bench]:
    """Start what is measured against."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d5-bench-")))
        options = ServerOptions(cache_gigabytes=2, oplog_megabytes=4000)
        source, target = (Mongod(folder / name, options=options) for name in ("source", "target"))
        s3 = S3Server(folder)
        for server in (source, target, s3):
            stack.push_async_callback(server.stop)
            await server.start()
        await s3.create_bucket("bench")
        yield Bench(folder=folder, source=source, target=target, s3=s3)


def show(what: str, documents: int, took: Took, *, of: Took | None = None) -> None:
    """Print one line: documents a second, the ratio to another side, and what it took of the agent."""
    ratio = "" if of is None else f"ratio {of['seconds'] / took['seconds']:4.2f}"
    print(
        f"{what:<36}{documents / took['seconds']:>9,.0f} documents/s  {ratio:<12}"
        f"agent's CPU {took['cpu_seconds'] / documents * 1e6:5.1f} µs/document  peak {took['peak_mib']:4.0f} MiB",
        flush=True,
    )


def median(turns: list[Took]) -> Took:
    """Return the turn with the median of seconds."""
    return sorted(turns, key=lambda took: took["seconds"])[len(turns) // 2]


async def whole() -> None:
    """Whole collections that are equal, in turns with the bare comparison."""
    for collections in (1, 20):
        print(
            f"\n# {DOCUMENTS:,} documents of {DOCUMENT_BYTES} bytes in {collections} collections, equal; {ROUNDS} turns"
        )
        async with bench() as at:
            await at.write(DOCUMENTS, collections=collections)
            sides: dict[str, list[Took]] = {"bare": [], "full": []}
            for _ in range(ROUNDS):
                for side, turns in sides.items():
                    turns.append(await at.run(side, DOCUMENTS))
                assert (sides["full"][-1]["compared"], sides["full"][-1]["different"]) == (DOCUMENTS, 0)
            show("bare raw merge compare", DOCUMENTS, median(sides["bare"]))
            show("d5agent verify --full", DOCUMENTS, median(sides["full"]), of=median(sides["bare"]))
            ratios = [b["seconds"] / f["seconds"] for b, f in zip(sides["bare"], sides["full"], strict=True)]
            print(f"turn by turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


async def sizes() -> None:
    """Documents of several sizes: memory is bounded."""
    print("\n# by size of the documents, equal; one turn")
    for document_bytes, documents in ((100, 500_000), (10_000, 40_000), (1_000_000, 600), (16_000_000, 24)):
        async with bench() as at:
            await at.write(documents, document_bytes=document_bytes, collections=2)
            bare = await at.run("bare", documents)
            show(f"{document_bytes:,} bytes: bare", documents, bare)
            show(f"{document_bytes:,} bytes: d5agent", documents, await at.run("full", documents), of=bare)


async def differing() -> None:
    """Documents that differ: each is looked up again and named."""
    for every in (1000, 10):
        print(f"\n# {DOCUMENTS:,} documents, one in {every} differs; one turn")
        async with bench() as at:
            await at.write(DOCUMENTS, every=every)
            took = await at.run("full", DOCUMENTS)
            assert took["different"] == DOCUMENTS / every
            show("d5agent verify --full", DOCUMENTS, took)


async def touched() -> None:
    """Documents that a log touched, each once: by `_id`. The bare look-ups read no log."""
    print(f"\n# {DOCUMENTS:,} documents of {DOCUMENT_BYTES} bytes, each touched once, equal; {ROUNDS} turns")
    async with bench() as at:
        start = await at.write(DOCUMENTS)
        await at.capture(start, DOCUMENTS)
        sides: dict[str, list[Took]] = {"bare": [], "bare-ids": [], "bare-log": [], "log": [], "touched": []}
        for _ in range(ROUNDS):
            for side, turns in sides.items():
                turns.append(await at.run(side, DOCUMENTS))
            assert (sides["touched"][-1]["compared"], sides["touched"][-1]["different"]) == (DOCUMENTS, 0)
        took = {side: median(turns) for side, turns in sides.items()}
        show("bare raw merge compare, whole", DOCUMENTS, took["bare"])
        show("bare look-ups by _id", DOCUMENTS, took["bare-ids"])
        show("bare look-ups, log fetched beside", DOCUMENTS, took["bare-log"])
        show("reading the log alone", DOCUMENTS, took["log"])
        show("d5agent verify (touched)", DOCUMENTS, took["touched"], of=took["bare-ids"])
        ratio = took["bare"]["seconds"] / took["touched"]["seconds"]
        with_log = took["bare-log"]["seconds"] / took["touched"]["seconds"]
        print(f"of bare look-ups with the log fetched: {with_log:.2f}; of the bare compare, whole: {ratio:.2f}")


if __name__ == "__main__":
    run_parts(
        {
            "main": whole,
            "sizes": sizes,
            "differing": differing,
            "touched": touched,
        }
    )
