"""AWS credentials that are renewed, or come late, are taken up by the running daemon."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from d5agent.drill.child import pause
from d5agent.drill.s3_proxy import refuse
from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from tests.fakes.secrets_api import FakeSecretsApi
from tests.integration.agent_rig import ENABLE, PATIENCE_SECONDS, Client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from d5agent.drill.agent import Agent
    from d5agent.drill.s3_proxy import Act, Exchange, S3Proxy
    from tests.integration.agent_rig import AgentRig

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def refuse_key(key: str) -> Act:
    """Refuse whoever signs with a key, as S3 does once it is deleted."""
    refused = refuse(403, "InvalidAccessKeyId")

    async def act(exchange: Exchange) -> web.StreamResponse:
        is_old = f"Credential={key}/" in exchange.request.headers.get("Authorization", "")
        return await (refused(exchange) if is_old else exchange.forward())

    return act


def agent_without_keys(rig: AgentRig, folder: Path, **environment: str) -> Agent:
    """Return an agent that finds its AWS credentials where the environment says."""
    agent = rig.agent()
    for name in KEYS:
        agent._environment.pop(name, None)
    agent._environment |= {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials")}
    agent._environment |= environment
    return agent


def write_keys(folder: Path, key: str) -> None:
    text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret of {key}\n"
    (folder / "credentials").write_text(text, encoding="utf-8")


async def test_renewed_keys_are_taken_up_without_a_restart(rig: AgentRig, proxy: S3Proxy, tmp_path: Path) -> None:
    write_keys(tmp_path, "first")
    agent = agent_without_keys(rig, tmp_path, AWS_EC2_METADATA_DISABLED="true")
    await rig.enable()
    await agent.start()
    await agent.call("start", "replication")
    await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)
    fault = proxy.fail(refuse_key("first"))
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
    await fault.until_met(2)
    write_keys(tmp_path, "second")
    await rig.until_captured(1)
    assert "AWS refused the credentials" not in str((await agent.status())["services"]["replication"]["error"])


@asynccontextmanager
async def metadata_service(answers: list[int]) -> AsyncGenerator[str]:
    """Serve an instance's metadata with the last status in `answers`, and credentials with 200."""
    role = {
        "Code": "Success",
        "AccessKeyId": "of-the-role",
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": "2099-01-01T00:00:00Z",
    }

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if answers[-1] != 200:
            return web.Response(status=answers[-1])
        if request.method == "PUT":
            return web.Response(text="a token")
        return web.Response(text=json.dumps(role) if request.path.endswith("/agent") else "agent")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_a_start_without_credentials_waits_for_them(rig: AgentRig, tmp_path: Path) -> None:
    answers = [503]
    async with metadata_service(answers) as url:
        agent = agent_without_keys(rig, tmp_path, AWS_EC2_METADATA_SERVICE_ENDPOINT=url)
        agent._daemon.start()
        while not agent.log.exists() or "credentials_awaited" not in agent.log.read_text(encoding="utf-8"):
            agent._daemon.require_alive()
            await pause(0.1)
        answers.append(200)
        while not await agent._answers():
            await pause(0.1)
    assert "no AWS credentials" in agent.log.read_text(encoding="utf-8")


@asynccontextmanager
async def locked_source(rig: AgentRig, folder: Path) -> AsyncGenerator[str]:
    """Put a server that asks for a password behind the gateway; gives the URI with the first password."""
    options = ServerOptions(credentials=Credentials(username="agent", password="first-hush"))
    server = Mongod(folder / "locked", options=options)
    await server.start()
    try:
        rig.gateway.cluster.move_to(server.members[0].address)
        yield f"mongodb://agent:first-hush@{rig.gateway.address}/?replicaSet=rs0&retryWrites=false"
        for agent in rig.agents:
            await agent.kill()
    finally:
        await server.kill()


async def test_a_renewed_password_of_the_source_is_read_from_its_secret(rig: AgentRig, tmp_path: Path) -> None:
    host, port = rig.gateway.address.split(":")

    def secret(password: str) -> dict[str, str]:
        fields = {"username": "agent", "password": password, "host": host, "port": port}
        return {"SecretString": json.dumps(fields)}

    rig.config["source"] = {"secret_id": "docdb"}
    api = FakeSecretsApi(secrets={"docdb": secret("first-hush")})
    async with api.served(), locked_source(rig, tmp_path) as uri:
        agent = rig.agent()
        agent._environment["AWS_ENDPOINT_URL_SECRETS_MANAGER"] = api.url
        async with Client(uri) as client:
            await client.admin.command(ENABLE)
            await agent.start()
            await agent.call("start", "replication")
            await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)
            await client["shop"]["orders"].insert_one({"_id": 1})
            await client.admin.command({"updateUser": "agent", "pwd": "second-hush"})
        api.secrets["docdb"] = secret("second-hush")
        rig.gateway.cut_connections()
        async with Client(uri.replace("first", "second")) as client:
            await client["shop"]["orders"].insert_one({"_id": 2})
        await rig.until_captured(2)
        log = agent.log.read_text(encoding="utf-8")
    assert "source_uri_renewed" in log
    assert "hush" not in log
