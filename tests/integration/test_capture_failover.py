"""The source's primary steps down or is killed while it is captured: capture goes on with its successor."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from d5agent.drill.servers import ReplicaSet
from tests.integration.agent_rig import PATIENCE_SECONDS
from tests.integration.capture_ledger import Ledger, captured, paused, until, writers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from d5agent.drill.agent import Agent
    from d5agent.drill.servers import Member
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    """A replica set of three members; a test starts again what it has killed."""
    folder = tmp_path_factory.mktemp("three")
    servers = ReplicaSet(folder, members=3)
    try:
        asyncio.run(servers.start())
        yield servers
    finally:
        asyncio.run(servers.kill())
        shutil.rmtree(folder, ignore_errors=True)


async def agent_on(rig: AgentRig, servers: ReplicaSet) -> Agent:
    """Return an agent that captures a MongoDB replica set, without a gateway, and is ready."""
    rig.config["source"] = {"uri": servers.uri, "flavor": "mongodb"}
    return await rig.captured_agent()


async def agent_before(rig: AgentRig, servers: ReplicaSet) -> Agent:
    """Return an agent that captures the gateway before the set's primary, and is ready."""
    rig.gateway.cluster.move_to((await primary_of(servers)).address)
    return await rig.captured_agent()


async def primary_of(servers: ReplicaSet) -> Member:
    """Wait for a primary, and return it."""
    found: list[Member] = []

    async def has_one() -> bool:
        primary = await servers.find_primary()
        found.extend([primary] if primary else [])
        return bool(found)

    await until(has_one, what="a primary")
    return found[-1]


async def kill_primary(servers: ReplicaSet) -> Member:
    """SIGKILL the primary, and return its successor."""
    await (await primary_of(servers)).kill()
    return await primary_of(servers)


async def step_down(servers: ReplicaSet) -> None:
    """Make the primary step down; another member follows it."""
    before = await primary_of(servers)
    assert await servers.step_down() is not before


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
