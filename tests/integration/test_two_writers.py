"""Two agents on one bucket: one of them writes; the other ends with 78 and names it, whenever it wakes up."""

from __future__ import annotations

import asyncio
import shutil
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from d5agent.adapters.clock import SystemClock
from d5agent.core.log.chain import WriterIdentity
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.writer import LogWriter
from tests.integration.agent_rig import Client, said
from tests.integration.capture_ledger import Ledger, assert_whole, captured, writers
from tests.integration.takeover import mirrored, serving

if TYPE_CHECKING:
    from d5agent.drill.agent import Ended
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
STATES = ("phase", "data_resume_token")


def require_named(ended: Ended, **facts: str) -> None:
    """See that a daemon ended for an operator, and said who holds the log."""
    assert ended.code == 78, said(ended)
    words = said(ended).replace("'", "").replace(": ", "=")
    for name, value in facts.items():
        assert f"{name}={value}" in words, words[-2000:]


async def test_a_paused_writer_that_wakes_up_does_no_harm(rig: AgentRig) -> None:
    await rig.enable()
    ledger = Ledger()
    async with serving(rig, "first") as first:
        run_id = await first.capture()
        async with writers(rig.source_uri, ledger):
            await ledger.grown(300)
            first.pause()
            await ledger.grown(100)
        async with serving(rig, "second") as second:
            await second.until_running()
            since = (await mirrored(rig, "holder"))["since"]
            async with writers(rig.source_uri, ledger, seed=8):
                await ledger.grown(200)
                first.wake()
                ended = await first.end()
                await ledger.grown(100)
            require_named(ended, host=socket.gethostname(), run_id=run_id, since=since)
            await captured(rig, second.agent, ledger)
            assert (await second.agent.status())["run_id"] == run_id
            assert (await mirrored(rig, "holder"))["agent_id"] == second.agent_id
            for name in STATES:
                assert (await mirrored(rig, name))["mirrored_by"].startswith(second.agent_id)
            phase = await mirrored(rig, "phase")
            assert {**second.local("phase"), "mirrored_by": phase["mirrored_by"]} == phase


async def test_the_loser_of_a_commit_race_stops_at_once_and_names_the_winner(rig: AgentRig) -> None:
    await rig.enable()
    winner = WriterIdentity(run_id="", agent_id="another", host="another-host", since="2026-11-02T08:00:00+00:00")
    async with serving(rig, "first") as first, rig.store() as store:
        winner = replace(winner, run_id=await first.capture())
        async with Client(rig.source_uri) as client:
            await client["shop"]["orders"].insert_one({"_id": 1})
            await rig.until_captured(1)
            last = await LogReader(store=store).last()
            assert last is not None
            other = LogWriter(store=store, clock=SystemClock(), writer=winner, last=last)
            await other.publish((), last.commit.position)
            await client["shop"]["orders"].insert_one({"_id": 2})
        ended = await first.end()
        require_named(ended, host=winner.host, run_id=winner.run_id, since=winner.since)
        assert await LogReader(store=store).last() == other.last
        assert len(await rig.operations()) == 1
    async with serving(rig, "second") as second:  # it gave the log up when it ended, and nothing is lost
        await second.until_running()
        assert len(await rig.until_captured(2)) == 2
        await assert_whole(second.agent)


async def test_of_two_daemons_that_start_at_once_one_serves_and_the_other_names_it(rig: AgentRig) -> None:
    await rig.enable()
    async with serving(rig, "first") as first, serving(rig, "second") as second:
        assert first.ended is not None
        assert second.ended is not None
        done, _ = await asyncio.wait({first.ended, second.ended}, return_when=asyncio.FIRST_COMPLETED, timeout=40)
        (lost,) = done
        holder = first if lost is second.ended else second
        require_named(lost.result(), host=socket.gethostname(), since=(await mirrored(rig, "holder"))["since"])
        await holder.capture()
        assert (await mirrored(rig, "holder"))["agent_id"] == holder.agent_id


async def test_a_disk_from_a_snapshot_leaves_the_living_agent_alone(rig: AgentRig) -> None:
    await rig.enable()
    async with serving(rig, "first") as first:
        run_id = await first.capture()
        ignored = shutil.ignore_patterns("control.sock", "lock")
        await asyncio.to_thread(shutil.copytree, first.state.parent, rig.folder / "second", ignore=ignored)
        async with serving(rig, "second") as second:
            assert second.agent_id == first.agent_id
            require_named(await second.end(), host=socket.gethostname(), run_id=run_id)
        status = await first.agent.status()
        assert (status["daemon"], status["run_id"]) == ("up", run_id)
        assert (await mirrored(rig, "holder"))["tenure"] in first.local("agent")["tenures"]
