"""The password of the agent's user on MongoDB is changed while restore is at work: nothing is lost, nor left closed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from d5agent.drill.stage import TARGET_ROLES, WRITE_BLOCK_ROLE
from tests.fakes.secrets_api import FakeSecretsApi
from tests.integration.agent_rig import PATIENCE_SECONDS, AgentRig, Client, agent_rig
from tests.integration.capture_ledger import until
from tests.integration.test_target_hold import certified, following, may_write

if TYPE_CHECKING:
    from pathlib import Path

    from d5agent.drill.agent import Agent
    from d5agent.drill.child import Start
    from d5agent.drill.s3_server import S3Server

REFUSED = "the target refused user or password"


def secret(target: Mongod, password: str) -> dict[str, str]:
    uri = f"mongodb://agent:{password}@127.0.0.1:{target.port}/?replicaSet=rs0&authSource=admin"
    return {"SecretString": json.dumps({"uri": uri})}


async def agent_with_secrets(rig: AgentRig, api: FakeSecretsApi) -> Agent:
    """Return an agent whose replication is ready, and that reads the target's URI from its secret."""
    agent = rig.agent()
    agent._environment["AWS_ENDPOINT_URL_SECRETS_MANAGER"] = api.url
    await rig.enable()
    await agent.start()
    await agent.call("start", "replication")
    await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)
    return agent


async def refuse(rig: AgentRig, agent: Agent, password: str) -> None:
    """Change the password, and cut all connections: a server asks for it once a connection."""
    async with Client(rig.target.uri) as root:
        await root.admin.command({"updateUser": "agent", "pwd": password})
    await rig.target.kill()
    await rig.target.start()

    def said(status: dict[str, Any]) -> bool:
        row = status["services"]["restore"]
        return row["state"] == "waiting" and REFUSED in str(row["error"])

    await agent.until(said, what="refused by the target", seconds=PATIENCE_SECONDS)


@pytest.mark.system
async def test_a_changed_password_of_the_target_ends_nothing(
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
    api = FakeSecretsApi(secrets={"mongo": secret(target, "first-hush")})
    try:
        async with api.served(), agent_rig(source_server, target, s3_server, bucket) as rig:
            rig.start = agent_start
            async with Client(target.uri) as client:
                await client.admin.command(WRITE_BLOCK_ROLE)
                another = [{"role": "readWriteAnyDatabase", "db": "admin"}]
                for name, pwd, roles in (("agent", "first-hush", TARGET_ROLES), ("another", "hush", another)):
                    await client.admin.command({"createUser": name, "pwd": pwd, "roles": roles})
            await failback(rig, api)
    finally:
        await target.kill()


async def failback(rig: AgentRig, api: FakeSecretsApi) -> None:
    """Restore live; change the password in the middle, and again while restore is to be stopped; cut over."""
    rig.config["target"] = {"secret_id": "mongo"}
    rig.config["restore"] = {"mode": "live"}
    at = f"127.0.0.1:{rig.target.port}/?replicaSet=rs0&authSource=admin"
    async with Client(f"mongodb://another:hush@{at}") as another, Client(rig.source_uri) as application:
        agent = await agent_with_secrets(rig, api)
        orders = application["shop"]["orders"]
        await orders.insert_many([{"_id": number} for number in range(10)])
        await agent.call("start", "restore")
        await following(agent)

        await refuse(rig, agent, "second-hush")
        await orders.insert_many([{"_id": number} for number in range(10, 20)])
        assert not await may_write(another)  # still closed to others
        api.secrets["mongo"] = secret(rig.target, "second-hush")
        await following(agent)

        await refuse(rig, agent, "third-hush")
        await orders.insert_many([{"_id": number} for number in range(20, 30)])
        stopped = await agent.run("stop", "restore")
        assert REFUSED in stopped.out + stopped.err
        assert not await may_write(another)
        api.secrets["mongo"] = secret(rig.target, "third-hush")
        await until(lambda: may_write(another), what="the daemon gives it back", seconds=PATIENCE_SECONDS)

        await agent.call("start", "restore")
        await following(agent)
        assert (await agent.run("cutover", "--yes", "--follow")).code == 0
        await until(lambda: may_write(another), what="it may write", seconds=PATIENCE_SECONDS)
        assert (await certified(rig))["was_open"]
        async with Client(rig.target.uri) as root:
            assert await root["shop"]["orders"].count_documents({}) == 30
        assert "hush" not in agent.log.read_text(encoding="utf-8")
