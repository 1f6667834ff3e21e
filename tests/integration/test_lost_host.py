"""A host is lost with its disk: another one carries on from the bucket, and nobody types anything."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from d5agent.core.log.naming import commit_key
from tests.integration.agent_rig import Client, said
from tests.integration.capture_ledger import Ledger, assert_whole, captured, until, writers
from tests.integration.takeover import mirrored, serving

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
WINDOW_BYTES = 1_048_576


async def slow_down(rig: AgentRig, *, milliseconds: int) -> None:
    """Let each request to the source wait."""
    async with Client(f"mongodb://{rig.gateway.address}/?directConnection=true") as client:
        await client.admin.command({"d5Gateway": 1, "action": "delay", "ms": milliseconds})


async def last_commit(rig: AgentRig) -> int:
    """Return the number of the log's last commit; -1: there is none."""
    prefix = "replication/.log/"
    keys = [key.removeprefix(prefix) for key in await rig.keys() if key.startswith(prefix)]
    return max([-1, *(int(key[:12]) for key in keys if key[:12].isdigit())])


async def test_a_host_lost_under_load_is_replaced_and_nothing_is_lost(rig: AgentRig) -> None:
    await rig.enable()
    ledger = Ledger()
    async with serving(rig, "first") as first:
        run_id = await first.capture()
        ready = await mirrored(rig, "phase")
        async with writers(rig.source_uri, ledger):
            await ledger.grown(300)
            await first.vanish()
            await ledger.grown(100)  # nobody reads these now
    position, last = await mirrored(rig, "data_resume_token"), await last_commit(rig)
    assert position["sequence"] < last, "the mirror of the position is not behind: then nothing is shown here"
    assert await mirrored(rig, "phase") == ready, "nor is that of the phase"
    async with serving(rig, "second") as second:
        await second.until_running()
        async with writers(rig.source_uri, ledger, seed=8):
            await ledger.grown(100)
        await captured(rig, second.agent, ledger)
        assert (await second.agent.status())["run_id"] == run_id
        assert second.local("phase")["ready_at"] == ready["ready_at"]
        async with rig.store() as store:
            claim = json.loads(await store.get(commit_key(last + 1)) or b"{}")
        assert (claim["agent_id"], claim["segments"]) == (second.agent_id, [])
        said_at_last = said(await second.stop())
    for event in ("log_has_a_holder", "log_taken_over", "service_resumed", "log_claimed"):
        assert event in said_at_last


async def test_a_host_lost_before_it_was_ready_is_replaced_from_its_first_commit(rig: AgentRig) -> None:
    await rig.enable()
    async with serving(rig, "first") as first:
        await first.until_up()
        await slow_down(rig, milliseconds=500)  # its mark is then a second on its way, there and back
        await first.agent.call("start", "replication")
        async with rig.store() as store:

            async def has_begun() -> bool:
                return await store.get(commit_key(0)) is not None

            await until(has_begun, what="the first commit")
        await first.vanish()
    assert not (await mirrored(rig, "phase"))["ready_at"], "it was ready: then nothing is shown here"
    await slow_down(rig, milliseconds=0)
    async with Client(rig.source.uri) as client:
        await client["shop"]["orders"].insert_many([{"_id": number} for number in range(20)])
    async with serving(rig, "second") as second:
        await second.until_running()
        assert len(await rig.until_captured(20)) == 20
        await assert_whole(second.agent)
        assert (await second.agent.status())["ready_at"]


async def test_a_host_lost_in_the_middle_of_a_restore_is_replaced_from_the_checkpoint(rig: AgentRig) -> None:
    rig.config["restore"] = {"window_bytes": WINDOW_BYTES}
    await rig.enable()
    async with Client(rig.target.uri) as client, client.start_session() as session:
        await client["shop"].create_collection("orders")
        async with serving(rig, "first") as first, await session.start_transaction():
            # Nobody can write this one until the transaction ends: there the restore stands.
            await client["shop"]["orders"].insert_one({"_id": 2}, session=session)
            await first.capture()
            async with Client(rig.source_uri) as source:
                for number in range(4):  # a window each
                    await source["shop"]["orders"].insert_one({"_id": number, "x": "y" * WINDOW_BYTES})
                    await rig.until_captured(number + 1)
            await first.agent.call("start", "restore")
            async with rig.store() as store:

                async def has_written_two() -> bool:
                    return b'"written": 2' in (await store.get("state/restore_checkpoint.json") or b"")

                await until(has_written_two, what="a checkpoint in the bucket")
            await first.vanish()
            await session.abort_transaction()
    checkpoint = await mirrored(rig, "restore_checkpoint")
    assert checkpoint["written"] == 2
    async with Client(rig.target.uri) as client:  # who begins anew writes it again; who goes on finds it missing
        await client["shop"]["orders"].delete_one({"_id": 0})
    async with serving(rig, "second") as second:
        await second.until_running()
        await second.agent.until(
            lambda status: status["services"]["restore"]["state"] == "done", what="restored", seconds=40
        )
        assert (await second.agent.json("log", "verify"))["whole"]
        ended = said(await second.stop())
    assert ended.count("event=document_repaired") == 1
    hashes = await rig.hashes()
    assert hashes[0] == hashes[1]


async def test_a_log_whose_state_is_missing_is_refused_and_never_begun_anew(rig: AgentRig) -> None:
    await rig.enable()
    async with serving(rig, "first") as first:
        run_id = await first.capture()
        async with Client(rig.source_uri) as client:
            await client["shop"]["orders"].insert_one({"_id": 1})
            await rig.until_captured(1)
            await first.stop()
            await client["shop"]["orders"].insert_one({"_id": 2})
    async with rig.store() as store:
        phase = await store.get("state/phase.json") or b""
        await store.delete(["state/phase.json"])
        before = await rig.keys()
        async with serving(rig, "second") as second:
            ended = await second.end()
        assert ended.code == 78
        for words in ("the state that belongs to it is missing", "state/phase.json", run_id, "start the daemon again"):
            assert words in said(ended)
        assert await rig.keys() == before
        await store.put("state/phase.json", phase)  # what it says to do
    async with serving(rig, "third") as third:
        await third.until_running()
        assert len(await rig.until_captured(2)) == 2
        assert (await third.agent.status())["run_id"] == run_id
        await assert_whole(third.agent)


async def test_a_host_that_comes_back_takes_the_newer_state_from_the_bucket(rig: AgentRig) -> None:
    await rig.enable()
    async with serving(rig, "first") as first:
        run_id = await first.capture()
        await first.stop()
    async with serving(rig, "second") as second:
        await second.until_running()
        async with Client(rig.source_uri) as client:
            await client["shop"]["orders"].insert_one({"_id": 1})
        await rig.until_captured(1)
        await rig.restored(second.agent)
        phase = second.local("phase")
        await second.stop()
    async with serving(rig, "first") as again:  # its disk still says that nothing was restored
        await again.until_running()
        assert again.local("phase")["verified"] == phase["verified"]
        status = await again.agent.status()
        assert (status["phase"], status["run_id"]) == ("restore", run_id)
