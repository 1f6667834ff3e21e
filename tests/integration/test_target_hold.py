"""A real MongoDB with access control while restore is at work: nobody else writes, and it is given back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from d5agent.drill.stage import TARGET_ROLES, WRITE_BLOCK_ROLE
from tests.integration.agent_rig import PATIENCE_SECONDS, AgentRig, Client, agent_rig
from tests.integration.capture_ledger import until

if TYPE_CHECKING:
    from pathlib import Path

    from d5agent.drill.agent import Agent
    from d5agent.drill.child import Start
    from d5agent.drill.s3_server import S3Server

BLOCKED = 371


async def may_write(another: Client) -> bool:
    """Write into a collection that the log does not touch, as another user does."""
    answer = await another["shop"].command({"insert": "notes", "documents": [{}]})
    errors = [error["code"] for error in answer.get("writeErrors", ())]
    assert errors in ([], [BLOCKED])
    return not errors


async def following(agent: Agent) -> None:
    """Wait until a live restore has caught up."""
    await agent.until(
        lambda status: bool(status["services"].get("restore", {}).get("can_cutover")),
        what="caught up",
        seconds=PATIENCE_SECONDS,
    )


async def row_of(agent: Agent) -> dict[str, Any]:
    """Return what `check` says of write-block mode."""
    checked = json.loads((await agent.run("check", "--json")).out)
    (row,) = [row for row in checked["checks"] if row["what"] == "target, write-block mode"]
    return dict(row)


async def certified(rig: AgentRig) -> dict[str, Any]:
    """Return what the certificate says of the target."""
    (key,) = [key for key in await rig.keys() if key.endswith("certificate.json")]
    async with rig.store() as store:
        return dict(json.loads(await store.get(key) or b"")["target_hold"])


async def test_others_cannot_write_while_restore_is_at_work(
    tmp_path: Path,
    source_server: Mongod,
    s3_server: S3Server,
    bucket: str,
    agent_start: Start,
    clean_databases: None,  # noqa: ARG001 -- asked for, so that the source is empty
) -> None:
    root = Credentials(username="root", password="hush-root")
    target = Mongod(tmp_path / "locked", options=ServerOptions(credentials=root))
    await target.start()
    try:
        async with Client(target.uri) as client, agent_rig(source_server, target, s3_server, bucket) as rig:
            rig.start = agent_start
            await client.admin.command(WRITE_BLOCK_ROLE)
            roles = {"agent": TARGET_ROLES[:-1], "another": [{"role": "readWriteAnyDatabase", "db": "admin"}]}
            for name, granted in roles.items():
                await client.admin.command({"createUser": name, "pwd": "hush", "roles": granted})
            await failback(rig, client)
    finally:
        await target.kill()


async def failback(rig: AgentRig, root: Client) -> None:
    """Restore live, stop and start again, kill, cut over; look each time who may write."""
    at = f"127.0.0.1:{rig.target.port}/?replicaSet=rs0&authSource=admin"
    rig.config["target"]["uri"] = f"mongodb://agent:hush@{at}"
    rig.config["restore"] = {"mode": "live"}
    async with Client(f"mongodb://another:hush@{at}") as another, Client(rig.source_uri) as application:
        agent = await rig.captured_agent()
        row = await row_of(agent)
        assert row["ok"]
        assert "d5agentWriteBlock" in row["hint"]
        await root.admin.command({"updateUser": "agent", "roles": TARGET_ROLES})
        assert (await row_of(agent))["hint"] == ""
        await application["shop"]["orders"].insert_many([{"_id": number} for number in range(10)])
        assert await may_write(another)

        await agent.call("start", "restore")
        await following(agent)
        assert not await may_write(another)
        await agent.call("stop", "restore")
        assert await may_write(another)

        await agent.call("start", "restore")
        await following(agent)
        await agent.kill()
        assert not await may_write(another)
        await agent.start()
        await following(agent)
        assert not await may_write(another)

        ended = await agent.run("cutover", "--yes", "--follow")
        assert ended.code == 0
        await until(lambda: may_write(another), what="it may write", seconds=PATIENCE_SECONDS)
        held = await certified(rig)
        # It was given back in between, when restore was stopped.
        assert (held["write_block"], held["was_open"]) == ("set by d5agent", True)
