"""What happens to the target between its comparison and the certificate, on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.integration.agent_rig import Client, said

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

_DOCUMENTS: Final = 20
_OPERATOR: Final = 78


async def _following(rig: AgentRig) -> Agent:
    """Return an agent whose live restore has compared all documents, and waits for its cutover."""
    rig.config["restore"] = {"mode": "live"}
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_many([{"_id": number} for number in range(_DOCUMENTS)])
    await agent.call("start", "restore")
    await agent.until(
        lambda status: (
            bool(status["services"]["restore"].get("can_cutover")) and status["verify"]["compared"] == _DOCUMENTS
        ),
        what="compared",
        seconds=120,
    )
    return agent


async def test_a_database_that_somebody_drops_is_never_certified(rig: AgentRig) -> None:
    agent = await _following(rig)
    async with Client(rig.target.uri) as client:
        await client.drop_database("shop")
    await agent.run("cutover", "--yes", "--follow")
    row = (await agent.until(lambda s: s["services"]["restore"]["state"] == "failed", what="failed", seconds=120))[
        "services"
    ]["restore"]
    assert "somebody dropped or renamed a collection of the target" in row["error"]
    assert not [key for key in await rig.keys() if key.endswith("certificate.json")]


async def test_documents_that_a_foreign_hand_deletes_are_compared_again(rig: AgentRig) -> None:
    agent = await _following(rig)
    async with Client(rig.target.uri) as client:
        await client["shop"]["orders"].delete_many({"_id": {"$lt": 5}})
    ended = await agent.run("cutover", "--yes", "--follow")
    assert ended.code == 0, said(ended)
    await agent.until(lambda s: s["services"]["restore"]["state"] == "done", what="restored", seconds=120)
    source, target = await rig.hashes()
    assert source == target
    async with Client(rig.target.uri) as client:
        assert "d5agent" not in await client.list_database_names()


async def test_a_capped_target_that_evicts_for_a_repair_is_refused(rig: AgentRig) -> None:
    async with Client(rig.source.uri) as client:
        await client["shop"]["old"].insert_many([{"_id": number, "n": "source"} for number in range(2)])
    async with Client(rig.target.uri) as client:
        await client["shop"].command({"create": "new", "capped": True, "size": 65_536, "max": 3})
        await client["shop"]["new"].insert_one({"_id": "there"})
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["old"].rename("new")  # of which no document was ever told
        await client["shop"]["new"].insert_many([{"_id": number} for number in range(10, 13)])
    await rig.until_captured(4)
    ended = await agent.run("start", "restore", "--follow")
    assert ended.code == _OPERATOR, said(ended)
    assert "equal" in said(ended)
    assert not [key for key in await rig.keys() if key.endswith("certificate.json")]
