"""How fast the replay is: beside raw bulk writes of the same final documents, in turns, each side a process of its own.

The bulk side knows beforehand what is to be written and has it in memory as raw documents; the replay reads the log
from S3, takes it apart, compacts it and writes, with the same write concern (majority, journaled). Bulk writes are
shown over one connection, one after the other, as a program does that calls `bulk_write`, and over as many as the
replay has. The last side is the replay into a target that takes everything at once: what the log costs by itself.
All share this machine's cores with mongod and the S3 server, whose CPU seconds stand beside the figures.

`drops`: temporary collections that come and go, a third of them renamed onto a name that is there. The target itself
does the same inserts, drops and renames, in order, with the same write concern. `large`: documents of 9 MB.

    python bench/restore.py [--operations N] [inserts|hot|mixed|collections|drops|large …]   without names: all of them
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson import Timestamp
from capture import Bench, bench, cpu_seconds, print_machine, run_side
from pymongo import AsyncMongoClient, DeleteOne, InsertOne, UpdateOne
from side.temporary import temporary

from d5agent.drill.servers import Mongod, ServerOptions

if TYPE_CHECKING:
    from collections.abc import Callable

LANES = 4
ONE, MANY, OURS = "bulk, one connection", f"bulk, {LANES} connections", "replay"
READING = "reading, into nowhere"
DIRECT_ONE, DIRECT_MANY = "the target itself, one connection", f"the target itself, {LANES} connections"
ROUNDS = 3
BYTES = 1000
LARGE_BYTES = 9_000_000
LARGE = 12
CYCLES = 300
_STEP = 1000
_SIDE = Path(__file__).with_name("side") / "restore.py"
_POOL = random.Random(1).randbytes(1_000_000).hex()
Client = AsyncMongoClient[dict[str, Any]]
Request = InsertOne[dict[str, Any]] | UpdateOne | DeleteOne
Took = dict[str, float]


def document(number: int) -> dict[str, Any]:
    """Return a document of about a kilobyte."""
    at = number * 7919 % (len(_POOL) - BYTES)
    return {"_id": number, "n": 0, "filler": _POOL[at : at + BYTES - 60]}


def inserts(count: int) -> list[tuple[int, Request]]:
    """Return nothing but new documents."""
    return [(0, InsertOne(document(number))) for number in range(count)]


def hot(count: int) -> list[tuple[int, Request]]:
    """Every document of a few, updated again and again."""
    few = max(1, count // 60)
    return [(0, UpdateOne({"_id": -1 - number % few}, {"$inc": {"n": 1}})) for number in range(count)]


def mixed(count: int) -> list[tuple[int, Request]]:
    """Half inserts, four tenths updates of old and new documents, a tenth deletes."""
    dice, made = random.Random(2), 0
    found: list[tuple[int, Request]] = []
    for _ in range(count):
        kind = dice.random()
        if kind < 0.5:
            found.append((0, InsertOne(document(made))))
            made += 1
        elif kind < 0.9:
            found.append((0, UpdateOne({"_id": dice.randrange(-count // 10, max(made, 1))}, {"$inc": {"n": 1}})))
        else:
            found.append((0, DeleteOne({"_id": dice.randrange(-count // 10, max(made, 1))})))
    return found


def collections(count: int) -> list[tuple[int, Request]]:
    """Spread the mixture over a hundred collections."""
    return [(number % 100, request) for number, (_, request) in enumerate(mixed(count))]


def large(_: int) -> list[tuple[int, Request]]:
    """Documents of 9 MB, each inserted and updated once."""
    filler = _POOL * 5
    made = [InsertOne({"_id": n, "n": 0, "filler": filler[n : n + LARGE_BYTES]}) for n in range(LARGE)]
    return [*((0, one) for one in made), *((0, UpdateOne({"_id": n}, {"$inc": {"n": 1}})) for n in range(LARGE))]


WORKLOADS: dict[str, Callable[[int], list[tuple[int, Request]]]] = {
    "inserts": inserts,
    "hot": hot,
    "mixed": mixed,
    "collections": collections,
    "large": large,
}


async def fill(client: Client, workload: str, count: int) -> None:
    """Write the documents that are there before the outage: those with negative numbers."""
    old = {"hot": max(1, count // 60), "mixed": count // 10, "collections": count // 10}.get(workload, 0)
    spread = 100 if workload == "collections" else 1
    for number in range(spread):
        some = [document(-1 - n) for n in range(old)] if spread == 1 else [document(-1 - n) for n in range(old // 10)]
        if some:
            await client["bench"][f"events{number}"].insert_many(some)


async def write(client: Client, requests: list[tuple[int, Request]]) -> int:
    """Perform the requests in order; return how many change events come of them."""
    events = 0
    by_collection: dict[int, list[Request]] = {}
    for number, request in requests:
        by_collection.setdefault(number, []).append(request)
    for number, some in by_collection.items():
        for at in range(0, len(some), _STEP):
            result = await client["bench"][f"events{number}"].bulk_write(some[at : at + _STEP])
            events += result.inserted_count + result.modified_count + result.deleted_count
    return events


async def run(at: Bench, target: Mongod, side: str, bucket: str, turn: int) -> Took:
    """Run a side against a target that is as it was before the outage."""
    state = at.folder / f"{side}-{turn}"
    state.mkdir()
    values = {
        "source": at.server.uri,
        "target": target.uri,
        "s3": at.s3.endpoint_url,
        "bucket": bucket,
        "state": str(state),
        "lanes": LANES,
        "connections": 1 if side in {ONE, DIRECT_ONE} else LANES,
        "cycles": CYCLES,
    }
    before = (cpu_seconds(target.pid), cpu_seconds(at.s3.pid))
    took = await run_side(_SIDE, side.split(",", maxsplit=1)[0], json.dumps(values))
    after = (cpu_seconds(target.pid), cpu_seconds(at.s3.pid))
    return took | {"mongod_cpu": after[0] - before[0], "s3_cpu": after[1] - before[1]}


async def measure(workload: str, operations: int) -> None:
    """Capture the workload, then restore it in turns with the bulk writes."""
    async with bench() as at:
        start = await at.now()
        await fill(at.client, workload, operations)
        time_: Timestamp = (await at.client.admin.command("hello"))["operationTime"]
        start = Timestamp(time_.time, time_.inc + 1)
        events = await write(at.client, WORKLOADS[workload](operations))
        await at.run("capture", start, events)
        bucket = f"bench-{at.runs}"
        target = Mongod(at.folder / "target", options=ServerOptions(cache_gigabytes=2))
        await target.start()
        try:
            await turns(at, target, workload, operations, bucket, events)
        finally:
            await target.stop()


async def turns(at: Bench, target: Mongod, workload: str, operations: int, bucket: str, events: int) -> None:
    """Take turns and show the medians."""
    client: Client
    sides: dict[str, list[Took]] = {ONE: [], MANY: [], OURS: [], READING: []}
    async with AsyncMongoClient(target.uri) as client:
        for turn in range(ROUNDS):
            order = list(sides)[turn:] + list(sides)[:turn]  # nobody is always the one after another
            for side in order:
                await client.drop_database("bench")
                await fill(client, workload, operations)
                sides[side].append(await run(at, target, side, bucket, turn))
    medians = {side: sorted(found, key=lambda took: took["seconds"])[ROUNDS // 2] for side, found in sides.items()}
    written, ours = medians[ONE]["written"], medians[OURS]
    print(f"\n# {workload}: {events:,} operations in the log, {written:,.0f} documents to write")
    for side, took in medians.items():
        cpu = (took[name] * 1e6 / written for name in ("cpu_seconds", "mongod_cpu", "s3_cpu"))
        ratio = "" if side == OURS else f"; d5agent {took['seconds'] / ours['seconds']:4.2f} of it"
        print(
            f"{side:<22}{written / took['seconds']:>9,.0f} documents/s {events / took['seconds']:>11,.0f} operations/s"
            f"  CPU µs/document: own, mongod, S3 {', '.join(f'{each:.1f}' for each in cpu)};"
            f" peak {took['peak_mib']:.0f} MiB{ratio}",
            flush=True,
        )


async def drops(_: str, __: int) -> None:
    """Capture temporary collections that come and go, then restore them in turns with the target doing the same."""
    async with bench() as at:
        start = await at.now()
        await temporary(at.client, range(CYCLES))
        await at.client["bench"]["tail"].insert_many([{} for _ in range(10)])  # counted are the cycles only
        await at.run("capture", start, 2 * CYCLES)
        bucket = f"bench-{at.runs}"
        target = Mongod(at.folder / "target", options=ServerOptions(cache_gigabytes=2))
        await target.start()
        sides: dict[str, list[Took]] = {DIRECT_ONE: [], DIRECT_MANY: [], OURS: [], READING: []}
        try:
            async with AsyncMongoClient[dict[str, Any]](target.uri) as client:
                for turn in range(ROUNDS):
                    for side in list(sides)[turn:] + list(sides)[:turn]:
                        await client.drop_database("bench")
                        sides[side].append(await run(at, target, side, bucket, turn))
        finally:
            await target.stop()
    medians = {side: sorted(found, key=lambda took: took["seconds"])[ROUNDS // 2] for side, found in sides.items()}
    print(
        f"\n# drops: {CYCLES:,} temporary collections, {CYCLES // 3:,} renamed, the others dropped: {CYCLES:,} barriers"
    )
    for side, took in medians.items():
        ratio = "" if side == OURS else f"; d5agent {took['seconds'] / medians[OURS]['seconds']:4.2f} of it"
        cpu = (took[name] * 1e6 / CYCLES for name in ("cpu_seconds", "mongod_cpu", "s3_cpu"))
        print(
            f"{side:<34}{CYCLES / took['seconds']:>9,.0f} barriers/s"
            f"  CPU µs/barrier: own, mongod, S3 {', '.join(f'{each:,.0f}' for each in cpu)};"
            f" peak {took['peak_mib']:.0f} MiB{ratio}",
            flush=True,
        )


async def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="The replay beside raw bulk writes.")
    parser.add_argument("--operations", type=int, default=120_000)
    parts = dict.fromkeys(WORKLOADS, measure) | {"drops": drops}
    parser.add_argument("workloads", nargs="*", help=", ".join(parts))
    asked = parser.parse_args()
    print_machine()
    print(f"documents of {BYTES} bytes, {LANES} lanes, w: majority, j: true; medians of {ROUNDS} turns")
    for workload in asked.workloads or parts:
        await parts[workload](workload, asked.operations)


if __name__ == "__main__":
    asyncio.run(main())
