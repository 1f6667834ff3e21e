"""Count change events with PyMongo's `watch()`, the loop anybody would write first: URI, start, how many."""

import asyncio
import sys
import time

from bson import Timestamp
from pymongo import AsyncMongoClient


async def main(uri: str, seconds: int, increment: int, events: int) -> None:
    """Read that many, and say how long it took."""
    async with AsyncMongoClient[dict[str, object]](uri) as client:
        began, seen = time.time(), 0
        start = Timestamp(seconds, increment)
        async with await client.watch(full_document="updateLookup", start_at_operation_time=start) as stream:
            while seen < events and (await stream.next())["fullDocument"]:
                seen += 1
        print(f"began {began}\nended {time.time()}\nseen {seen}", flush=True)


asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
