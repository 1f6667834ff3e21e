"""How fast a backup is: beside `mongodump --archive --gzip > /dev/null` of the same database, in turns in one run.

Ours goes through the service as it is shipped, into an S3 server on this machine; the other side stores nothing. All
share this machine's cores with mongod and the S3 server, whose CPU seconds stand beside the figures.

    python bench/backup.py [--mebibytes N] [--rounds N]       without arguments: 2 GiB, 3 turns
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture import Bench, bench, cpu_seconds, median, run_side

from d5agent.adapters.process import run
from d5agent.drill.servers import Mongod
from d5agent.drill.tools import find_tool

if TYPE_CHECKING:
    from collections.abc import Awaitable

DATABASE = "bench"
LEAST_RATIO, MOST_RSS_MIB = 0.8, 256
_MEBIBYTE = 1024 * 1024
_DOCUMENTS_A_MEBIBYTE = 1356
_SIDE = Path(__file__).with_name("side") / "backup.py"
Took = dict[str, float]


async def fill(at: Bench, mebibytes: int) -> None:
    """Insert so much, as orders look: names and numbers that repeat, and ids that do not; about 3:1 for gzip."""
    words = ["shipped", "pending", "returned", "calle de Alcalá 42", "Äpfel", "0123456789", "customer", "warehouse-7"]
    for number in range(mebibytes):
        documents = [
            {
                "_id": f"{number}-{each}-{os.urandom(8).hex()}",
                "lines": [
                    {"sku": os.urandom(6).hex(), "text": words[(number + line) % 8], "n": line} for line in range(8)
                ],
                "note": " ".join(words[(each + step) % 8] for step in range(24)),
            }
            for each in range(_DOCUMENTS_A_MEBIBYTE)
        ]
        await at.client[DATABASE][f"orders{number % 4}"].insert_many(documents)


async def bare(at: Bench) -> Took:
    """Dump to nowhere."""
    argv = [str(find_tool("mongodump")), "--quiet", f"--uri={at.server.uri}", f"--db={DATABASE}", "--archive", "--gzip"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.DEVNULL)
    assert await process.wait() == 0
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "agent_cpu": 0, "mongodump_cpu": cpu, "peak_mib": 0}


async def ours(at: Bench, empty: Mongod) -> Took:
    """Run the service."""
    at.runs += 1
    bucket, state = f"bench-{at.runs}", at.folder / f"state-{at.runs}"
    state.mkdir()
    await at.s3.create_bucket(bucket)
    values = {
        "uri": at.server.uri,
        "source": empty.uri,
        "s3": at.s3.endpoint_url,
        "bucket": bucket,
        "state": str(state),
    }
    took = await run_side(_SIDE, json.dumps(values | {"mongodump": str(find_tool("mongodump"))}))
    async with at.s3.client() as s3:  # the next turn needs its place
        for found in (await s3.list_objects_v2(Bucket=bucket))["Contents"]:
            await s3.delete_object(Bucket=bucket, Key=found["Key"])
    return took


async def turn(at: Bench, side: Awaitable[Took]) -> Took:
    """Let a side dump once; the servers' CPU seconds are in what it took."""
    before = cpu_seconds(at.server.pid), cpu_seconds(at.s3.pid)
    took = await side
    after = cpu_seconds(at.server.pid), cpu_seconds(at.s3.pid)
    return took | {"mongod_cpu": after[0] - before[0], "s3_cpu": after[1] - before[1]}


def show(what: str, mebibytes: float, took: Took) -> None:
    """Print a line of figures."""
    print(
        f"{what:<36}{took['seconds']:>7.1f} s {mebibytes / took['seconds']:>7.1f} MiB/s   CPU s: agent"
        f" {took['agent_cpu']:5.1f}, mongodump {took['mongodump_cpu']:5.1f}, mongod {took['mongod_cpu']:5.1f},"
        f" S3 {took['s3_cpu']:5.1f}" + (f"   agent's peak {took['peak_mib']:.0f} MiB" if took["peak_mib"] else ""),
        flush=True,
    )


async def main(mebibytes: int, rounds: int) -> None:
    """Measure both sides in turns, and say whether ours is good enough."""
    version = (await run([str(find_tool("mongodump")), "--version"])).splitlines()[0]
    async with bench() as at:
        server: dict[str, Any] = await at.client.admin.command("buildInfo")
        print(
            f"# {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, MongoDB"
            f" {server['version']}, {version}, LocalStack S3; medians of {rounds} turns"
        )
        await fill(at, mebibytes)
        size = (await at.client[DATABASE].command("dbStats"))["dataSize"] / _MEBIBYTE
        print(f"# {size:,.0f} MiB of documents in 4 collections")
        empty = Mongod(at.folder / "empty")
        await empty.start()
        sides: dict[str, list[Took]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            sides["bare"].append(await turn(at, bare(at)))
            sides["ours"].append(await turn(at, ours(at, empty)))
        await empty.stop()
    best, mine = median(sides["bare"]), median(sides["ours"])
    show("mongodump --gzip > /dev/null", size, best)
    show("backup, into S3", size, mine)
    ratio, peak = best["seconds"] / mine["seconds"], max(took["peak_mib"] for took in sides["ours"])
    print(f"ratio {ratio:.2f} (at least {LEAST_RATIO}), peak {peak:.0f} MiB (at most {MOST_RSS_MIB})")
    sys.exit(0 if ratio >= LEAST_RATIO and peak <= MOST_RSS_MIB else 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mebibytes", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.mebibytes, arguments.rounds))
