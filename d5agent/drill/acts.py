"""The acts of the drill, in the order of a real outage."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bson import decode
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.s3 import S3Store
from d5agent.core.log.naming import SEGMENTS
from d5agent.core.log.raw import id_document
from d5agent.core.run.read_status import read_status
from d5agent.drill import dataset
from d5agent.drill.child import pause
from d5agent.drill.stage import APPLICATION, BUCKET
from d5agent.drill.writer import ACCOUNTS, SHOP
from d5agent.errors import EXIT_OPERATOR, OperatorError
from d5agent.steps.log.reader import LogReader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.drill.agent import Agent
    from d5agent.drill.findings import Findings
    from d5agent.drill.ledger import Ledger
    from d5agent.drill.stage import Stage
    from d5agent.drill.workload import Workload

_PATIENCE_SECONDS: Final = 120.0
_MEBIBYTE: Final = 1024 * 1024
_MEMORY_BYTES: Final = 256 * _MEBIBYTE
_PROBE_SECONDS: Final = 0.01
_NOT_APPLICATIONS: Final = frozenset({"admin", "local", "config", "d5agent"})
_UNAUTHORIZED: Final = 13
_EVENTS: Final = ("insert", "update", "replace", "delete", "drop", "rename", "dropDatabase")
_ACCOUNTS_MOVED: Final = 2
STRAY: Final = "stray"
Client = AsyncMongoClient[dict[str, Any]]


class Moved(NamedTuple):
    """What the application did on MongoDB after the certificate: the `_id`s of two accounts."""

    changed: Any
    deleted: Any

    async def is_kept(self, target: Client) -> bool:
        """Whether it is still so."""
        changed = await target[SHOP][ACCOUNTS].find_one({"_id": self.changed})
        has_deleted = await target[SHOP][ACCOUNTS].count_documents({"_id": self.deleted}) == 0
        return changed is not None and changed.get("moved") is True and has_deleted


async def copy_forward(stage: Stage, findings: Findings) -> None:
    """Both databases hold the same, as when DMS has copied everything; the primary has its unique index."""
    async with Client(stage.source.uri) as source, Client(stage.target.uri) as target:
        async with asyncio.TaskGroup() as group:
            loaded = group.create_task(dataset.load(source))
            group.create_task(dataset.load(target))
        for client in (source, target):
            await client[SHOP][ACCOUNTS].create_index("email", unique=True)
    findings.figures["documents copied beforehand"] = loaded.result()


async def begin_capture(agent: Agent) -> None:
    """Start replication, which switches the stream on, wait until it is ready; the preflight finds no fault then."""
    await agent.start()
    await agent.call("start", "replication")
    await agent.until(lambda status: bool(status["ready_at"]), what="replication is ready", seconds=_PATIENCE_SECONDS)
    await agent.call("check")


async def outage(agent: Agent, workload: Workload, operations: int) -> None:
    """Let the microservices work on DocumentDB; kill the daemon in the midst of it, and start it again."""
    async with asyncio.TaskGroup() as group:
        work = group.create_task(workload.run(operations=operations))
        while workload.ledger.total < operations * 2 // 5:
            await pause(_PROBE_SECONDS)
        capture = read_status(await agent.status()).progress.capture
        if work.done() or capture is None or not capture.operations:
            raise OperatorError("the daemon cannot be killed while it captures", hint="give more --operations")
        await agent.kill()
        await agent.start()


async def make_read_only(stage: Stage) -> None:
    """Take the application its right to write, proved by a write that must fail (Lambda restore-replication)."""
    async with Client(stage.source.uri) as source:
        await source.admin.command({"updateUser": APPLICATION, "roles": [{"role": "readAnyDatabase", "db": "admin"}]})
    async with Client(stage.application_uri) as application:
        try:
            await application["shop"]["probe"].insert_one({"_id": "a write after the end"})
        except OperationFailure as error:
            if error.code == _UNAUTHORIZED:
                return
            raise
    raise OperatorError("the application can still write", hint="this is a bug of the drill")


async def restore(agent: Agent, stage: Stage) -> None:
    """Backup, fence, replay, verify; the daemon is killed between two windows, and started again."""
    await agent.call("start", "restore")
    await _kill_between_windows(agent, stage)
    await agent.until(
        lambda status: status["services"]["restore"]["state"] == "done",
        what="restore is verified",
        seconds=_PATIENCE_SECONDS,
    )


async def follow(agent: Agent, stage: Stage, workload: Workload, operations: int) -> None:
    """Restore live, killed once, while the microservices work on; return when it has caught up with them."""
    await agent.call("start", "restore")
    async with asyncio.TaskGroup() as group:
        group.create_task(workload.run(operations=operations))
        await _kill_between_windows(agent, stage)
    await agent.until(
        lambda status: read_status(status).progress.restore.can_cutover is True,
        what="restore has caught up",
        seconds=_PATIENCE_SECONDS,
    )


async def cut_over(agent: Agent) -> None:
    """Fence, last operations, verified."""
    await agent.call("cutover", "--follow", "--yes")


async def _kill_between_windows(agent: Agent, stage: Stage) -> None:
    checkpoint = stage.folder / "state" / "restore_checkpoint.json"  # there since the first window
    while not checkpoint.exists():
        await pause(_PROBE_SECONDS)
        _raise_failure(await agent.status(), agent)
    await agent.kill()
    await agent.start()


def _raise_failure(status: dict[str, Any], agent: Agent) -> None:
    for name, row in status["services"].items():
        if row["state"] == "failed":
            raise OperatorError(f"{name} failed: {row['error']}", hint=row["hint"], log=agent.log)


async def compare(stage: Stage, agent: Agent, ledger: Ledger, findings: Findings) -> None:
    """Hold the log against the microservices' own books, and the two servers against each other."""
    log = await agent.json("log", "verify")
    captured = await _captured(stage)
    promised = Counter({kind: ledger.writes[kind] for kind in _EVENTS if ledger.writes[kind]})
    findings.figures |= {
        "operations acknowledged to the microservices": promised.total(),
        "operations captured": captured.total(),
        "segments": log["segments"],
        "commits": log["commits"],
        "bytes stored": log["bytes"],
        "orphan segments of the crash": len(log["orphans"]),
        "PUTs to S3": stage.s3.count_requests().get("PutObject", 0),
    }
    findings.check(
        "every acknowledged operation is in the log, and no other", holds=captured == promised and not ledger.unknown
    )
    if captured != promised:
        findings.differences.append(f"acknowledged {dict(promised)}, captured {dict(captured)}")
    report = await agent.json("verify", "--full")
    findings.figures |= {"documents compared": report["compared"], "differences": report["different"]}
    findings.check("verify --full finds no difference", holds=report["equal"])
    findings.differences += [str(difference) for difference in report["differences"][:10]]
    await _compare_hashes(stage, findings)


@asynccontextmanager
async def _store(stage: Stage) -> AsyncGenerator[S3Store]:
    async with stage.s3.client() as client:
        yield S3Store(client, bucket=BUCKET, prefix="", clock=SystemClock())


async def _captured(stage: Stage) -> Counter[str]:
    found: Counter[str] = Counter()
    async with _store(stage) as store:
        reader = LogReader(store=store)
        async for _, operation in reader.operations_of(reader.links()):
            if operation is not None and not operation.is_ours:
                found[operation.kind] += 1
    return found


async def _compare_hashes(stage: Stage, findings: Findings) -> None:
    async with Client(stage.source.uri) as source, Client(stage.target.uri) as target:
        names = {*await source.list_database_names(), *await target.list_database_names()} - _NOT_APPLICATIONS
        for name in sorted(names):
            hashes = [(await client[name].command("dbHash"))["md5"] for client in (source, target)]
            findings.hashes.append((name, hashes[0], hashes[1]))
    equal = bool(findings.hashes) and all(source == target for _, source, target in findings.hashes)
    findings.check("dbHash is the same on both servers, for each database", holds=equal)


async def move_over(stage: Stage, agent: Agent, findings: Findings) -> Moved:
    """Let the application work on MongoDB, and a forgotten job write to DocumentDB: that is reported and waits."""
    async with Client(stage.target.uri) as target, Client(stage.admin_uri) as source:
        moved = Moved(*await _touched_accounts(stage, target))
        await target[SHOP][ACCOUNTS].update_one({"_id": moved.changed}, {"$set": {"moved": True}})
        await target[SHOP][ACCOUNTS].delete_one({"_id": moved.deleted})
        captured = (await _captured(stage)).total()
        await source[SHOP][STRAY].insert_one({"_id": STRAY})
        while (await _captured(stage)).total() == captured:
            await pause(_PROBE_SECONDS)
            _raise_failure(await agent.status(), agent)
        ended = await agent.run("start", "monitor-restore", "--follow")
        has_waited = ended.code == EXIT_OPERATOR and not await target[SHOP][STRAY].count_documents({})
        holds = has_waited and await moved.is_kept(target)
    findings.check("after the certificate nothing is written to MongoDB without a word", holds=holds)
    return moved


async def _touched_accounts(stage: Stage, target: Client) -> list[Any]:
    """Return the `_id`s of two accounts that the outage touched and MongoDB has."""
    found: list[Any] = []
    async with _store(stage) as store:
        reader = LogReader(store=store)
        async for _, operation in reader.operations_of(reader.links()):
            if operation is None or operation.namespace != (SHOP, ACCOUNTS) or operation.document_id is None:
                continue
            id_ = decode(id_document(operation.document_id))["_id"]
            if id_ not in found and await target[SHOP][ACCOUNTS].count_documents({"_id": id_}):
                found.append(id_)
            if len(found) == _ACCOUNTS_MOVED:
                return found
    raise OperatorError("the outage touched too few accounts", hint="give more --operations")


async def clean(stage: Stage, agent: Agent, moved: Moved, findings: Findings) -> None:
    """Accept the stray write; let log, token and stream go, and the instance be powered off; dumps and reports stay."""
    run_id = (await agent.status())["run_id"]
    await agent.call("start", "monitor-restore", "--accept-late", run_id)
    await agent.until(lambda status: status["phase"] == "idle", what="clean is done", seconds=_PATIENCE_SECONDS)
    while not stage.power_record.exists():
        await pause(_PROBE_SECONDS)
        _raise_failure(await agent.status(), agent)
    findings.check("the power-off was requested, once", holds=True)
    async with Client(stage.target.uri) as target:
        has_both = await moved.is_kept(target) and await target[SHOP][STRAY].count_documents({}) == 1
    findings.check("MongoDB has the application's later writes and the accepted stray write", holds=has_both)
    agent.note_memory()
    findings.figures["the agent's peak memory"] = f"{agent.peak_bytes / _MEBIBYTE:.0f} MiB"
    findings.check("the agent stayed within 256 MiB", holds=agent.peak_bytes <= _MEMORY_BYTES)
    async with _store(stage) as store:
        left = [found.key async for page in store.list_objects(SEGMENTS) for found in page]
        dumps = [found.key async for page in store.list_objects("dump/") for found in page]
    findings.check("nothing is left under replication/", holds=not left)
    findings.check("the dumps of both sides are kept", holds=sum(key.endswith("manifest.json") for key in dumps) == 2)
    async with Client(stage.admin_uri) as admin:
        streams = [found async for found in await admin.admin.aggregate([{"$listChangeStreams": 1}])]
    findings.check("the change stream is closed", holds=not streams)
    findings.figures["dump archives kept"] = sum(key.endswith(".archive.gz") for key in dumps)
