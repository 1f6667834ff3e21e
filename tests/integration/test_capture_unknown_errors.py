"""Capture while the stream fails with codes that pass, or that nobody knows: it is tried again, loudly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.capture_ledger import Ledger, captured, until, writers

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
CODES = (1, 8, 50, 133, 134, 202, 234, 246, 462, 99_999)


async def _replication(agent: Agent) -> dict[str, Any]:
    row: dict[str, Any] = (await agent.status())["services"]["replication"]
    return row


async def _stored(agent: Agent) -> int:
    return int((await agent.status())["capture"]["operations"])


async def test_a_code_that_comes_once_stops_nothing(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    faults = rig.gateway.cluster.faults
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        for code in CODES:
            faults.stream_error, faults.stream_refusals = code, 1

            async def is_met() -> bool:
                return faults.stream_refusals == 0

            await until(is_met, what=f"the stream fails with {code}")
            stored = await _stored(agent)

            async def has_gone_on(before: int = stored) -> bool:
                return await _stored(agent) > before

            await until(has_gone_on, what=f"more is stored after {code}")  # else the next one adds to this one
    await captured(rig, agent, ledger)
    assert "service_failed" not in agent.log.read_text(encoding="utf-8")


async def test_an_unknown_code_that_stays_is_waited_out_in_its_own_words(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    faults = rig.gateway.cluster.faults
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(20)
        faults.stream_error, faults.stream_refusals = 8, 1_000_000

        async def waits() -> bool:
            return bool((await _replication(agent))["state"] == "waiting")

        await until(waits, what=f"replication waits: see {agent.log}")
        row = await _replication(agent)
        assert "code=8" in row["error"]
        assert "server_says=a drill" in row["error"]
        assert "trying again" in row["reason"]
        faults.stream_refusals = 0
        await ledger.grown(20)
    await captured(rig, agent, ledger)
    assert "a drill" in agent.log.read_text(encoding="utf-8")
