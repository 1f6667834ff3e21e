"""An agent whose user may not write its marker: it captures, and nothing is certified or deleted."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from tests.integration.agent_rig import ENABLE, PATIENCE_SECONDS, AgentRig, Client, agent_rig, said

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from d5agent.drill.agent import Agent
    from d5agent.drill.child import Start
    from d5agent.drill.s3_server import S3Server

# docs/privileges.md, without the database d5agent
READER = ({"role": "readAnyDatabase", "db": "admin"}, {"role": "clusterMonitor", "db": "admin"})
MARKERS = {"role": "dbOwner", "db": "d5agent"}
REFUSED = "the fence marker cannot be written"


@asynccontextmanager
async def locked_rig(
    folder: Path, target: Mongod, s3: S3Server, bucket: str, start: Start
) -> AsyncGenerator[tuple[AgentRig, Client]]:
    """Yield a rig whose agent only reads the source, and its root's client."""
    source = Mongod(folder, options=ServerOptions(credentials=Credentials(username="root", password="hush-root")))
    await source.start()
    try:
        async with Client(source.uri) as client, agent_rig(source, target, s3, bucket) as rig:
            rig.start = start
            behind = f"{rig.gateway.address}/?replicaSet=rs0&retryWrites=false&authSource=admin"
            rig.config["source"]["uri"] = f"mongodb://agent:hush-agent@{behind}"
            await client.admin.command({"createUser": "agent", "pwd": "hush-agent", "roles": list(READER)})
            async with Client(f"mongodb://root:hush-root@{behind}") as through:
                await through.admin.command(ENABLE)
            yield rig, client
    finally:
        await source.kill()


async def marker_check(agent: Agent) -> tuple[bool, str]:
    """Return what `check` says of the marker: whether it may be written, and the hint."""
    checked = json.loads((await agent.run("check", "--json")).out)
    (row,) = [row for row in checked["checks"] if row["what"] == "source, fence marker"]
    assert row["ok"] or not checked["ok"]
    return row["ok"], row["hint"]


async def test_an_agent_without_a_marker_ends_no_failback(
    tmp_path: Path,
    target_server: Mongod,
    s3_server: S3Server,
    bucket: str,
    agent_start: Start,
    clean_databases: None,  # noqa: ARG001 -- asked for, so that the target is empty
) -> None:
    async with locked_rig(tmp_path / "locked", target_server, s3_server, bucket, agent_start) as (rig, client):
        agent = await rig.ready_agent()
        is_allowed, hint = await marker_check(agent)
        assert not is_allowed
        assert "insert on the database d5agent" in hint
        await client["shop"]["orders"].insert_one({"_id": 1})
        await rig.until_captured(1)
        refused = await agent.run("start", "monitor-replication", "--follow")
        assert (refused.code, REFUSED in said(refused)) == (78, True), said(refused)
        assert not [key for key in await rig.keys() if "certificate" in key]

        await client.admin.command({"updateUser": "agent", "roles": [*READER, MARKERS]})
        assert (await marker_check(agent))[0]
        await rig.restored(agent)
        (key,) = [key for key in await rig.keys() if key.endswith("certificate.json")]
        async with rig.store() as store:
            end = json.loads(await store.get(key) or b"")["end_of_stream"]
        assert end["proof"] == "marker"
        assert end["commit"] in await rig.keys()
        source, target = await rig.hashes()
        assert source == target

        await client.admin.command({"updateUser": "agent", "roles": list(READER)})
        kept = set(await rig.keys())
        ended = await agent.run("start", "clean", "--follow")
        assert (ended.code, REFUSED in said(ended)) == (78, True), said(ended)
        assert kept <= set(await rig.keys())
        status = await agent.until(lambda _: True, what="a status", seconds=PATIENCE_SECONDS)
        assert status["services"]["replication"]["state"] == "running"
