"""What somebody writes to a real MongoDB after its dump can be read again, with the tools of an operator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from d5agent.drill.stage import TARGET_ROLES, WRITE_BLOCK_ROLE
from tests.fakes.kept import kept_documents
from tests.integration.agent_rig import Client, agent_rig, said

if TYPE_CHECKING:
    from pathlib import Path

    from d5agent.drill.agent import Agent
    from d5agent.drill.child import Start
    from d5agent.drill.s3_server import S3Server
    from tests.integration.agent_rig import AgentRig


async def stored(rig: AgentRig, *folders: str) -> dict[str, bytes]:
    """Return the objects below some folders of reports."""
    keys = [key for key in await rig.keys() if any(folder in key for folder in folders)]
    async with rig.store() as store:
        return {key: await store.get(key) or b"" for key in keys}


async def dumped(rig: AgentRig) -> Agent:
    """Return an agent that has captured writes of the outage, and has the dumps of both sides."""
    before = [{"_id": number, "n": "before"} for number in range(6)]
    for uri in (rig.source.uri, rig.target.uri):
        async with Client(uri) as client:
            await client["shop"]["orders"].insert_many(before)
            await client["shop"]["people"].insert_many(before)
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].update_many({}, {"$set": {"n": "outage"}})
    await rig.until_captured(6)
    ended = await agent.run("start", "backup", "--follow")
    assert ended.code == 0, said(ended)
    return agent


async def restored(rig: AgentRig, agent: Agent) -> dict[str, Any]:
    """Restore, and return what the certificate says of overwritten documents."""
    await rig.restored(agent)
    (body,) = (await stored(rig, "/certificate.json")).values()
    found: dict[str, Any] = json.loads(body)["overwritten"]
    return found


async def test_what_was_written_after_the_dump_can_be_read_again(
    tmp_path: Path,
    source_server: Mongod,
    s3_server: S3Server,
    bucket: str,
    agent_start: Start,
    clean_databases: None,  # noqa: ARG001 -- asked for, so that the source is empty
) -> None:
    root = Credentials(username="root", password="hush-root")
    target = Mongod(tmp_path / "locked", options=ServerOptions(credentials=root))  # only such a target can be closed
    await target.start()
    try:
        async with Client(target.uri) as client, agent_rig(source_server, target, s3_server, bucket) as rig:
            rig.start = agent_start
            await client.admin.command(WRITE_BLOCK_ROLE)
            await client.admin.command({"createUser": "agent", "pwd": "hush", "roles": TARGET_ROLES})
            at = f"127.0.0.1:{target.port}/?replicaSet=rs0&authSource=admin"
            rig.config["target"]["uri"] = f"mongodb://agent:hush@{at}"
            await everything_is_kept(rig, client)
    finally:
        await target.kill()


async def everything_is_kept(rig: AgentRig, somebody: Client) -> None:
    """Write, delete, insert, replace a collection and rename one, between the dump and the restore."""
    agent = await dumped(rig)
    shop = somebody["shop"]
    await shop["orders"].update_one({"_id": 1}, {"$set": {"n": "of MongoDB"}})
    await shop["orders"].delete_one({"_id": 2})
    await shop["orders"].insert_one({"_id": 3.5, "n": "of MongoDB"})
    await (await shop["people"].aggregate([{"$match": {"_id": 4}}, {"$out": "chosen"}])).to_list()
    await shop["people"].rename("persons")
    found = await restored(rig, agent)
    assert (found["state"], found["why"]) == ("complete", "")
    assert {"shop.people", "shop.persons", "shop.chosen"} <= set(found["moved"])
    objects = await stored(rig, "/overwritten/")
    assert found["key"] in objects
    kept = kept_documents(objects)
    orders = [{"_id": 1, "n": "of MongoDB"}, {"_id": 3.5, "n": "of MongoDB"}, ("2",)]
    assert sorted(kept["shop.orders"], key=str) == sorted(orders, key=str)
    assert kept["shop.chosen"] == [{"_id": 4, "n": "before"}]
    assert len(kept["shop.persons"]) == 6
    now: dict[float, str] = {document["_id"]: document["n"] async for document in shop["orders"].find()}
    assert now == {3.5: "of MongoDB"} | dict.fromkeys(range(6), "outage")
