"""What somebody has done to the target behind the agent's back: each is found and named, by the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from d5agent.core.reports.certificate import certificate_key
from tests.integration.agent_rig import PATIENCE_SECONDS, Client, said

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

VALIDATOR = {"$jsonSchema": {"required": ["a"]}}


async def restored_agent(rig: AgentRig) -> Agent:
    """Both sides hold the same, restored and verified: documents, an index, a validator."""
    for server in (rig.source, rig.target):
        async with Client(server.uri) as client:
            await client["shop"].create_collection("orders", validator=VALIDATOR, validationLevel="moderate")
            number = 1.0 if server is rig.target else 1  # a shell writes 1.0: it is the same index
            index = {"key": {"a": number}, "name": "a_1"}
            await client["shop"].command({"createIndexes": "orders", "indexes": [index]})
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_many([{"_id": n, "a": 1, "b": {"c": 2, "d": 3}} for n in range(6)])
    await rig.until_captured(6)
    # The certificate shows how far capture was behind: known after the first second of a run.
    await agent.until(
        lambda status: status["capture"]["lag_seconds"] is not None, what="the lag is known", seconds=PATIENCE_SECONDS
    )
    await rig.restored(agent)
    return agent


async def tamper(rig: AgentRig) -> None:
    """Change the target in each of the ways that a comparison must find."""
    async with Client(rig.target.uri) as client:
        orders = client["shop"]["orders"]
        await orders.update_one({"_id": 0}, {"$set": {"a": 1.0}})
        await orders.replace_one({"_id": 1}, {"b": {"c": 2, "d": 3}, "a": 1})
        await orders.delete_one({"_id": 2})
        await orders.update_one({"_id": 3}, {"$set": {"b.d": 4}})
        await orders.replace_one({"_id": 4}, {"a": 1, "b": {"d": 3, "c": 2}})
        await orders.insert_one({"_id": "extra", "a": 1})
        await orders.drop_index("a_1")
        await client["shop"]["beside"].insert_many([{"_id": n} for n in range(3)])
        await client["shop"].command({"collMod": "orders", "validator": {}, "validationLevel": "strict"})


async def test_a_prefix_without_a_log_is_named_by_whatever_needs_one(rig: AgentRig) -> None:
    rig.config["store"]["prefix"] = "wrong/"
    agent = rig.agent()
    for verb in (["verify"], ["plan"], ["plan", "--divergence"], ["log", "verify"], ["log", "ls"], ["log", "cat"]):
        ended = await agent.run(*verb)
        assert ended.code == 78, verb
        assert f"no log below s3://{rig.bucket}/wrong" in said(ended)
        assert "[store] bucket and prefix" in said(ended)
    full = await agent.run("verify", "--full")
    assert full.code == 0
    assert f"report: s3://{rig.bucket}/wrong/reports/no-run/verify-full-" in said(full)


async def test_each_difference_is_found_and_named(rig: AgentRig) -> None:
    agent = await restored_agent(rig)
    equal = await agent.json("verify", "--full")
    assert (equal["equal"], equal["indexes"], equal["counts"]) == (True, [], [])
    await tamper(rig)
    ended = await agent.run("verify", "--full", "--json")
    assert ended.code == 78
    report: dict[str, Any] = json.loads(ended.out)
    in_orders = [row for row in report["differences"] if row["namespace"] == "shop.orders"]
    found = {row["id"]: (row["kind"], row["fields"]) for row in in_orders}
    assert found == {
        "0": ("different", ["a (int32 became double)"]),
        "1": ("different", ["(order of fields)"]),
        "2": ("missing", []),
        "3": ("different", ["b.d"]),
        "4": ("different", ["b (order of fields)"]),
        "extra": ("extra", []),
    }
    assert report["namespaces"] == {
        "shop.beside": {"compared": 3, "different": 3, "repaired": 0},
        "shop.orders": {"compared": 7, "different": 6, "repaired": 0},
    }
    assert report["counts"] == ["shop.beside: 0 documents in the source, 3 in the target"]
    assert report["indexes"] == [
        "shop.beside: the collection is missing in the source",
        'shop.orders: index a_1 is missing in the target: {"a": 1}',
        'shop.orders: option validationLevel is missing in the target: "moderate"',
        'shop.orders: option validator is missing in the target: {"$jsonSchema": {"required": ["a"]}}',
    ]
    touched = json.loads((await agent.run("verify", "--json")).out)
    assert {row["id"] for row in touched["differences"]} == {"0", "1", "2", "3", "4"}  # nothing touched "extra"
    assert touched["indexes"] == report["indexes"][1:]
    assert report["report"] in await rig.keys()
    shown = said(await agent.run("verify"))
    assert "a (int32 became double)" in shown
    assert "index a_1 is missing" in shown


async def test_a_restore_ends_with_a_certificate_that_shows_when_it_was_altered(rig: AgentRig) -> None:
    agent = await restored_agent(rig)
    report = await agent.json("verify")
    whole = {"key": (key := certificate_key(report["run_id"])), "url": f"s3://{rig.bucket}/{key}"}
    assert report["certificate"] == {**whole, "valid": True, "reason": ""}
    async with rig.store() as store:
        body = await store.get(report["certificate"]["key"])
        page = await store.get(certificate_key(report["run_id"], "html"))
        assert body is not None
        assert page is not None
        certificate = json.loads(body)
        await store.put(report["certificate"]["key"], body.replace(b'"different": 0', b'"different": 1', 1))
    assert certificate["result"]["equal"] is True
    assert certificate["result"]["namespaces"]["shop.orders"] == {"compared": 6, "different": 0, "repaired": 0}
    assert certificate["log"]["operations"] >= 6
    assert {span["what"] for span in certificate["timeline"]["spans"]} >= {"replication", "backup"}
    assert certificate["timeline"]["capture"]["points"]
    assert b"Both databases are equal" in page
    altered = await agent.run("verify", "--json")
    assert altered.code == 78
    assert json.loads(altered.out)["certificate"]["reason"] == "the certificate was altered after it was issued"

    async with Client(rig.target.uri) as client:  # an application has moved
        await client["shop"]["orders"].update_one({"_id": 3}, {"$set": {"b.d": 4}})
        await rig.restored(agent)
        assert (await certificate_in(rig, agent))["issued_at"] == certificate["issued_at"]
        moved = await client["shop"]["orders"].find_one({"_id": 3})
        assert moved is not None
        assert moved["b"]["d"] == 4
    refused = said(await agent.run("start", "clean", "--follow"))
    assert "the certificate was altered" in refused
    assert "bring the certificate's object back" in refused


async def certificate_in(rig: AgentRig, agent: Agent) -> dict[str, Any]:
    """Return the certificate of the run."""
    key = certificate_key((await agent.json("status"))["run_id"])
    async with rig.store() as store:
        body = await store.get(key)
    assert body is not None
    found: dict[str, Any] = json.loads(body)
    return found


async def test_after_the_certificate_another_target_is_refused_and_another_name_is_not(rig: AgentRig) -> None:
    agent = await restored_agent(rig)
    certified = rig.target.uri
    rig.config["target"] = {"uri": rig.source.uri}  # another cluster, with the same documents: it would be equal
    rig.agent()  # writes the configuration, which the daemon reads again for the target
    before = await rig.keys()
    for words in (["verify"], ["start", "monitor-restore", "--follow"], ["start", "clean", "--follow"]):
        ended = await agent.run(*words)
        assert ended.code == 78, said(ended)
        assert "the target is not the cluster that the certificate names" in said(ended)
        assert f"s3://{rig.bucket}/" in said(ended)
    assert set(before) <= set(await rig.keys())
    rig.config["target"] = {"uri": certified.replace("127.0.0.1", "localhost")}
    rig.agent()
    ended = await agent.run("verify")
    assert ended.code == 0, said(ended)
