"""Where capture cannot go on, it stands still and says why: what is stored stays, and nothing begins "from now"."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from d5agent.drill.child import Child
from d5agent.drill.gateway import Gateway
from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from tests.integration.agent_rig import ENABLE, Client, said
from tests.integration.capture_ledger import Ledger, assert_captured, assert_whole, captured, until, writers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
OPERATOR = 78
LOST = "the position is older than the server's log of changes: operations are lost to the stream"
LOST_HINT = "d5agent never resumes from the current time on its own; see docs/runbook, 'the position is lost'"
FOREIGN = "the resume token is not of this cluster, or damaged"
FOREIGN_HINT = "does [source] name the cluster that this bucket's log was captured from?"
NOT_ENABLED = "change streams are not enabled for the whole cluster"
DISABLE = {**ENABLE, "enable": False}


@asynccontextmanager
async def running(server: Mongod) -> AsyncGenerator[Mongod]:
    """Run a server of the test's own."""
    try:
        await server.start()
        yield server
    finally:
        await server.kill()


async def stored(rig: AgentRig) -> dict[str, bytes | None]:
    """Return the stored log, byte for byte, and the local copy of its position."""
    async with rig.store() as store:
        log = {key: await store.get(key) for key in await rig.keys() if key.startswith("replication/")}
    return {**log, "token": (rig.state / "data_resume_token.json").read_bytes()}


async def has_failed(agent: Agent, *words: str) -> None:
    """Wait until replication has failed, with these words in its error and its hint."""
    row: dict[str, Any] = {}

    async def fails() -> bool:
        row.update((await agent.status())["services"]["replication"])
        return bool(row["state"] == "failed")

    await until(fails, what=f"replication fails: see {agent.log}")
    for word in words:
        assert word in f"{row['error']} {row['hint']}", row


async def stands_still(rig: AgentRig, agent: Agent, before: dict[str, bytes | None], *words: str) -> None:
    """See that replication, which has failed, fails again when it is started; that nothing stored has changed."""
    ended = await agent.run("start", "replication", "--follow")
    assert ended.code == OPERATOR, said(ended)
    for word in words:
        assert word in said(ended), said(ended)
    assert await stored(rig) == before
    await assert_whole(agent)


async def captured_log(rig: AgentRig, agent: Agent, uri: str) -> Ledger:
    """Let the log hold some writes, and return their ledger."""
    ledger = Ledger()
    async with writers(uri, ledger):
        await ledger.grown(200)
    await captured(rig, agent, ledger, uri=uri)
    return ledger


async def command(rig: AgentRig, document: dict[str, Any]) -> None:
    """Send a command to the gateway."""
    async with Client(f"mongodb://{rig.gateway.address}/?directConnection=true&retryWrites=false") as client:
        await client.admin.command(document)


async def insert(uri: str, ledger: Ledger) -> None:
    """Write what nobody captures."""
    async with Client(uri) as client:
        await client[ledger.database]["missed"].insert_one({"filler": "x"})


async def require_ledger(rig: AgentRig, ledger: Ledger) -> None:
    """See that the log holds all that it did, and not a write that came later."""
    assert_captured([o for o in await rig.operations() if o.namespace.database == ledger.database], ledger)


async def test_a_position_that_the_cluster_has_deleted(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = await captured_log(rig, agent, rig.source_uri)
    await agent.stop()
    before = await stored(rig)
    await insert(rig.source_uri, ledger)
    await command(rig, {"d5Gateway": 1, "action": "expireLog"})
    await agent.start()
    await has_failed(agent, LOST, LOST_HINT)
    await stands_still(rig, agent, before, LOST, LOST_HINT)
    await require_ledger(rig, ledger)


async def test_a_position_that_the_cluster_deletes_while_the_stream_is_cut(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = await captured_log(rig, agent, rig.source_uri)
    rig.gateway.cluster.faults.darken(2, rig.gateway.cut_connections)
    log = rig.gateway.cluster.log
    log.expire(int.from_bytes(rig.gateway.cluster.replies.operation_time, "little") + (1 << 32))
    await has_failed(agent, LOST, LOST_HINT)
    await stands_still(rig, agent, await stored(rig), LOST, LOST_HINT)
    await require_ledger(rig, ledger)


async def test_a_position_that_has_left_the_oplog_of_mongodb(rig: AgentRig, tmp_path: Path) -> None:
    async with running(short_lived_oplog(tmp_path / "short")) as server:
        rig.config["source"] = {"uri": server.uri, "flavor": "mongodb"}
        agent = await rig.captured_agent()
        ledger = await captured_log(rig, agent, server.uri)
        await agent.stop()
        before = await stored(rig)
        await roll_oplog(server)
        await agent.start()
        await has_failed(agent, LOST, "code=286", LOST_HINT)
        await stands_still(rig, agent, before, LOST, "code=286", LOST_HINT)
        await require_ledger(rig, ledger)


def short_lived_oplog(folder: Path) -> Mongod:
    """Return a server with an oplog of 1 MB. It is cut at each checkpoint: every second, not every minute."""
    server = Mongod(folder, options=ServerOptions(oplog_megabytes=1))
    member = server.members[0]
    (member.folder / "data").mkdir(parents=True)
    (folder / "key").touch(mode=0o600)
    member._child = Child([*member._argv(), "--syncdelay", "1"], log=member.log)
    member._child.start()
    return server


async def roll_oplog(server: Mongod) -> None:
    """Write until what stands in the oplog now has left it."""
    async with Client(server.uri) as client:
        oplog = client["local"]["oplog.rs"]
        newest = await oplog.find_one(sort=[("$natural", -1)])
        assert newest is not None

        async def has_rolled() -> bool:
            await client["filler"]["filler"].insert_many([{"x": "y" * 100_000} for _ in range(20)])
            oldest = await oplog.find_one(sort=[("$natural", 1)])
            return oldest is not None and bool(oldest["ts"] > newest["ts"])

        await until(has_rolled, what="the oplog has rolled")


async def test_a_token_of_another_cluster(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = await captured_log(rig, agent, rig.source_uri)
    await agent.stop()
    before = await stored(rig)
    other = Gateway(f"127.0.0.1:{rig.source.port}", state_path=rig.folder / "another.json")
    await other.start()
    try:
        rig.config["source"]["uri"] = f"mongodb://{other.address}/?replicaSet=rs0"
        rig.agent()
        async with Client(f"mongodb://{other.address}/?replicaSet=rs0&retryWrites=false") as client:
            await client.admin.command(ENABLE)
        await agent.start()
        await has_failed(agent, FOREIGN, "code=9", FOREIGN_HINT)
        await stands_still(rig, agent, before, FOREIGN, FOREIGN_HINT)
        await require_ledger(rig, ledger)
    finally:
        await agent.kill()
        await other.stop()


async def test_change_streams_switched_off_and_on_while_it_is_down(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = await captured_log(rig, agent, rig.source_uri)
    await agent.stop()
    before = await stored(rig)
    await command(rig, DISABLE)
    await insert(rig.source_uri, ledger)
    await agent.start()
    await has_failed(agent, NOT_ENABLED, "modifyChangeStreams", "'the position is lost'")
    await stands_still(rig, agent, before, NOT_ENABLED)
    await command(rig, ENABLE)  # the hint, followed: it brings back no history
    await stands_still(rig, agent, before, LOST, LOST_HINT)
    await require_ledger(rig, ledger)


async def test_a_password_changed_under_way(rig: AgentRig, tmp_path: Path) -> None:
    options = ServerOptions(credentials=Credentials(username="agent", password="first-hush"))
    async with running(Mongod(tmp_path / "locked", options=options)) as server:
        rig.gateway.cluster.move_to(server.members[0].address)
        address = f"{rig.gateway.address}/?replicaSet=rs0&authSource=admin&retryWrites=false"
        uri = f"mongodb://agent:first-hush@{address}"
        rig.config["source"]["uri"] = uri
        async with Client(uri) as client:
            await client.admin.command(ENABLE)
            agent = rig.agent()
            await agent.start()
            await agent.call("start", "replication")
            await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=40)
            ledger = await captured_log(rig, agent, uri)
            await client.admin.command({"updateUser": "agent", "pwd": "second-hush"})
        rig.gateway.cut_connections()

        async def waits() -> bool:
            row = (await agent.status())["services"]["replication"]
            return bool(row["state"] == "waiting" and "the source refused user or password" in row["error"])

        await until(waits, what=f"replication waits: see {agent.log}")
        uri = f"mongodb://agent:second-hush@{address}"
        async with writers(uri, ledger):
            await ledger.grown(100)
        rig.config["source"]["uri"] = uri
        rig.agent()  # writes the configuration; the daemon goes on
        await captured(rig, agent, ledger, uri=uri)
        assert "hush" not in agent.log.read_text(encoding="utf-8")


async def test_a_log_of_documentdb_is_not_read_on_from_mongodb(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    await captured_log(rig, agent, rig.source_uri)
    await agent.stop()
    rig.config["source"] = {"uri": rig.source.uri, "flavor": "mongodb"}
    rig.agent()
    await agent.start()
    await has_failed(agent, FOREIGN, FOREIGN_HINT)
