"""The peers of the capture benchmark: others' ways to get a change stream, on the same events and the same S3 server.

Each reads events that lie in the oplog already, from the same instant, `updateLookup` on, in a process of its own.
What a peer says about itself is not believed: its objects are read back and decoded. How each is set up, what it can
watch, and what was tried to make it fast stands in the templates in the folder of this file's name. Client, mongod and
S3 server share this machine's cores: the figures hold against those of the same run only.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import bson
import pymongo
from pymongo import AsyncMongoClient

from d5agent.drill.child import Child, wait_until
from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod
from d5agent.drill.tools import inherited_environment, tools_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bson import Timestamp

_HERE = Path(__file__).with_suffix("")
_ROUNDS = 3
_PATIENCE_SECONDS = 300
# How a peer's log and the S3 server's tell what happened when.
_TOLD = re.compile(r"^(began|ended|seen) ([\d.]+)$", re.MULTILINE)
_PUT = re.compile(r"^(\S+)\s.*AWS s3\.(?:PutObject|CompleteMultipartUpload) => 200", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult:
    """What a peer stored of the events, and what it took."""

    name: str
    version: str
    events_stored: int
    """Decoded from its objects; of a loop that stores nothing, those it counted."""
    seconds: float
    """From where it begins to read until its last object is stored."""
    cpu_seconds: float
    """User and system, of its whole process."""
    note: str


async def run_watch(
    mongo_uri: str, s3: S3Server, bucket: str, *, events: int, start: Timestamp, folder: Path
) -> PeerResult:
    """PyMongo's `watch()` over the cluster: it counts, and stores nothing."""
    del s3, bucket
    argv = [sys.executable, str(_HERE / "watch_loop.py"), mongo_uri, str(start.time), str(start.inc), str(events)]
    cpu_seconds = await _run(argv, folder=folder)
    told = _told(folder)
    return PeerResult(
        name="PyMongo watch()",
        version=pymongo.version,
        events_stored=int(told["seen"]),
        seconds=told["ended"] - told["began"],
        cpu_seconds=cpu_seconds,
        note="whole cluster, decoded, counted only: nothing is stored",
    )


async def run_rivet(
    mongo_uri: str, s3: S3Server, bucket: str, *, events: int, start: Timestamp, folder: Path
) -> PeerResult:
    """rivet-cli into that bucket, which is empty; its time begins with its process."""
    python = _environment("rivet-cli")
    token = await _token_at(mongo_uri, start)
    # Its checkpoint is the token twice: to be compared, and as BSON in hexadecimal.
    (folder / "checkpoint").write_text(json.dumps({"_data": token["_data"], "rt": bson.encode(token).hex()}))
    config = _configure(
        "rivet.yaml",
        folder,
        uri=mongo_uri.replace("/?", "/bench?"),
        checkpoint=str(folder / "checkpoint"),
        events=str(events),
        bucket=bucket,
        endpoint=s3.endpoint_url,
        region=s3.region,
    )
    lag = await _log_clock(s3, bucket)
    began = time.time()
    cpu_seconds = await _run(
        [str(python.with_name("rivet")), "run", "--config", str(config)], folder=folder, environment=_surroundings(s3)
    )
    return PeerResult(
        name="rivet-cli",
        version="0.32.2",
        events_stored=await _count_stored(s3, bucket, events, folder),
        seconds=_last_put(s3) - lag - began,
        cpu_seconds=cpu_seconds,
        note="one database; Parquet, zstd, 5,000 rows a part; no clusterTime, no update description",
    )


async def run_mq_bridge(
    mongo_uri: str, s3: S3Server, bucket: str, *, events: int, start: Timestamp, folder: Path
) -> PeerResult:
    """mq-bridge into that bucket, which is empty; its time begins when it is loaded."""
    python = _environment("mq-bridge")
    token = await _token_at(mongo_uri, start)
    cursor = {
        "mqb_checkpoint": 1,
        "source": "mongodb_change_stream:bench.events",
        "value": json.dumps(token),
        "updated_at_ms": 0,
    }
    (folder / "cursors.json").write_text(json.dumps({"events:bench": json.dumps(cursor)}))
    config = _configure("mq-bridge.yaml", folder, uri=mongo_uri, cursors=str(folder / "cursors.json"), bucket=bucket)
    lag = await _log_clock(s3, bucket)
    cpu_seconds = await _run(
        [str(python), str(_HERE / "mq_bridge_route.py"), str(config)], folder=folder, environment=_surroundings(s3)
    )
    return PeerResult(
        name="mq-bridge",
        version="1.2.0",
        events_stored=await _count_stored(s3, bucket, events, folder),
        seconds=_last_put(s3) - lag - _told(folder)["began"],
        cpu_seconds=cpu_seconds,
        note="one collection; JSON lines, batches of 5,000; no position, no clusterTime, no update description",
    )


PEERS: tuple[Callable[..., Awaitable[PeerResult]], ...] = (run_watch, run_rivet, run_mq_bridge)


def _environment(name: str) -> Path:
    """Return the Python of that peer's own environment, which is made, from its lock, when it is not there."""
    lock, folder = _HERE / f"{name}.lock", tools_folder() / "peers" / name
    python, stamp = folder / "bin" / "python", folder / "made-from.lock"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        uv = str(tools_folder() / "uv" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        install = ["install", "--quiet", "--require-hashes", "--python", str(python), "-r", str(lock)]
        subprocess.run([uv, "pip", *install], check=True)
        stamp.write_bytes(lock.read_bytes())
    return python


def _configure(template: str, folder: Path, **values: str) -> Path:
    """Write the peer's configuration."""
    config = folder / template
    config.write_text(Template((_HERE / template).read_text()).substitute(values))
    return config


def _surroundings(s3: S3Server) -> dict[str, str]:
    return inherited_environment(
        AWS_ACCESS_KEY_ID=s3.access_key,
        AWS_SECRET_ACCESS_KEY=s3.secret_key,
        AWS_REGION=s3.region,
        AWS_ENDPOINT_URL=s3.endpoint_url,
        AWS_ALLOW_HTTP="true",
        AWS_VIRTUAL_HOSTED_STYLE_REQUEST="false",
        # mq-bridge ends after so long without an event. A busy machine has kept it waiting for its default, a second.
        MQ_BRIDGE_DRAIN_IDLE_TIMEOUT_MS="10000",
    )


async def _run(argv: list[str], *, folder: Path, environment: dict[str, str] | None = None) -> float:
    """Run the peer until it ends; return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = Child(argv, log=folder / "peer.log", environment=environment)

    async def has_ended() -> bool:
        return child.pid is None

    try:
        child.start()
        await wait_until(has_ended, seconds=_PATIENCE_SECONDS, what=f"{argv[0]} is through", log=child.log)
    finally:
        child.kill_now()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _told(folder: Path) -> dict[str, float]:
    """Return what the child said on its output."""
    return {word: float(number) for word, number in _TOLD.findall((folder / "peer.log").read_text())}


async def _token_at(mongo_uri: str, start: Timestamp) -> dict[str, str]:
    """Return a resume token for that instant: neither peer takes a time."""
    stage = {"allChangesForCluster": True, "startAtOperationTime": start}
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        command = {"aggregate": 1, "pipeline": [{"$changeStream": stage}], "cursor": {"batchSize": 0}}
        reply = await client.admin.command(command)
        await client.admin.command({"killCursors": "$cmd.aggregate", "cursors": [reply["cursor"]["id"]]})
    token: dict[str, str] = reply["cursor"]["postBatchResumeToken"]
    return token


async def _log_clock(s3: S3Server, bucket: str) -> float:
    """Return by how much the S3 server's log is ahead of our clock: its times name no zone."""
    async with s3.client() as client:
        await client.put_object(Bucket=bucket, Key="marker", Body=b"")
        return _last_put(s3) - time.time()


def _last_put(s3: S3Server) -> float:
    """Return when the last object was stored, by the S3 server's log: to ask the server would cost it CPU."""
    *_, last = _PUT.finditer(s3.log.read_text("utf-8", "replace"))
    return datetime.fromisoformat(last[1]).replace(tzinfo=UTC).timestamp()


async def _count_stored(s3: S3Server, bucket: str, events: int, folder: Path) -> int:
    """Read the bucket back and decode it: every event must be there, once, with its document."""
    objects = folder / "objects"
    objects.mkdir()
    async with s3.client() as client:
        async for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for number, item in enumerate(page["Contents"]):
                answer = await client.get_object(Bucket=bucket, Key=item["Key"])
                (objects / f"{number:06}-{Path(item['Key']).name}").write_bytes(await answer["Body"].read())
    counts = _decode(objects)
    wanted = {"insert": events // 2, "update": events // 2, "without a document": 0}
    assert counts == wanted, f"{counts}, not {wanted}: read {folder / 'peer.log'}"
    return counts["insert"] + counts["update"]


def _decode(objects: Path) -> dict[str, int]:
    argv = [str(_environment("reader")), str(_HERE / "count_events.py"), str(objects)]
    counts: dict[str, int] = json.loads(subprocess.check_output(argv))
    return counts


async def main(events: int) -> None:
    """Let the peers take turns, and print the best of each."""
    # Not at the top: capture.py imports this module.
    from capture import DOCUMENT_BYTES, write  # noqa: PLC0415

    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    print(f"versions: Python {platform.python_version()}, mongod 6.0.5, LocalStack S3 4.7.0; best of {_ROUNDS}")
    print(f"data: {events:,} events, half inserts, half updates, {DOCUMENT_BYTES} bytes a document, updateLookup on")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d5-peers-")))
        server, s3 = Mongod(folder / "source"), S3Server(folder)
        stack.push_async_callback(server.stop)
        stack.push_async_callback(s3.stop)
        await server.start()
        await s3.start()
        client = await stack.enter_async_context(AsyncMongoClient[dict[str, object]](server.uri))
        await client["bench"]["events"].insert_one({"_id": "first"})
        first: Timestamp = (await client.admin.command("hello"))["operationTime"]
        await write(client, events)
        results: list[list[PeerResult]] = []
        for number in range(_ROUNDS):
            results.append([])
            for run in PEERS:
                own, bucket = folder / f"{run.__name__}-{number}", f"{run.__name__}-{number}".replace("_", "-")
                own.mkdir()
                await s3.create_bucket(bucket)
                after = bson.Timestamp(first.time, first.inc + 1)
                results[-1].append(await run(server.uri, s3, bucket, events=events, start=after, folder=own))
    for turns in zip(*results, strict=True):
        best = min(turns, key=lambda result: result.seconds)
        rate = best.events_stored / best.seconds
        print(f"{best.name:<16}{best.version:<8}{rate:>8,.0f} events/s{best.cpu_seconds:>7.2f} s CPU  {best.note}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000))
