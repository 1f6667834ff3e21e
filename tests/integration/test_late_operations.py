"""After the certificate applications write to MongoDB, and strays reach the source: nothing of either is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson import decode_all

from tests.integration.agent_rig import PATIENCE_SECONDS, Client, said

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent, Ended
    from tests.integration.agent_rig import AgentRig

OPERATOR = 78


async def moved_over(rig: AgentRig) -> Agent:
    """Return an agent whose restore is certified, after which the application has changed MongoDB."""
    for server in (rig.source, rig.target):
        async with Client(server.uri) as client:
            await client["shop"]["orders"].insert_many([{"_id": n, "n": 0} for n in (1, 77, 78)])
            await client["shop"]["sessions"].insert_one({"_id": 1, "untouched": True})
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].update_many({}, {"$inc": {"n": 1}})
    await rig.until_captured(3)
    await rig.restored(agent)
    async with Client(rig.target.uri) as client:
        await client["shop"]["orders"].update_one({"_id": 1}, {"$set": {"n": 999}})
        await client["shop"]["orders"].delete_one({"_id": 77})
    return agent


async def orders(rig: AgentRig) -> dict[Any, Any]:
    """Return what MongoDB has."""
    async with Client(rig.target.uri) as client:
        return {row["_id"]: row["n"] async for row in client["shop"]["orders"].find()}


async def cleaned(agent: Agent) -> None:
    """Wait for the end, after a restore that asked for a word."""
    await agent.until(
        lambda status: status["phase"] == "idle",
        what="cleaned",
        seconds=PATIENCE_SECONDS,
        failed_before={"restore", "monitor-restore"},
    )


async def typed(agent: Agent, *words: str) -> Ended:
    """Type a start that is followed, and that the operator must act upon."""
    ended = await agent.run("start", *words, "--follow")
    assert ended.code == OPERATOR, said(ended)
    return ended


async def test_no_command_after_the_certificate_reverts_an_application(rig: AgentRig) -> None:
    agent = await moved_over(rig)
    async with Client(rig.source_uri) as client:
        await client["shop"]["log"].insert_one({"_id": "stray"})
        await client["shop"]["orders"].update_one({"_id": 1}, {"$set": {"n": 5}})
        await client["shop"]["orders"].delete_one({"_id": 78})
        await client["shop"]["sessions"].delete_one({"_id": 1})
    await rig.until_captured(7)
    run_id = (await agent.status())["run_id"]
    for request in ("restore", "monitor-restore", "restore"):
        ended = await typed(agent, request)
        assert "4 operations reached the source after the certificate" in said(ended)
        assert f"d5agent start monitor-restore --accept-late {run_id}" in said(ended)
        assert await orders(rig) == {1: 999, 78: 1}
    refused = await agent.run("start", "monitor-restore", "--accept-late", "another-run")
    assert refused.code == OPERATOR
    assert "names another run" in said(refused)
    await agent.kill()
    await agent.start()
    await agent.call("start", "monitor-restore", "--accept-late", run_id)
    await cleaned(agent)
    assert await orders(rig) == {1: 999}
    async with Client(rig.target.uri) as client:
        assert await client["shop"]["log"].find_one() == {"_id": "stray"}
        assert await client["shop"]["sessions"].count_documents({}) == 0
    kept = [key for key in await rig.keys() if "/late/" in key]
    async with rig.store() as store:
        bodies = {key: await store.get(key) or b"" for key in kept if key.endswith(".bson")}
    found = [row for key, body in bodies.items() if key.endswith("000001.target.bson") for row in decode_all(body)]
    assert {"_id": 1, "n": 999} in found
    assert {"_id": 1, "untouched": True} in found
    assert "document_repaired" not in agent.log.read_text(encoding="utf-8")


async def test_discarded_late_operations_leave_mongodb_as_it_is(rig: AgentRig) -> None:
    agent = await moved_over(rig)
    async with Client(rig.source_uri) as client:
        await client["shop"].drop_collection("orders")
    await rig.until_captured(4)
    await typed(agent, "monitor-restore")
    assert "restore overwrites nothing of this" in (await agent.json("plan"))["notes"][0]
    run_id = (await agent.status())["run_id"]
    await agent.call("start", "monitor-restore", "--discard-late", run_id)
    await cleaned(agent)
    assert await orders(rig) == {1: 999, 78: 1}
    assert [key for key in await rig.keys() if key.endswith("events-000001.bson")]
