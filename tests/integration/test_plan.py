"""The dry run on real servers: it writes nothing, and what it foresees comes true."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.integration.agent_rig import Client, said

if TYPE_CHECKING:
    from d5agent.drill.servers import Mongod
    from tests.integration.agent_rig import AgentRig

WRITES = ("insert", "update", "delete")
COMMANDS = (
    *("insert", "update", "delete", "findAndModify", "create", "createIndexes", "drop", "dropDatabase", "dropIndexes"),
    *("renameCollection", "collMod", "applyOps", "bulkWrite"),
)


async def written(server: Mongod) -> dict[str, Any]:
    """What a server counts of writes, whoever asked for them over the wire."""
    async with Client(server.uri) as client:
        status = await client.admin.command("serverStatus")
    commands = status["metrics"]["commands"]
    counts = {name: status["opcounters"][name] for name in WRITES}
    return counts | {f"{name} commands": commands.get(name, {}).get("total", 0) for name in COMMANDS}


async def conflicting(rig: AgentRig) -> None:
    """Let source and target have documents, and the target a unique index that the source lacks."""
    for server in (rig.source, rig.target):
        async with Client(server.uri) as client:
            await client["shop"]["orders"].insert_many([{"_id": n, "u": n} for n in range(50)])
    async with Client(rig.target.uri) as client:
        orders = client["shop"]["orders"]
        await orders.insert_one({"_id": "holder", "u": "mine"})
        await orders.create_index("u", unique=True, sparse=True)


async def test_a_plan_writes_nothing_to_either_database(rig: AgentRig) -> None:
    await conflicting(rig)
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        orders = client["shop"]["orders"]
        await orders.update_many({"_id": {"$lt": 20}}, {"$inc": {"u": 100}})
        await orders.insert_one({"_id": "new", "u": "mine"})
        await orders.rename("moved")
    await rig.until_captured(22)
    await agent.kill()  # the daemon writes its marks: here the plan alone is looked at
    keys, before = set(await rig.keys()), [await written(server) for server in (rig.source, rig.target)]
    ended = await agent.run("plan", "--divergence", "--json")
    assert [await written(server) for server in (rig.source, rig.target)] == before
    added = set(await rig.keys()) - keys
    assert [key.split("/")[0] for key in added] == ["reports"]
    assert "/plan-" in next(iter(added))
    assert ended.code == 0


async def test_a_conflict_that_is_foreseen_is_the_one_that_restore_meets(rig: AgentRig) -> None:
    await conflicting(rig)
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        orders = client["shop"]["orders"]
        for number in range(20):  # values that go round are none
            await orders.update_one({"_id": number}, {"$set": {"u": (number + 1) % 20}})
        await orders.insert_one({"_id": "new", "u": "mine"})
    await rig.until_captured(21)
    ended = await agent.run("plan")
    assert ended.code == 78
    assert 'shop.orders u_1 {"u": "mine"}: new and holder (in the target, and not touched)' in said(ended)
    assert "restore would not get through" in said(ended)
    assert f"report: s3://{rig.bucket}/reports/" in said(ended)
    restored = await agent.run("start", "restore", "--follow")
    assert restored.code == 78
    assert "new" in said(restored)
    async with Client(rig.target.uri) as client:
        await client["shop"]["orders"].delete_one({"_id": "holder"})
    assert (await agent.run("plan")).code == 0


async def test_undelivered_writes_on_touched_documents_are_named(rig: AgentRig) -> None:
    for server in (rig.source, rig.target):
        async with Client(server.uri) as client:
            await client["shop"]["orders"].insert_many([{"_id": n, "a": 1, "tags": [1, 2, 3]} for n in (1, 2, 3)])
    async with Client(rig.target.uri) as client:
        await client["shop"]["orders"].update_one({"_id": 1}, {"$set": {"a": 999}})
        await client["shop"]["orders"].delete_one({"_id": 2})
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        orders = client["shop"]["orders"]
        await orders.update_many({}, {"$set": {"b": 5}})
        await orders.update_one({"_id": 3}, {"$push": {"tags": 4}, "$unset": {"a": 1}})
    await rig.until_captured(4)
    ended = await agent.run("plan", "--divergence")
    assert "whose last write in MongoDB DMS had not delivered: 2" in said(ended)
    assert "shop.orders 1: written in MongoDB: a" in said(ended)
    assert "shop.orders 2: deleted in MongoDB" in said(ended)
    backed_up = await agent.run("start", "backup", "--follow")
    assert backed_up.code == 0, said(backed_up)
    (key,) = [key for key in await rig.keys() if key.endswith("/undelivered.json")]
    async with rig.store() as store:
        report = json.loads(await store.get(key) or b"")
    if report["state"] == "complete":  # the dump of so little may be stored first
        assert {row["id"] for row in report["undelivered"]} == {"1", "2"}
        assert "undelivered_writes_found" in agent.log.read_text(encoding="utf-8")
