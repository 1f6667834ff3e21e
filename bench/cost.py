"""What capture costs at S3: PUTs for a million operations and an hour, at several rates, counted by the S3 server.

    python bench/cost.py [own_segments …]      without arguments: as the configuration has it

Prices are Amazon S3 Standard's in us-east-1 (aws.amazon.com/s3/pricing): 0.005 dollars a thousand PUTs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from capture import Bench, bench

from d5agent.core.log.segmenter import OWN_SEGMENTS

SECONDS = 20
DOLLARS_A_PUT = 0.005 / 1000
TICK_SECONDS = 0.1


async def write_at(at: Bench, rate: int, collections: int) -> int:
    """Insert at that rate, over collections in turn; return how many were inserted."""
    written, began = 0, time.perf_counter()
    per_tick = max(1, round(rate * TICK_SECONDS))
    tick = per_tick / rate
    while written < rate * SECONDS:
        of: dict[int, list[dict[str, object]]] = {}
        for number in range(written, written + per_tick):
            of.setdefault(number % collections, []).append({"_id": number, "filler": f"{number:x}" * 100})
        for number, documents in of.items():
            await at.client["bench"][f"c{number}"].insert_many(documents)
        written += per_tick
        await asyncio.sleep(max(0.0, began + tick * written / per_tick - time.perf_counter()))
    return written


async def measure(rate: int, collections: int, own_segments: int) -> None:
    """Capture while somebody writes at that rate, and count the requests."""
    async with bench() as at:
        start = await at.now()
        process, _ = await at.begin("capture", start, rate * SECONDS, own_segments=own_segments)
        before = at.s3.count_requests().get("PutObject", 0)
        written = await write_at(at, rate, collections)
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        took = json.loads(out)
        puts = at.s3.count_requests()["PutObject"] - before
    each, hourly = puts / written * 1_000_000, puts / took["seconds"] * 3600
    print(
        f"own_segments {own_segments:>2}: {rate:>6,}/s over {collections:>3} collections: {puts:>5,} PUTs for "
        f"{written:>7,} operations = {each:>9,.0f} a million, {each * DOLLARS_A_PUT:>5.3f} dollars; {hourly:>7,.0f} "
        f"an hour, {hourly * DOLLARS_A_PUT:.3f} dollars ({took['segments']:,.0f} segments, "
        f"{took['commits']:,.0f} commits)",
        flush=True,
    )


async def main() -> None:
    """Measure each rate, over one collection, a few and a hundred."""
    print(f"PUTs, {SECONDS} s at each rate; one object an operation would be 1,000,000 a million: 5.00 dollars")
    for own_segments in [int(word) for word in sys.argv[1:]] or [OWN_SEGMENTS]:
        for collections in (1, 7, 32, 100):
            for rate in (10, 100, 1000, 20_000):
                await measure(rate, collections, own_segments)


if __name__ == "__main__":
    asyncio.run(main())
