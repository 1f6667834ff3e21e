"""Source and target that are one cluster: by one name, by another, and where the names differ."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.server import MongoServer
from d5agent.core.log.operation import Namespace
from tests.integration.agent_rig import Client, said

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

_OPERATOR: Final = 78


@pytest.mark.parametrize("name", ["the gateway", "the server behind it"])
async def test_one_cluster_under_two_names_is_refused(rig: AgentRig, name: str) -> None:
    is_same_host = name == "the gateway"
    rig.config["target"] = {"uri": rig.source_uri if is_same_host else rig.source.uri}
    message = "source and target name the same host" if is_same_host else "source and target are the same cluster"
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
    await rig.until_captured(1)
    checked = await agent.run("check", "--json")
    rows = {row["what"]: row for row in json.loads(checked.out)["checks"]}
    assert message in rows["source and target"]["found"]
    assert "[target] uri" in rows["source and target"]["hint"]
    ended = await agent.run("start", "restore", "--follow")
    assert ended.code == _OPERATOR, said(ended)
    assert message in said(ended)
    assert not [key for key in await rig.keys() if key.endswith("certificate.json")]


async def test_two_clusters_are_told_apart_and_named(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    checked = json.loads((await agent.run("check", "--json")).out)
    (row,) = [row for row in checked["checks"] if row["what"] == "source and target"]
    assert row["ok"], row
    assert row["found"] == f"two clusters: {rig.gateway.address} and 127.0.0.1:{rig.target.port}"


async def test_a_server_says_who_it_is_and_which_collections_have_a_collation(rig: AgentRig) -> None:
    async with Client(rig.target.uri) as client:
        await client["shop"].create_collection("names", collation={"locale": "en", "strength": 2})
        await client["shop"].create_collection("plain")
    async with open_mongo(rig.target.uri, side="target") as opened:
        asked = f"127.0.0.1:{rig.target.port}"
        server = MongoServer(opened, side="target", asked=[asked], has_id=True, clock=SystemClock())
        facts, collations = await server.facts(), await server.collations()
    assert (facts.hosts, facts.set_name) == ((asked,), "rs0")
    assert len(facts.cluster_id) == 24
    assert facts.version.count(".") == 2
    assert collations == {Namespace("shop", "names"): "en"}
