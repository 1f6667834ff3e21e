"""The daemon as a process: it drains, is killed, moves to another host, keeps secrets, and says what it does."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from d5agent.drill.child import start_process
from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from d5agent.drill.tools import find_tool
from tests.integration.agent_rig import Client, said

if TYPE_CHECKING:
    from d5agent.drill.child import Start
    from tests.integration.agent_rig import AgentRig


@pytest.fixture
def agent_start() -> Start:
    """Every agent of this file is started as on an operator's machine."""
    return start_process


async def test_a_stop_by_sigterm_commits_what_is_in_hand(rig: AgentRig) -> None:
    rig.config["capture"]["max_segment_seconds"] = 60  # nothing is due by age
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_many([{"_id": n} for n in range(50)])
    assert not await rig.operations()
    await agent.stop()
    assert len(await rig.operations()) == 50
    assert "daemon_drained exit=0" in agent.log.read_text(encoding="utf-8").replace("event=", "")


async def test_after_sigkill_it_carries_on_with_the_phase_in_the_state_file(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
        await rig.until_captured(1)
        await agent.kill()
        await client["shop"]["orders"].insert_one({"_id": 2})
    assert (rig.state / "control.sock").exists()  # stale: replaced by the next start
    await agent.start()
    operations = await rig.until_captured(2)
    assert len(operations) == 2
    assert stat.S_IMODE((rig.state / "control.sock").stat().st_mode) == 0o600


async def test_a_lost_host_is_replaced_by_one_with_an_empty_disk(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    run_id = (await agent.status())["run_id"]
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
        await rig.until_captured(1)
        await agent.stop()  # its record says that the log is free: nobody need wait for it to show no life
        shutil.rmtree(rig.state)
        await client["shop"]["orders"].insert_one({"_id": 2})
    await agent.start()
    assert len(await rig.until_captured(2)) == 2
    assert (await agent.status())["run_id"] == run_id
    assert (await agent.json("log", "verify"))["whole"]


async def test_the_status_has_the_shape_that_others_rely_on(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": 1})
    await rig.until_captured(1)
    await rig.restored(agent)
    values = await agent.json("status")
    assert values["phase"] == "restore"
    assert {"state", "reason", "since", "error", "hint"} <= set(values["services"]["replication"])
    assert {"operations", "bytes", "segments", "lag_seconds", "last_cluster_time"} <= set(values["capture"])
    assert {"operations_total", "operations_applied", "documents_written", "eta_seconds"} <= set(values["restore"])
    assert values["restore"]["operations_applied"] == values["restore"]["operations_total"]
    assert (values["verify"]["compared"], values["verify"]["different"]) == (1, 0)
    assert len(values["capture"]["last_cluster_time"]) == 2
    table = await agent.call("status")
    for word in ("replication", "running", "restore", "done", "1 documents compared"):
        assert word in " ".join(table.split())


async def test_seven_collections_written_at_once_have_keys_of_their_own(rig: AgentRig) -> None:
    rig.config["capture"]["max_segment_seconds"] = 60  # one cut: what is read when the agent stops
    agent = await rig.captured_agent()
    names = [f"orders{number}" for number in range(7)]
    async with Client(rig.source_uri) as client:
        for name in names:
            await client["shop"][name].insert_many([{"_id": n} for n in range(20)])
    await agent.stop()
    keys = [key for key in await rig.keys() if key.startswith("replication/") and "/.log/" not in key]
    assert {key.split("/")[2] for key in keys if key.startswith("replication/shop/")} == set(names)
    assert not [key for key in keys if key.startswith("replication/.mixed/")]


async def test_following_a_service_shows_its_events_and_ends_with_its_result(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    out = await agent.call("start", "restore", "--follow")
    for event in ("restore: accepted", "backup_stored", "fence_drawn", "log_checked", "restore_verified"):
        assert event in out
    ended = await agent.run("stop", "replication")
    assert ended.code == 0
    assert (await agent.status())["services"]["replication"]["state"] == "stopped"


async def test_the_log_can_be_listed_read_and_checked(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_one({"_id": "a/b", "n": 1})
        await client["shop"]["other"].insert_one({"_id": 2})
    await rig.until_captured(2)
    segments = (await agent.json("log", "ls", "replication/shop/"))["segments"]
    assert sum(row["count"] for row in segments) == 2
    lines = (await agent.call("log", "cat", "replication/shop/orders")).splitlines()
    event = json.loads(lines[0])
    assert event["operationType"] == "insert"
    assert event["fullDocument"] == {"_id": "a/b", "n": {"$numberInt": "1"}}
    assert "the log is whole" in said(await agent.run("log", "verify"))
    missing = await agent.run("log", "cat", "replication/no/such")
    assert missing.code == 78
    assert "no commit names such a segment" in said(missing)


async def test_the_plan_says_what_restore_would_do_and_writes_nothing(rig: AgentRig) -> None:
    for server in (rig.source, rig.target):
        async with Client(server.uri) as client:
            await client["shop"]["orders"].insert_many([{"_id": n, "n": 0} for n in range(4)])
    async with Client(rig.target.uri) as client:  # what DMS had not delivered
        await client["shop"]["orders"].update_one({"_id": 3}, {"$set": {"n": -1}})
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].update_one({"_id": 0}, {"$set": {"n": 1}})
        await client["shop"]["orders"].delete_one({"_id": 1})
        await client["shop"]["orders"].insert_one({"_id": 9})
    await rig.until_captured(3)
    before = await rig.hashes()
    plan = await agent.json("plan", "--divergence")
    row = plan["namespaces"]["shop.orders"]
    assert {name: row[name] for name in ("inserts", "updates", "deletes")} == dict.fromkeys(
        ("inserts", "updates", "deletes"), 1
    )
    assert {name: row[name] for name in ("insert", "overwrite", "delete", "equal")} == {
        "insert": 1,
        "overwrite": 1,
        "delete": 1,
        "equal": 0,
    }
    assert [difference["id"] for difference in plan["divergence"]] == ["3"]
    assert (plan["overwrites"][0]["id"], plan["go"], plan["conflicts_total"]) == ("0", True, 0)
    async with rig.store() as store:
        stored = json.loads(await store.get(plan["report"]) or b"")
    stored["undelivered_kept_in"] = f"s3://{rig.bucket}/{stored['undelivered_kept_in']}"
    assert {**stored, "report": plan["report"], "report_url": plan["report_url"]} == plan
    assert plan["report_url"].endswith(plan["report"])
    assert "shop.orders" in await agent.call("plan")
    assert await rig.hashes() == before


async def test_the_preflight_says_what_is_there_and_what_to_mend(rig: AgentRig) -> None:
    await rig.enable()
    rig.state.mkdir(parents=True)
    good = await rig.agent().json("check")
    assert good["ok"], good
    rig.config["backup"]["mongodump"] = "/no/such/mongodump"
    rig.config["store"]["bucket"] = "no-such-bucket"
    ended = await rig.agent().run("check", "--json")
    assert ended.code == 78
    bad = {row["what"] for row in json.loads(ended.out)["checks"] if not row["ok"]}
    assert bad == {"bucket", "source and target", "mongodump, source", "mongodump, target"}


async def test_no_password_is_seen_anywhere(rig: AgentRig, tmp_path: Path) -> None:
    secret = "hush-Xq7"  # in any encoding
    credentials = Credentials(username="agent", password=f"{secret}/never?shown@+")
    locked = Mongod(tmp_path / "locked", options=ServerOptions(credentials=credentials))
    await locked.start()
    try:
        async with Client(locked.uri) as client:
            await client["shop"]["filler"].insert_many([{"_id": n, "x": "y" * 500} for n in range(20_000)])
        rig.config["target"] = {"uri": locked.uri.replace("&authSource=admin", "")}  # as most are
        looked_at = tmp_path / "looked-at"
        looked_at.mkdir()
        rig.config["backup"]["mongodump"] = str(patient_mongodump(tmp_path / "mongodump", looked_at))
        agent = await rig.captured_agent()
        seen: list[str] = []
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch_processes(secret, seen, looked_at))
            await rig.restored(agent)
            watching.cancel()
        shown = await agent.call("status", "--json") + await agent.call("check", "--json")
        assert list(looked_at.iterdir()), "no mongodump was seen: then nothing is proved"
        assert seen == []
        assert secret not in shown
        assert secret not in agent.log.read_text(encoding="utf-8")
        for path in rig.state.rglob("*"):
            assert path.is_socket() or secret.encode() not in path.read_bytes(), path
        async with rig.store() as store:
            for key in await rig.keys():
                assert secret.encode() not in (await store.get(key) or b""), key
    finally:
        await locked.kill()


def patient_mongodump(path: Path, looked_at: Path) -> Path:
    """Make a mongodump that begins to dump only when somebody has looked at its process."""
    wait = f'case "$*" in *--archive*) while [ ! -e "{looked_at}/$$" ]; do sleep 0.01; done ;; esac'
    path.write_text(f'#!/bin/sh\n{wait}\nexec {find_tool("mongodump")} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


async def watch_processes(secret: str, seen: list[str], looked_at: Path) -> None:
    """Look at every process' arguments and environment, again and again; note where the secret stands.

    The dumps that were looked at are noted as files of `looked_at`.
    """
    while True:
        for process in Path("/proc").glob("[0-9]*"):  # noqa: ASYNC240 -- the kernel's own files: nothing blocks
            with suppress(OSError):
                arguments, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
                if secret.encode() in arguments + environment:
                    seen.append(str(process))
                if b"--archive" in arguments:
                    (looked_at / process.name).touch()
        await asyncio.sleep(0.01)
