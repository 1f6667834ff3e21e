"""Two agents on one bucket: one of them writes; the other ends with 78 and names it, whenever it wakes up."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.integration.agent_rig import said
from tests.integration.capture_ledger import Ledger, captured, writers
from tests.integration.takeover import mirrored, serving

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.timeout(120)
STATES = ("phase", "data_resume_token")


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
            assert ended.code == 78, said(ended)
            last_words = said(ended)[-2000:]
            for fact in (f"host={socket.gethostname()}", f"run_id={run_id}", f"since={since}"):
                assert fact in last_words.replace("'", "").replace(": ", "="), last_words
            await captured(rig, second.agent, ledger)
            assert (await second.agent.status())["run_id"] == run_id
            assert (await mirrored(rig, "holder"))["agent_id"] == second.agent_id
            for name in STATES:
                assert (await mirrored(rig, name))["mirrored_by"].startswith(second.agent_id)
            phase = await mirrored(rig, "phase")
            assert {**second.local("phase"), "mirrored_by": phase["mirrored_by"]} == phase
