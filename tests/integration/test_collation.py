"""A collection of MongoDB whose `_id` index takes "A" for "a", and a source that does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tests.integration.agent_rig import Client, said

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

_OPERATOR: Final = 78


async def test_plan_and_restore_refuse_a_collation_by_name_and_lose_nothing(rig: AgentRig) -> None:
    async with Client(rig.target.uri) as client:
        names = await client["shop"].create_collection("names", collation={"locale": "en", "strength": 2})
        await names.insert_one({"_id": "A", "of": "MongoDB"})
    async with Client(rig.source.uri) as client:
        await client["shop"]["names"].insert_one({"_id": "A", "of": "MongoDB"})
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["plain"].insert_one({"_id": "B"})
        await client["shop"]["names"].insert_one({"_id": "a"})
        await client["shop"]["names"].delete_one({"_id": "a"})
    await rig.until_captured(3)
    planned = json.loads((await agent.run("plan", "--json")).out)
    assert planned["go"] is False
    assert any("shop.names" in line and "collation" in line for line in planned["obstacles"]), planned["obstacles"]
    ended = await agent.run("start", "restore", "--follow")
    assert ended.code == _OPERATOR, said(ended)
    assert "shop.names (locale en)" in said(ended)
    async with Client(rig.target.uri) as client:
        assert await client["shop"]["names"].find().to_list() == [{"_id": "A", "of": "MongoDB"}]
        assert "plain" not in await client["shop"].list_collection_names()
        assert not [key for key in await rig.keys() if key.endswith("certificate.json")]
        # What the runbook says.
        await client["shop"]["names"].aggregate([{"$out": "names_plain"}])
        await client["shop"]["names_plain"].rename("names", dropTarget=True)
    await rig.restored(agent)
    source, target = await rig.hashes()
    assert source == target
