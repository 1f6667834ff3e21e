"""The stream is switched off and on again, and the agent dies within the minute: nothing is certified."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.integration.agent_rig import ENABLE, PATIENCE_SECONDS, Client

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig


@pytest.mark.parametrize("sends_token", [True, False])
async def test_a_gap_before_a_kill_is_noticed_by_the_next_start(rig: AgentRig, *, sends_token: bool) -> None:
    rig.gateway.cluster.sends_post_batch_token = sends_token
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        orders = client["shop"]["orders"]
        await client.admin.command({**ENABLE, "enable": False})
        await orders.insert_one({"_id": "untold"})
        await client.admin.command(ENABLE)
        await orders.insert_one({"_id": "told"})
    assert len(await rig.until_captured(1)) == 1
    await agent.kill()
    await agent.start()
    status = await agent.until(
        lambda status: status["services"]["replication"]["state"] == "failed", what="failed", seconds=PATIENCE_SECONDS
    )
    assert "operations are lost to the stream" in status["services"]["replication"]["error"]
    assert len(await rig.operations()) == 1
    gap = json.loads((rig.state / "stream_gap.json").read_text())
    del gap["revision"]  # of the state, not of what it says
    async with rig.store() as store:
        noted = await store.get(f"reports/{gap['run_id']}/stream_gap.json")
    assert noted is not None
    assert json.loads(noted) == gap
