"""A live restore under faults while applications write: it converges, and the cutover survives a kill."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.agent_rig import PATIENCE_SECONDS
from tests.integration.capture_ledger import Ledger, until, writers
from tests.integration.restore_rig import captured_history, in_the_middle, relayed, restore_row, restored

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
KILLS = 4


async def following(rig: AgentRig, *, seed: int) -> Agent:
    """Return an agent whose live restore has begun."""
    rig.config["restore"] = {"mode": "live"}  # with windows as they are, or it falls behind these writers
    agent = await captured_history(rig, seed=seed)
    await agent.call("start", "restore")
    return agent


async def caught_up(agent: Agent) -> None:
    """Wait until restore may be cut over."""

    async def is_so() -> bool:
        row = await restore_row(agent)
        assert row.get("state") != "failed", row
        return bool(row.get("can_cutover"))

    await until(is_so, what=f"restore has caught up: see {agent.log}", seconds=2 * PATIENCE_SECONDS)


async def test_killed_at_random_moments_while_it_follows_and_while_it_is_cut_over(rig: AgentRig) -> None:
    seed = random.SystemRandom().randrange(10**9)
    sys.stdout.write(f"seed {seed}\n")
    dice = random.Random(seed)
    ledger = Ledger()
    async with writers(rig.source.uri, ledger, seed=seed):
        agent = await following(rig, seed=seed)
        for _ in range(KILLS):
            await ledger.grown(100)
            await asyncio.sleep(dice.uniform(0, 1))  # the moment is what is random here; nothing is waited for
            await agent.kill()
            await agent.start()
        await caught_up(agent)
        await ledger.grown(100)
    await agent.call("cutover", "--yes")
    await asyncio.sleep(dice.uniform(0, 0.5))  # the same
    await agent.kill()
    await agent.start()
    await restored(rig, agent, may_repair=True)


async def test_the_line_to_the_target_is_cut_while_it_follows(rig: AgentRig) -> None:
    ledger = Ledger()
    async with relayed(rig) as between:
        async with writers(rig.source.uri, ledger):
            agent = await following(rig, seed=7)
            await in_the_middle(agent)
            for _ in range(10):
                await ledger.grown(50)
                between.cut_connections()
            await caught_up(agent)
            between.is_dark = True
            between.forget_connections()
            await ledger.grown(500)
            between.is_dark = False
            between.cut_connections()
            await caught_up(agent)
        await agent.call("cutover", "--yes")
        await restored(rig, agent, may_repair=True)
