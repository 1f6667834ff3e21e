"""One run of the soak: writers at work, a daemon that dies again and again, then the books beside the log."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bson import decode
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from typing_extensions import override

from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.drill.child import pause
from d5agent.errors import AgentError, OperatorError
from d5agent.steps.log.reader import LogReader
from d5agent.steps.parallel import leaf_of
from tests.integration.agent_rig import AgentRig, Client, agent_rig
from tests.soak.ledger import Ledger, Line, Outcome, Seen, differences
from tests.soak.plan import Fault, Life, Moment, Plan, Trouble
from tests.soak.writers import DATABASE, HOT, OWN, Writer, line_of

if TYPE_CHECKING:
    from d5agent.core.log.chain import Commit, Link
    from d5agent.core.log.operation import Operation
    from d5agent.drill.agent import Agent
    from d5agent.drill.s3_server import S3Server
    from d5agent.drill.servers import Mongod

_WRITERS: Final = 4
_MARKER: Final = "marker"
_APP_NAME: Final = "soak-writer"
_PROBE_SECONDS: Final = 0.1
_UP_SECONDS: Final = 60.0  # after a lost disk: until the lease of the host that is gone has expired
_CATCH_UP_SECONDS: Final = 120.0
_QUIET_SECONDS: Final = 70.0  # an open transaction lives for a minute
_DIFFERENCES_SHOWN: Final = 5


@dataclass(slots=True, kw_only=True)
class Report:
    """How a run ended; no faults: nothing was lost or invented, and the chain is whole."""

    plan: Plan
    acknowledged: int = 0
    unknown: int = 0
    captured: int = 0
    commits: int = 0
    orphans: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @override
    def __str__(self) -> str:
        """One line; after a failure what is wrong, first things first, and how to have it again."""
        line = (
            f"seed {self.plan.seed}: {self.plan.kills} kills, "
            f"{self.acknowledged} acknowledged, {self.unknown} unknown, {self.captured} captured, "
            f"{self.commits} commits, {self.orphans} orphan segments, "
            f"peak {self.peak_bytes >> 20} MiB, {self.seconds:.0f} s: {'FAILED' if self.faults else 'whole'}"
        )
        if not self.faults:
            return line
        return "\n".join([line, *(f"    {fault}" for fault in self.faults), f"    again: {self.plan.command}"])


async def soak(source: Mongod, s3: S3Server, bucket: str, plan: Plan) -> Report:
    """Carry a plan out, in a bucket and a database of its own."""
    report = Report(plan=plan)
    ledger = Ledger()
    began = asyncio.get_running_loop().time()
    async with agent_rig(source, source, s3, bucket) as rig:
        try:
            await _torment(rig, ledger, plan)
            await _compare(rig, ledger, report)
        except (AgentError, PyMongoError, ExceptionGroup) as raised:
            error = leaf_of(raised)
            if not isinstance(error, AgentError):
                error.add_note(f"again: {plan.command}")
                raise error from None
            report.faults.append(f"{type(error).__name__}: {error} ({error.hint})")
        if report.faults:
            report.faults.append(f"the daemon's log: {_keep_log(rig, plan)}")
        report.peak_bytes = rig.agents[-1].peak_bytes if rig.agents else 0
    report.acknowledged = ledger.count(Outcome.ACKNOWLEDGED)
    report.unknown = ledger.count(Outcome.UNKNOWN)
    report.seconds = asyncio.get_running_loop().time() - began
    return report


async def _torment(rig: AgentRig, ledger: Ledger, plan: Plan) -> None:
    """Write, and let the daemon die, as the plan says; in the end let it catch up and drain."""
    rig.config["capture"] = {
        "max_segment_seconds": plan.max_segment_seconds,
        "max_segment_bytes": plan.max_segment_bytes,
        "compression": plan.compression,
    }
    async with Client(rig.source.uri) as direct:
        await direct.drop_database(DATABASE)
        agent = await rig.captured_agent()
        before_and_after = Writer(direct, ledger, random.Random(plan.seed), number=0)
        await before_and_after.make_hot_documents()
        async with AsyncMongoClient[dict[str, Any]](
            rig.source_uri, appName=_APP_NAME, serverSelectionTimeoutMS=5_000, socketTimeoutMS=10_000
        ) as client:
            await _live_all(rig, agent, plan, [_hire(client, ledger, plan, n + 1) for n in range(_WRITERS)])
        await _until_quiet(direct)
        begun = await _now(direct)
        await before_and_after.insert_last(_MARKER)
    await _come_up(agent)
    await _until_captured(rig, agent, begun)
    agent.note_memory()
    await agent.stop()


def _hire(client: Client, ledger: Ledger, plan: Plan, number: int) -> Writer:
    return Writer(client, ledger, random.Random(f"{plan.seed}/{number}"), number=number)


async def _live_all(rig: AgentRig, agent: Agent, plan: Plan, crew: list[Writer]) -> None:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for writer in crew:
            group.create_task(writer.work(stop))
        for life in plan.lives:
            await _live(rig, agent, life)
        stop.set()


async def _live(rig: AgentRig, agent: Agent, life: Life) -> None:
    """Start the daemon, and end it when its time has come, whatever it does then."""
    async with asyncio.TaskGroup() as group:
        if life.fault is not None:
            group.create_task(_cause(rig, life.fault))
        try:
            async with asyncio.timeout(life.seconds if life.moment is Moment.STARTING else None):
                await _come_up(agent)
        except TimeoutError:
            pass  # killed while it starts: as planned
        else:
            await pause(life.seconds if life.moment is Moment.ANSWERING else 0)
        agent._daemon.require_alive()
        await (agent.kill() if life.is_killed else agent.stop())
    if life.loses_disk:
        shutil.rmtree(rig.state)


async def _cause(rig: AgentRig, fault: Fault) -> None:
    await pause(fault.after_seconds)
    match fault.trouble:
        case Trouble.CUT:
            rig.gateway.cut_connections()
        case Trouble.FAIL_OVER:
            rig.gateway.fail_over(fault.seconds)
        case Trouble.BLACK_HOLE:
            rig.gateway.cluster.faults.darken(fault.seconds, rig.gateway.cut_connections)


async def _come_up(agent: Agent) -> None:
    """Start the daemon and wait until it answers; OperatorError: it has ended by itself."""
    deadline = asyncio.get_running_loop().time() + _UP_SECONDS
    while True:
        try:
            await agent.start()
        except OperatorError:
            agent._daemon.require_alive()
            if asyncio.get_running_loop().time() > deadline:
                raise
        else:
            return


async def _until_quiet(direct: Client) -> None:
    """Wait until nothing that a writer asked for is under way: what has no answer yet may still happen."""
    deadline = asyncio.get_running_loop().time() + _QUIET_SECONDS
    # The driver's monitors ask for hello and are answered later: that is no write.
    busy = {"appName": _APP_NAME, "active": True, "command.hello": {"$exists": False}}
    pipeline: list[dict[str, Any]] = [{"$currentOp": {}}, {"$match": busy}]
    while found := await (await direct.admin.aggregate(pipeline)).to_list():
        if asyncio.get_running_loop().time() > deadline:
            raise OperatorError("a writer's command does not end", hint="look at the server", command=found[0])
        await pause(_PROBE_SECONDS)


async def _until_captured(rig: AgentRig, agent: Agent, begun: ClusterTime) -> None:
    """Wait until the log holds the marker, which was written after everything else, and not before `begun`."""
    last: Link | None = None
    deadline = asyncio.get_running_loop().time() + _CATCH_UP_SECONDS
    async with rig.store() as store:
        reader = LogReader(store=store)
        while True:
            async with aclosing(reader.links(after=last)) as links:
                async for last in links:
                    if last.commit.position.cluster_time >= begun and await _holds_marker(reader, last.commit):
                        return
            row = (await agent.status())["services"]["replication"]
            if row["state"] == "failed" or asyncio.get_running_loop().time() > deadline:
                raise OperatorError("the last write was not captured", hint=row["hint"], **_facts(row, last))
            await pause(_PROBE_SECONDS)


async def _holds_marker(reader: LogReader, commit: Commit) -> bool:
    async with aclosing(reader.operations(commit)) as operations:
        return any([operation.namespace == Namespace(DATABASE, _MARKER) async for operation in operations])


async def _now(direct: Client) -> ClusterTime:
    time = (await direct.admin.command("hello"))["operationTime"]
    return ClusterTime(time.time, time.inc)


def _facts(row: dict[str, Any], last: Link | None) -> dict[str, object]:
    return {"state": row["state"], "error": row["error"], "commit": None if last is None else last.commit.sequence}


async def _compare(rig: AgentRig, ledger: Ledger, report: Report) -> None:
    """Read the log, chain, hashes and counts checked, beside the books; then check it as an operator would."""
    async with rig.store() as store:
        reader = LogReader(store=store)
        async with aclosing(reader.operations_of(reader.links())) as operations:
            log = [seen_in(o) async for _, o in operations if o is not None and not o.is_ours]
    report.captured = len(log)
    found = differences(ledger, log, await _database(rig))
    report.faults += [str(difference) for difference in found[:_DIFFERENCES_SHOWN]]
    if len(found) > _DIFFERENCES_SHOWN:
        report.faults.append(f"and {len(found) - _DIFFERENCES_SHOWN} more")
    checked = await rig.agents[-1].json("log", "verify")
    report.commits, report.orphans = checked["commits"], len(checked["orphans"])


def seen_in(operation: Operation) -> Seen:
    """Return what the check needs of an event. A looked-up document may be newer than its update: it is not read."""
    event = decode(operation.raw)
    fields = event["updateDescription"]["updatedFields"] if operation.kind == "update" else event.get("fullDocument")
    carried = fields or {}
    return Seen(
        line=line_of(operation.namespace.collection or "", event.get("documentKey", {}).get("_id", "")),
        kind=operation.kind,
        number=carried.get("n"),
        version=carried.get("v"),
    )


async def _database(rig: AgentRig) -> dict[Line, int]:
    """Return the number in each document that has a line of its own, as the database holds it."""
    async with Client(rig.source.uri) as direct:
        return {
            line_of(name, document["_id"]): document["n"]
            for name in (OWN, HOT, _MARKER)
            async for document in direct[DATABASE][name].find({}, {"n": 1})
        }


def _keep_log(rig: AgentRig, plan: Plan) -> Path:
    """Copy the daemon's log out of the run's folder, which is about to be removed."""
    path = Path(tempfile.gettempdir()) / f"d5-soak-{plan.seed}.log"
    if rig.agents:
        shutil.copyfile(rig.agents[-1].log, path)
    return path
