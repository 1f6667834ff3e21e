"""The end of a failback on real servers: clean killed again and again, S3 failing under it, forced; the power-off."""

from __future__ import annotations

import json
import os
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from d5agent.drill.s3_proxy import S3Proxy, delete_half, refuse, stall
from d5agent.steps.log.reader import LogReader
from tests.integration.agent_rig import PATIENCE_SECONDS, Client, said
from tests.integration.capture_ledger import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiohttp import web

    from d5agent.adapters.s3 import S3Store
    from d5agent.drill.agent import Agent
    from d5agent.drill.s3_proxy import Act, Exchange
    from tests.integration.agent_rig import AgentRig

OPERATOR = 78
COLLECTIONS = 12


async def captured(rig: AgentRig) -> Agent:
    """Return an agent that has switched the stream on itself, and whose log is more than a few objects."""
    rig.config["source"]["enable_change_streams"] = True
    agent = await rig.ready_agent()
    async with Client(rig.source_uri) as client:
        for number in range(COLLECTIONS):
            await client["shop"][f"orders {number}"].insert_one({"_id": number})
    await rig.until_captured(COLLECTIONS)
    return agent


async def proved(rig: AgentRig) -> Agent:
    """The same, restored and verified."""
    agent = await captured(rig)
    await rig.restored(agent)
    return agent


async def row_of(agent: Agent, service: str) -> dict[str, Any]:
    """Return how a service stands."""
    row: dict[str, Any] = (await agent.status())["services"][service]
    return row


async def until_it_is(agent: Agent, service: str, state: str) -> dict[str, Any]:
    """Wait until a service is in a state, and return its row."""

    async def is_so() -> bool:
        status = await agent.status()
        return bool(status["services"].get(service, {}).get("state") == state)

    await until(is_so, what=f"{service} is {state}: see {agent.log}")
    return await row_of(agent, service)


@asynccontextmanager
async def plain_store(rig: AgentRig) -> AsyncGenerator[S3Store]:
    """The bucket, past the proxy."""
    async with rig.store() as store:
        yield store


async def final_report(rig: AgentRig) -> dict[str, Any]:
    """Return the one final report."""
    (key,) = [key for key in await rig.keys() if key.endswith("/final.json")]
    async with plain_store(rig) as store:
        report: dict[str, Any] = json.loads(await store.get(key) or b"")
    return report


async def assert_nothing_is_left(rig: AgentRig) -> None:
    """No object of the log, no half-made upload, no state but the phase; the stream is off; what is to stay, stays."""
    keys = await rig.keys()
    assert not [key for key in keys if key.startswith("replication/")]
    assert {key for key in keys if key.startswith("state/")} <= {"state/phase.json", "state/holder.json"}
    assert {path.name for path in rig.state.glob("*.json")} == {"phase.json", "agent.json"}
    async with rig.s3.client() as client:
        assert "Uploads" not in await client.list_multipart_uploads(Bucket=rig.bucket)
    async with Client(rig.source_uri) as client:
        assert [found async for found in await client.admin.aggregate([{"$listChangeStreams": 1}])] == []


@pytest.mark.system
async def test_a_clean_that_is_killed_at_each_of_its_steps_ends_complete(rig: AgentRig, proxy: S3Proxy) -> None:
    agent, run_id, kept = await before_the_end(rig)
    moments = (
        ("PUT", "state/clearing"),
        ("PUT", f"archive/{run_id}/replication/.log/"),
        ("PUT", f"archive/{run_id}/"),
        ("POST", ""),  # objects are deleted: those of the log, then those of the state
        ("DELETE", "dump/"),
        ("PUT", f"reports/{run_id}/final"),
        ("POST", ""),
    )
    for number, (method, key_prefix) in enumerate(moments):
        fault = proxy.fail(stall(), method=method, key_prefix=key_prefix)
        if number == 0:
            await agent.call("start", "monitor-restore")
        await fault.until_met()
        await agent.kill()
        fault.lift()
        await agent.start()
    await assert_ended(rig, agent, run_id, kept)


@pytest.mark.system
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_clean_that_is_killed_at_random_requests_ends_complete(
    rig: AgentRig, proxy: S3Proxy, seed: int
) -> None:
    agent, run_id, kept = await before_the_end(rig)
    dice, killed_in_clean = random.Random(seed), 0
    await agent.call("start", "monitor-restore")
    for _ in range(12):
        allowed = dice.randint(0, 40)
        fault = proxy.fail(stall_after(allowed))
        await fault.until_met(allowed + 1)
        status = await agent.status()
        killed_in_clean += status["services"].get("clean", {}).get("state") in {"running", "waiting"}
        await agent.kill()
        fault.lift()
        await agent.start()
        if status["phase"] == "idle":
            break
    assert killed_in_clean >= 3, "clean was killed too rarely: then nothing is proved"
    await assert_ended(rig, agent, run_id, kept)


def stall_after(allowed: int) -> Act:
    """Let so many requests through, and hold the next until the fault is lifted."""
    hold = stall()

    async def act(exchange: Exchange) -> web.StreamResponse:
        return await (hold(exchange) if exchange.fault.met > allowed else exchange.forward())

    return act


async def before_the_end(rig: AgentRig) -> tuple[Agent, str, set[str]]:
    """Return an agent with a proof, its run, and what clean is to keep. A dump has left an upload half-way."""
    rig.config["clean"] = {"keep_log_days": 30}
    agent = await proved(rig)
    run_id = (await agent.status())["run_id"]
    kept = {key for key in await rig.keys() if key.startswith(("dump/", f"reports/{run_id}/cert"))}
    async with rig.s3.client() as client:
        await client.create_multipart_upload(Bucket=rig.bucket, Key=f"dump/{run_id}/source/killed.archive.gz")
    return agent, run_id, kept


async def assert_ended(rig: AgentRig, agent: Agent, run_id: str, kept: set[str]) -> None:
    """The run is over, the power-off is asked for, what was to be kept is whole; the archive is a log of its own."""
    await agent.until(lambda status: status["phase"] == "idle", what="the end", seconds=PATIENCE_SECONDS)
    await until(lambda: _exists(rig), what="the power-off is asked for")
    await assert_nothing_is_left(rig)
    assert kept < set(await rig.keys())
    report = await final_report(rig)
    assert report["power_off"]["requested_at"]
    async with plain_store(rig) as store:
        store.prefix = f"archive/{run_id}/"
        summary = await LogReader(store=store).check()
    assert summary.last is not None
    assert summary.last.commit.total.operations == report["log"]["operations"] > COLLECTIONS
    async with rig.s3.client() as client:
        tagging = await client.get_object_tagging(Bucket=rig.bucket, Key=f"archive/{run_id}/{summary.last.commit.key}")
    assert tagging["TagSet"] == [{"Key": "d5agent-keep-log-days", "Value": "30"}]


async def _exists(rig: AgentRig) -> bool:
    return rig.power_record.exists()


@pytest.mark.system
async def test_deletes_that_s3_refuses_in_part_for_a_while_or_for_good(rig: AgentRig, proxy: S3Proxy) -> None:
    agent = await proved(rig)
    passing = [proxy.fail(delete_half("InternalError"), method="POST", times=2)]
    refused = proxy.fail(delete_half("AccessDenied"), method="POST")
    before = len(await rig.keys())
    await agent.call("start", "monitor-restore")
    row = await until_it_is(agent, "clean", "failed")
    assert "objects were not deleted" in row["error"]
    assert "AccessDenied" in row["error"]
    assert "s3:DeleteObject" in row["hint"]
    assert [fault.met for fault in passing] == [2]
    left = [key for key in await rig.keys() if key.startswith("replication/")]
    assert left, "some are still there, and nobody believes otherwise"
    assert len(await rig.keys()) < before
    assert (await row_of(agent, "monitor-clean"))["state"] == "waiting"
    assert not rig.power_record.exists()
    refused.lift()
    away = proxy.fail(refuse(503, "ServiceUnavailable"), method="POST")
    await agent.call("start", "clean")
    waiting = await until_it_is(agent, "clean", "waiting")
    assert "trying again" in waiting["reason"]
    away.lift()
    await agent.until(lambda status: status["phase"] == "idle", what="the end", seconds=PATIENCE_SECONDS)
    await until(lambda: _exists(rig), what="the power-off is asked for")
    await assert_nothing_is_left(rig)


async def test_a_run_that_is_given_up_is_cleaned_by_its_name_only(rig: AgentRig) -> None:
    agent = await captured(rig)
    run_id = (await agent.status())["run_id"]
    refused = await agent.run("start", "clean")
    assert refused.code == OPERATOR
    for name, forced, words in (
        ("clean", "another-run", "that is not the id of this run"),
        ("clean", run_id, "replication is at work"),
        ("restore", run_id, "restore cannot be forced"),
    ):
        refused = await agent.run("start", name, "--force", forced)
        assert refused.code == OPERATOR
        assert words in said(refused)
    assert len(await rig.operations()) == COLLECTIONS
    await agent.call("stop", "replication")
    out = await agent.call("start", "clean", "--force", run_id, "--follow")
    assert "clean_is_forced" in out
    await assert_nothing_is_left(rig)
    report = await final_report(rig)
    assert report["forced_at"]
    assert report["verified"] is None
    assert report["power_off"] is None
    assert not rig.power_record.exists()
    assert "clean_forced" in agent.log.read_text(encoding="utf-8")
    assert (await agent.status())["phase"] == "idle"
    again = await agent.run("start", "clean", "--force", run_id)
    assert again.code == OPERATOR
    assert "there is no run to clean" in said(again)
    await agent.call("start", "replication")  # a new run, on a clean bucket
    await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)
    assert (await agent.status())["run_id"] != run_id


async def test_a_power_off_that_does_not_happen_is_told_and_a_daemon_that_dies_over_it_asks_again(
    rig: AgentRig,
) -> None:
    pids = rig.folder / "power-pids"
    script = f"echo $$ >> {pids}; exec sleep 1000"
    rig.config["power"] = {"command": ["sh", "-c", script], "timeout_seconds": 60}
    agent = await proved(rig)
    await agent.call("start", "monitor-restore")

    async def has_asked() -> bool:
        return pids.exists() and bool(pids.read_text(encoding="utf-8").strip())

    await until(has_asked, what="the power-off is asked for")
    refused = await agent.run("start", "replication")
    assert "about to power the instance off" in said(refused)
    await agent.kill()
    rig.config["power"]["timeout_seconds"] = 0.5
    await rig.agent().start()
    agent = rig.agents[-1]
    row = await until_it_is(agent, "monitor-clean", "failed")
    assert "the power-off hangs" in row["error"]
    asked = pids.read_text(encoding="utf-8").split()
    assert len(asked) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(int(asked[1]), 0)
    await agent.stop()
    rig.config["power"]["command"] = ["true"]
    await rig.agent().start()
    agent = rig.agents[-1]
    assert (await row_of(agent, "monitor-clean"))["state"] == "failed", "nobody has asked again"
    ended = await agent.run("start", "monitor-clean", "--follow")
    assert ended.code == OPERATOR
    assert "the machine is still up" in said(ended)
