"""What DMS never delivered, on real servers: named in the certificate, and clean waits for an operator's word."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.integration.agent_rig import PATIENCE_SECONDS, Client, said

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

OPERATOR = 78


async def diverged(rig: AgentRig) -> None:
    """Let both servers hold the same, but for one document of each difference."""
    for server in (rig.source, rig.target):
        async with Client(server.uri) as client:
            await client["shop"]["orders"].insert_many([{"_id": n, "n": 0} for n in range(300)])
    async with Client(rig.source.uri) as client:
        await client["shop"]["orders"].insert_many([{"_id": "lost"}, {"_id": "old", "n": 1}])
    async with Client(rig.target.uri) as client:
        await client["shop"]["orders"].insert_many([{"_id": "undelivered"}, {"_id": "old", "n": 2}])
        await client["shop"]["local"].insert_many([{"_id": n} for n in range(7)])


async def report_of(rig: AgentRig, name: str) -> dict[str, Any]:
    """Return a report of the run."""
    (key,) = [key for key in await rig.keys() if key.startswith("reports/") and key.endswith(f"/{name}")]
    async with rig.store() as store:
        report: dict[str, Any] = json.loads(await store.get(key) or b"")
    return report


async def compared_nothing(rig: AgentRig) -> None:
    """Let the stored report say that the restore had no time for the comparison."""
    report = await report_of(rig, "outside.json")
    assert report["target_position"]
    unfinished = {**report, "ended_at": None, "found_at": None, "collections": {}, "differences": [], "unchecked": []}
    async with rig.store() as store:
        await store.put(f"reports/{report['run_id']}/outside.json", json.dumps(unfinished).encode())


async def test_what_dms_never_delivered_is_kept_until_it_is_accepted(rig: AgentRig) -> None:
    await diverged(rig)
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].update_many({"_id": {"$lt": 50}}, {"$set": {"n": 1}})
        await client["shop"]["orders"].insert_one({"_id": "new"})
    await rig.until_captured(51)
    restored = await agent.run("start", "restore", "--follow")
    assert restored.code == 0, said(restored)
    assert (await report_of(rig, "certificate.json"))["outside"]["state"] in {"complete", "unfinished"}
    await compared_nothing(rig)
    async with Client(rig.target.uri) as client:  # the applications have moved
        await client["shop"]["orders"].update_one({"_id": 100}, {"$set": {"n": 7}})
    run_id = (await agent.status())["run_id"]
    refused = await agent.run("start", "clean", "--follow")
    assert refused.code == OPERATOR
    assert "missing or different in the target" in said(refused)
    assert f"--accept-differences {run_id}" in said(refused)
    assert (await agent.status())["outside"]["is_complete"]
    found = await report_of(rig, "outside.json")
    assert {(row["id"], row["kind"]) for row in found["differences"]} == {
        ("lost", "missing"),
        ("old", "different"),
        ("undelivered", "extra"),
    }
    assert [row["id"] for row in found["written_since"]] == ["100"]
    assert found["extra_collections"] == {"shop.local": 7}
    assert await rig.operations()
    await agent.call("start", "clean", "--accept-differences", run_id)
    await agent.until(
        lambda status: status["services"]["clean"]["state"] == "done", what="clean", seconds=PATIENCE_SECONDS
    )
    final = await report_of(rig, "final.json")
    assert (final["outside"]["missing"], final["outside"]["different"], final["outside"]["extra"]) == (1, 1, 1)
    assert final["differences_accepted_at"]
    async with Client(rig.target.uri) as client:
        assert await client["shop"]["orders"].find_one({"_id": "lost"}) is None
