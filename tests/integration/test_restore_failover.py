"""The target's primary steps down or is killed while it is restored into: restore goes on with its successor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.agent_rig import PATIENCE_SECONDS
from tests.integration.restore_rig import captured_history, in_the_middle, restore_row, restored, until_restore_is
from tests.integration.three_members import kill_primary, primary_of, step_down

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent
    from d5agent.drill.servers import ReplicaSet
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system


async def restoring_into(rig: AgentRig, servers: ReplicaSet) -> Agent:
    """Return an agent that restores into the set, and is in the middle of it."""
    rig.config["target"] = {"uri": servers.uri}
    await primary_of(servers)
    agent = await captured_history(rig, target_uri=servers.uri)
    await agent.call("start", "restore")
    await in_the_middle(agent)
    return agent


async def test_step_downs_of_the_target(rig: AgentRig, three_members: ReplicaSet) -> None:
    agent = await restoring_into(rig, three_members)
    for _ in range(2):
        await step_down(three_members)
    assert (await restore_row(agent))["state"] in {"running", "waiting", "done"}
    await restored(rig, agent, target_uri=three_members.uri)


async def test_the_primary_of_the_target_killed(rig: AgentRig, three_members: ReplicaSet) -> None:
    agent = await restoring_into(rig, three_members)
    await kill_primary(three_members)
    assert (await restore_row(agent))["state"] in {"running", "waiting"}
    await three_members.start()  # what it had not handed on is rolled back: restore counts on none of it
    await restored(rig, agent, target_uri=three_members.uri)


async def test_a_target_without_a_majority_is_waited_for(rig: AgentRig, three_members: ReplicaSet) -> None:
    agent = await restoring_into(rig, three_members)
    primary = await primary_of(three_members)
    for member in three_members.members:
        if member is not primary:
            await member.kill()
    row = await until_restore_is(agent, "waiting", seconds=2 * PATIENCE_SECONDS)
    assert "the target" in row["error"] or "majority" in row["error"]
    await three_members.start()
    await restored(rig, agent, target_uri=three_members.uri)
