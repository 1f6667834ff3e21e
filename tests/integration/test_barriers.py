"""Drops and renames on real servers: repeated from an earlier checkpoint, and beside a live restore that is killed."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

from tests.integration.agent_rig import PATIENCE_SECONDS, Client

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient

    from tests.integration.agent_rig import AgentRig

_MOVES = 40


async def _move(client: AsyncMongoClient[dict[str, Any]], number: int) -> None:
    """Let temporary collections come and go, and a name be taken again and again."""
    shop = client["shop"]
    await shop[f"temporary{number}"].insert_one({"_id": number})
    if number % 2:
        await shop[f"temporary{number}"].drop()
    else:
        await shop[f"temporary{number}"].rename("result", dropTarget=True)
    await shop["orders"].insert_one({"_id": number})
    if number % 5 == 4:
        await shop["orders"].rename("archive", dropTarget=True)
        await client["scratch"]["one"].insert_one({"_id": number})
        await client.drop_database("scratch")


async def test_a_live_restore_catches_up_beside_barriers_after_a_kill(rig: AgentRig) -> None:
    refused = rig.folder / "refused"
    rig.config["restore"] = {"mode": "live"}
    rig.config["cutover"] = {"command": ["touch", str(refused)]}
    agent = await rig.captured_agent()

    async def work() -> None:
        async with Client(rig.source.uri) as client:
            for number in count():
                if refused.exists():
                    return
                if number < _MOVES:
                    await _move(client, number)
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        await agent.call("start", "restore")
        await agent.until(_can_cut_over, what="caught up", seconds=PATIENCE_SECONDS)
        await agent.kill()
        await agent.start()
        await agent.until(_can_cut_over, what="caught up after the kill", seconds=PATIENCE_SECONDS)
        await agent.call("cutover", "--follow")
    source, target = await rig.hashes()
    assert source == target
    status = await agent.status()
    assert status["verify"]["different"] == 0


def _can_cut_over(status: dict[str, Any]) -> bool:
    return bool(status["services"].get("restore", {}).get("can_cutover"))
