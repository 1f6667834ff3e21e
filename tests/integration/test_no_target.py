"""Capture without a target, as an operator meets it: address and password of MongoDB arrive with the restore."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.fakes.secrets_api import FakeSecretsApi
from tests.integration.agent_rig import Client, said, toml
from tests.integration.test_bad_input import failed, require

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig


async def rows_of(agent: Agent, *, code: int) -> dict[str, dict[str, Any]]:
    ended = await agent.run("check", "--json")
    assert ended.code == code, said(ended)
    return {row["what"]: row for row in json.loads(ended.out)["checks"]}


async def test_secret_that_is_filled_at_restore_is_taken_up(rig: AgentRig) -> None:
    uri = rig.config["target"]["uri"]
    rig.config["target"] = {"secret_id": "mongo"}
    async with FakeSecretsApi(secrets={"mongo": None}).served() as api:
        agent = rig.agent()
        agent._environment["AWS_ENDPOINT_URL_SECRETS_MANAGER"] = api.url
        await rig.enable()
        await agent.start()
        await agent.call("start", "replication")
        async with Client(rig.source_uri) as client:
            await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=60)
            await client["shop"]["orders"].insert_one({"_id": 1})
        await rig.until_captured(1)
        row = (await rows_of(agent, code=0))["target"]
        assert (row["state"], row["needed"]) == ("later", "restore")
        assert "put-secret-value --secret-id mongo" in row["hint"]
        assert "for restore" in said(await agent.run("check"))
        await agent.call("start", "restore")
        row = await failed(agent, "backup")
        assert "the target's secret cannot be read" in row["error"]
        assert "put-secret-value --secret-id mongo" in row["hint"]
        assert (await rows_of(agent, code=78))["target"]["needed"] == "now"
        api.secrets["mongo"] = {"SecretString": json.dumps({"uri": uri})}
        await rig.restored(agent)
    async with Client(rig.target.uri) as client:
        assert await client["shop"]["orders"].count_documents({}) == 1


async def test_section_that_is_written_at_restore_is_taken_up(rig: AgentRig) -> None:
    target = rig.config.pop("target")
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
    await rig.until_captured(1)
    assert (await rows_of(agent, code=0))["target"]["state"] == "later"
    require(await agent.run("plan"), "no URI for the target")
    require(await agent.run("verify"), "no URI for the target")
    rig.config["target"] = target
    (rig.folder / "d5agent.toml").write_text(toml(rig.config), encoding="utf-8")
    await rig.restored(agent)
    assert (await agent.json("verify"))["equal"]


async def test_mode_of_the_start_is_kept_until_another_is_given(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    await agent.call("start", "restore", "--mode", "live")
    status = await agent.until(lambda s: bool(s["services"]["restore"].get("can_cutover")), what="live", seconds=60)
    assert status["restore"]["mode"] == "live"
    require(await agent.run("start", "restore", "--mode", "drained"), "a live restore is under way", "stop restore")
    require(await agent.run("start", "clean", "--mode", "live"), "clean has no mode")
    require(await agent.run("cutover"), "nobody has said that it is", "d5agent cutover --yes")
    await agent.call("stop", "restore")
    await agent.call("start", "restore", "--mode", "drained")
    status = await agent.until(lambda s: s["services"]["restore"]["state"] == "done", what="done", seconds=60)
    assert status["restore"]["mode"] == "drained"
    require(await agent.run("cutover"), "cutover refused: the mode is drained", "--mode live")
