"""backup with the real mongodump and a real S3 server: it can be restored, and what goes wrong ends clearly."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest

from d5agent.drill.s3_proxy import S3Proxy, lose_answer, refuse, stall, tear_upload
from d5agent.drill.servers import Mongod
from d5agent.drill.tools import find_tool
from d5agent.drill.values import ODD_COLLECTIONS, ODD_DATABASES, SINGLE_IDS, any_id, every_value, odd_fields
from tests.integration.agent_rig import Client, said
from tests.integration.backup_rig import (
    Shell,
    TamedMongodump,
    backup_state,
    contents,
    empty,
    fill,
    half_way,
    require_whole,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from d5agent.drill.s3_proxy import Act
    from tests.integration.agent_rig import AgentRig


@pytest.fixture
def mongodump(rig: AgentRig) -> TamedMongodump:
    """The mongodump of the rig's agent, which can be told to hang or to die."""
    tamed = TamedMongodump(rig.folder / "tool")
    rig.config["backup"]["mongodump"] = str(tamed.path)
    return tamed


async def load_oddities(server: Mongod) -> None:
    """Fill a server with every BSON type, ids of every kind, odd names, and indexes of many kinds."""
    dice = random.Random(5)
    async with Client(server.uri) as client:
        for database in ODD_DATABASES:
            await client[database]["values"].insert_one({"_id": 1, **every_value()})
        shop = client[ODD_DATABASES[0]]
        await shop["ids"].insert_many([{"_id": id_} for id_ in SINGLE_IDS])
        await shop["more ids"].insert_many([{"_id": any_id(dice, number)} for number in range(300)])
        for number, name in enumerate(ODD_COLLECTIONS):
            await shop[name].insert_many([{"_id": n, "n": number, **odd_fields(dice)} for n in range(3)])
        await shop.create_collection("empty")
        await shop.create_collection("capped", capped=True, size=100_000)
        orders = shop["orders"]
        await orders.insert_many([{"_id": n, "a": n, "b": str(n), "at": [n, 1], "text": f"word{n}"} for n in range(50)])
        await orders.create_index([("a", 1), ("b", -1)], unique=True, name="odd name é $")
        await orders.create_index("b", partialFilterExpression={"a": {"$gt": 3}}, sparse=False)
        await orders.create_index("when", expireAfterSeconds=3600)
        await orders.create_index([("at", "2d")])
        await orders.create_index([("text", "text")], default_language="spanish")
        await orders.create_index("c", collation={"locale": "es", "strength": 1})


async def load_archive(rig: AgentRig, server: Mongod, archive: dict[str, Any], *options: str) -> None:
    """Load an archive of the bucket into a server, and alone what mongorestore leaves out otherwise."""
    odd_ones = [name for name in archive["documents"] if "\n" in name]
    async with rig.store() as store:
        body = await store.get(archive["key"])
    for more in ((), *(("--nsInclude", name) for name in odd_ones)):
        process = await asyncio.create_subprocess_exec(
            *(str(find_tool("mongorestore")), "--archive", "--gzip", "--uri", server.uri, *options, *more),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(body)
        assert process.returncode == 0, output.decode()


@pytest.fixture
async def third(tmp_path: Path) -> AsyncIterator[Mongod]:
    """Another server, with nothing in it."""
    server = Mongod(tmp_path / "third")
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


async def test_a_backup_restores_into_another_server_with_the_same_hashes(rig: AgentRig, third: Mongod) -> None:
    servers = {"target": rig.target, "source": rig.source}
    for server in servers.values():
        await load_oddities(server)
    agent = await rig.captured_agent()
    await agent.call("start", "backup", "--follow")
    await require_whole(rig, agent)
    assert "mongorestore leaves out" in await agent.call("backups", "show")
    for manifest in (await agent.json("backups", "show"))["manifests"]:
        before = await contents(servers[manifest["side"]])
        options = ["--noOptionsRestore"] if manifest["side"] == "source" else []
        await empty(third)
        for archive in manifest["archives"]:
            await load_archive(rig, third, archive, *options)
        after = await contents(third)
        assert {n: (before.get(n), after.get(n)) for n in {*before, *after} if before.get(n) != after.get(n)} == {}
        documents = {c: n for archive in manifest["archives"] for c, n in archive["documents"].items()}
        assert set(documents) == set(before)
        async with Client(third.uri) as client:
            for namespace, count in documents.items():
                database, _, name = namespace.partition(".")
                assert await client[database][name].count_documents({}) == count, namespace


async def test_backups_are_listed_shown_and_checked(rig: AgentRig) -> None:
    await fill(rig.target, "shop", mebibytes=1)
    agent = await rig.captured_agent()
    assert await agent.call("backups", "ls") == "there is no backup\n"
    none = await agent.run("backups", "show")
    assert (none.code, "there is no backup" in said(none)) == (78, True)
    await agent.call("start", "backup", "--follow")
    run_id = (await agent.status())["run_id"]
    (target,) = [row for row in (await agent.json("backups", "ls"))["backups"] if row["side"] == "target"]
    assert (target["run_id"], target["databases"], target["documents"]) == (run_id, 1, 8)
    listed = await agent.call("backups", "ls")
    assert f"{run_id}  target  {target['stored_at']}  1 databases, 8 documents, {target['bytes']:,} bytes" in listed
    key = f"dump/{run_id}/target/shop.archive.gz"
    shown = await agent.call("backups", "show", run_id)
    assert f"  s3://{rig.bucket}/{key}  1 collections, 8 documents, " in shown
    assert "not in it: users and roles" in shown
    assert "whole: the backup of run" in await agent.call("backups", "verify", run_id)
    unknown = await agent.run("backups", "cat", f"dump/{run_id}/target/none.archive.gz")
    assert (unknown.code, "no manifest names such an archive" in said(unknown)) == (78, True)
    async with rig.store() as store:
        archive = await store.get(key)
        assert archive is not None
        await store.put(key, archive[:-1] + bytes([archive[-1] ^ 1]))
    damaged = await agent.run("backups", "verify")
    assert (damaged.code, "not whole" in said(damaged), "sha256 differs" in said(damaged)) == (78, True, True)
    code, output = await Shell(rig).run(
        f"d5agent backups cat s3://{rig.bucket}/{key} | cat > /dev/null; exit ${{PIPESTATUS[0]}}"
    )
    assert (code, "do not use it" in output) == (78, True)


@pytest.mark.parametrize(
    ("said_version", "is_ok", "found"),
    [
        (None, False, "mongodump 100.7.0 fails on Amazon DocumentDB"),
        ("100.12.2", True, "100.12.2; AWS supports MongoDB Database Tools up to 100.11.0 on DocumentDB"),
        ("100.11.0", True, "100.11.0"),
    ],
)
async def test_the_preflight_knows_which_mongodump_may_dump_documentdb(
    rig: AgentRig, mongodump: TamedMongodump, said_version: str | None, *, is_ok: bool, found: str
) -> None:
    rig.state.mkdir(parents=True)
    rig.config["backup"]["check_version"] = True
    if said_version is not None:
        mongodump.claim(said_version)
    rows = {row["what"]: row for row in json.loads((await rig.agent().run("check", "--json")).out)["checks"]}
    source, target = rows["mongodump, source"], rows["mongodump, target"]
    assert (source["ok"], source["found"].startswith(found)) == (is_ok, True), source
    assert (target["ok"], target["found"]) == (True, said_version or "100.7.0")


async def test_a_dump_that_dies_fails_the_backup_which_can_be_retried_alone(
    rig: AgentRig, mongodump: TamedMongodump
) -> None:
    for database in ("fine", "shop"):
        await fill(rig.target, database, mebibytes=1)
    mongodump.tell("shop", "die")
    agent = await rig.captured_agent()
    await agent.call("start", "restore")
    row = await backup_state(agent, "failed")
    assert "mongodump failed" in row["error"]
    assert "connection closed unexpectedly" in row["error"]
    listed = (await agent.json("backups", "ls"))["backups"]
    assert not [row for row in listed if row["side"] == "target" and row["is_stored"]]
    status = await agent.status()
    assert status["services"]["restore"]["state"] == "pending"
    mongodump.tell("shop", "")
    ended = await agent.run("start", "backup", "--follow")
    assert ended.code == 0, said(ended)
    await agent.until(lambda now: now["services"]["restore"]["state"] == "done", what="restored", seconds=40)
    await require_whole(rig, agent)


async def test_a_mongodump_that_hangs_is_ended_with_what_it_said_last(rig: AgentRig, mongodump: TamedMongodump) -> None:
    await fill(rig.target, "shop", mebibytes=1)
    rig.config["backup"]["stall_seconds"] = 1
    mongodump.tell("shop", "hang")
    agent = await rig.captured_agent()
    await agent.call("start", "backup")
    row = await backup_state(agent, "failed")
    assert "has sent nothing for 1 s" in row["error"]
    assert "the server has not answered for a while" in row["error"]
    await mongodump.until_gone()
    assert await half_way(rig) == []
    mongodump.tell("shop", "")
    await agent.call("start", "backup", "--follow")
    await require_whole(rig, agent)


async def test_a_backup_that_is_killed_leaves_no_orphan_and_goes_on_with_what_is_not_stored(
    rig: AgentRig, mongodump: TamedMongodump
) -> None:
    for database in ("fine", "shop"):
        await fill(rig.target, database, mebibytes=1)
    mongodump.tell("shop", "hang")
    agent = await rig.captured_agent()
    await agent.call("start", "backup")
    await agent.until(
        lambda status: status["services"]["backup"].get("target_databases_stored") == 1, what="one stored", seconds=40
    )
    assert len(mongodump.alive()) == 1
    assert [key.rpartition("/")[2] for key in await half_way(rig)] == ["shop.archive.gz"]
    await agent.kill()
    await mongodump.until_gone()
    mongodump.tell("shop", "")
    await agent.start()
    await backup_state(agent, "done")
    first, again = mongodump.dumped()[:2], mongodump.dumped()[2:]
    assert sorted(first) == ["fine", "shop"], "side by side, in whatever order"
    assert again == ["shop"], "what was stored is not dumped again"
    assert {path.suffix for path in rig.state.iterdir()} <= {".json", ".sock", ""}
    await require_whole(rig, agent)


async def test_a_stop_ends_the_dumps(rig: AgentRig, mongodump: TamedMongodump) -> None:
    await fill(rig.target, "shop", mebibytes=1)
    mongodump.tell("shop", "hang")
    agent = await rig.captured_agent()
    await agent.call("start", "backup")
    await mongodump.until_begun(1)
    await agent.call("stop", "backup")
    assert mongodump.alive() == []
    assert await half_way(rig) == []


async def test_a_mongodump_that_is_killed_half_way_is_a_failed_backup(
    rig: AgentRig, mongodump: TamedMongodump, proxy: S3Proxy
) -> None:
    await fill(rig.target, "shop", mebibytes=4)
    agent = await rig.captured_agent()
    fault = proxy.fail(stall(), method="POST", key_prefix="dump/")
    await agent.call("start", "backup")
    await fault.until_met()
    os.kill(mongodump.alive()[0], signal.SIGKILL)
    fault.lift()
    row = await backup_state(agent, "failed")
    assert "was killed (SIGKILL)" in row["error"]
    assert await half_way(rig) == []
    await agent.call("start", "backup", "--follow")
    await require_whole(rig, agent)


FAULTS: dict[str, tuple[Act, str, int]] = {
    "a part is refused for a moment": (refuse(503, "SlowDown"), "PUT", 2),
    "a part is torn": (tear_upload(), "PUT", 2),
    "the answer to a part is lost": (lose_answer(), "PUT", 2),
    "the beginning or the end fails": (refuse(500, "InternalError"), "POST", 2),
    "the answer to the beginning is lost": (lose_answer(), "POST", 2),
}


@pytest.mark.system
async def test_faults_of_s3_that_pass_do_not_fail_a_backup(rig: AgentRig, proxy: S3Proxy) -> None:
    await fill(rig.target, "shop", mebibytes=18)
    agent = await rig.captured_agent()
    for name, (act, method, times) in FAULTS.items():
        fault = proxy.fail(act, method=method, key_prefix="dump/", times=times)
        await agent.call("start", "backup", "--follow")
        assert fault.met == times, name
        await require_whole(rig, agent)
        async with rig.store() as store:
            await store.delete([key for key in await rig.keys() if key.startswith("dump/")])


async def test_faults_of_s3_that_last_are_waited_for_and_those_that_do_not_pass_fail_the_backup(
    rig: AgentRig, proxy: S3Proxy
) -> None:
    await fill(rig.target, "shop", mebibytes=9)
    agent = await rig.captured_agent()
    refused = proxy.fail(refuse(403, "AccessDenied"), method="PUT", key_prefix="dump/")
    await agent.call("start", "backup")
    row = await backup_state(agent, "failed")
    assert "AccessDenied" in row["error"]
    assert "s3:PutObject" in row["hint"]
    refused.lift()
    outage = proxy.fail(refuse(503, "SlowDown"), method="PUT", key_prefix="dump/")
    await agent.call("start", "backup")
    row = await backup_state(agent, "waiting")
    assert "S3 did not answer well" in row["error"]
    outage.lift()
    await backup_state(agent, "done")
    await require_whole(rig, agent)


@pytest.mark.system
async def test_a_backup_that_is_killed_at_random_moments_ends_complete_and_leaves_nothing(
    rig: AgentRig, mongodump: TamedMongodump
) -> None:
    names = [f"shop{number}" for number in range(6)]
    for name in names:
        await fill(rig.target, name, mebibytes=10)
    agent = await rig.captured_agent()
    await agent.call("start", "backup")
    dice, stored, begun = random.Random(5), set[str](), 0
    for _ in range(8):
        await asyncio.sleep(dice.uniform(0, 1.2))  # the moment of a power cut is nobody's condition
        await agent.kill()
        await mongodump.until_gone()
        assert not stored & set(mongodump.dumped()[begun:]), "what was stored was dumped again"
        begun = len(mongodump.dumped())
        stored = {
            key.rpartition("/")[2].removesuffix(".archive.json") for key in await rig.keys() if "archive.json" in key
        }
        await agent.start()
    await backup_state(agent, "done")
    assert len(mongodump.dumped()) > len(names), "no dump was killed: then nothing is proved"
    await require_whole(rig, agent)
    assert {path.suffix for path in rig.state.iterdir()} <= {".json", ".sock", ""}
