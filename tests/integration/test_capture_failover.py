"""The source's primary steps down or is killed while it is captured: capture goes on with its successor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.agent_rig import PATIENCE_SECONDS
from tests.integration.capture_ledger import Ledger, captured, paused, until, writers
from tests.integration.three_members import kill_primary, primary_of, step_down

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent
    from d5agent.drill.servers import ReplicaSet
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system


async def agent_on(rig: AgentRig, servers: ReplicaSet) -> Agent:
    """Return an agent that captures a MongoDB replica set, without a gateway, and is ready."""
    rig.config["source"] = {"uri": servers.uri, "flavor": "mongodb"}
    return await rig.captured_agent()


async def agent_before(rig: AgentRig, servers: ReplicaSet) -> Agent:
    """Return an agent that captures the gateway before the set's primary, and is ready."""
    rig.gateway.cluster.move_to((await primary_of(servers)).address)
    return await rig.captured_agent()


async def test_step_downs_under_load(rig: AgentRig, three_members: ReplicaSet) -> None:
    agent = await agent_on(rig, three_members)
    ledger = Ledger()
    async with writers(three_members.uri, ledger):
        await ledger.grown(200)
        await step_down(three_members)
        await ledger.grown(200)
        with paused(agent):  # it was behind when the primary went: what it had not read, it reads from another member
            await ledger.grown(200)
            await step_down(three_members)
            await ledger.grown(200)
    assert ledger.lost, "no answer was lost: the step-downs have disturbed nobody"
    await captured(rig, agent, ledger, uri=three_members.uri)


async def test_the_primary_killed_under_load(rig: AgentRig, three_members: ReplicaSet) -> None:
    agent = await agent_on(rig, three_members)
    ledger = Ledger()
    async with writers(three_members.uri, ledger):
        await ledger.grown(200)
        with paused(agent):
            await ledger.grown(200)
            await kill_primary(three_members)  # with the cursor from which it had not read this
            await ledger.grown(200)
        await three_members.start()  # what it had not handed on is rolled back, and was acknowledged to nobody
        await ledger.grown(200)
    assert ledger.lost
    await captured(rig, agent, ledger, uri=three_members.uri)


@pytest.mark.parametrize("way", ["step down", "kill"])
async def test_a_fail_over_of_the_cluster_under_load(rig: AgentRig, three_members: ReplicaSet, way: str) -> None:
    agent = await agent_before(rig, three_members)
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(200)
        new = await (three_members.step_down() if way == "step down" else kill_primary(three_members))
        rig.gateway.fail_over(1.0, new.address)
        await ledger.grown(200)
    await three_members.start()
    assert ledger.lost
    assert rig.gateway.status()["upstream"] == new.address
    await captured(rig, agent, ledger)


async def test_no_primary_while_it_starts(rig: AgentRig, three_members: ReplicaSet) -> None:
    rig.config["source"] = {"uri": three_members.uri, "flavor": "mongodb"}
    primary = await primary_of(three_members)
    for member in three_members.members:
        if member is not primary:
            await member.kill()
    agent = rig.agent()
    await agent.start()
    await agent.call("start", "replication")

    async def waits() -> bool:
        row = (await agent.status())["services"]["replication"]
        assert row["state"] != "failed", row
        return row["state"] == "waiting" and "the source is" in row["error"]

    await until(waits, what="replication waits for a primary")
    await three_members.start()
    await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)
    ledger = Ledger()
    async with writers(three_members.uri, ledger):
        await ledger.grown(200)
    await captured(rig, agent, ledger, uri=three_members.uri)
