"""Where the log begins, on real servers: an idle source's time is that of its last operation, and it is inclusive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.agent_rig import Client

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig


@pytest.mark.parametrize("flavor", ["mongodb", "documentdb"])
@pytest.mark.parametrize("before", ["drop", "rename", "dropDatabase"])
async def test_an_idle_sources_last_operation_reaches_no_target(rig: AgentRig, flavor: str, before: str) -> None:
    if flavor == "mongodb":
        rig.config["source"] = {"uri": rig.source.uri, "flavor": "mongodb"}
    async with Client(rig.source.uri) as source, Client(rig.target.uri) as target:
        await rig.enable()
        for client in (source, target):
            await client["shop"]["orders"].insert_one({"_id": 1})
        match before:
            case "drop":
                await source["shop"]["orders"].drop()
            case "rename":
                await source["shop"]["orders"].rename("old")
            case _:
                await source.drop_database("shop")
        agent = await rig.ready_agent()
        await source["other"]["orders"].insert_one({"_id": 1})
        assert [operation.kind for operation in await rig.until_captured(1)] == ["insert"]
        await rig.restored(agent)
        assert await target["shop"]["orders"].count_documents({}) == 1
        assert await target["other"]["orders"].count_documents({}) == 1
