"""`[source] enable_change_streams`: before the first capture only, and proved before replication is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from d5agent.errors import OperatorError
from tests.integration.agent_rig import ENABLE, PATIENCE_SECONDS, Client

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

WHOLE_CLUSTER = {"database": "", "collection": ""}


async def _enabled(rig: AgentRig) -> list[dict[str, Any]]:
    async with Client(rig.source_uri) as client:
        return [found async for found in await client.admin.aggregate([{"$listChangeStreams": 1}])]


async def test_the_agent_switches_the_stream_on_and_captures_what_comes_after(rig: AgentRig) -> None:
    rig.config["source"]["enable_change_streams"] = True
    await rig.ready_agent()
    assert [{name: found[name] for name in WHOLE_CLUSTER} for found in await _enabled(rig)] == [WHOLE_CLUSTER]
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
    assert [o.kind for o in await rig.until_captured(1)] == ["insert"]


async def test_a_stream_that_was_switched_off_is_not_switched_on_again_over_the_gap(rig: AgentRig) -> None:
    rig.config["source"]["enable_change_streams"] = True
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
        await rig.until_captured(1)
        await agent.kill()
        await client.admin.command({**ENABLE, "enable": False})
        await client["shop"]["orders"].insert_one({"_id": 2})  # nobody will ever tell of it
    await agent.start()
    with pytest.raises(OperatorError, match="not enabled for the whole cluster") as failed:
        await agent.until(lambda _: False, what="failed", seconds=PATIENCE_SECONDS)
    assert "'the position is lost'" in failed.value.hint
    assert await _enabled(rig) == []
    assert len(await rig.operations()) == 1


async def test_check_looks_and_switches_nothing_on(rig: AgentRig) -> None:
    rig.config["source"]["enable_change_streams"] = True
    ended = await rig.agent().run("check", "--json")
    assert "not enabled for the whole cluster" in ended.out
    assert await _enabled(rig) == []
