"""A live restore through the command line: paused and resumed, a cutover that fails, is called off, and succeeds."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.integration.agent_rig import PATIENCE_SECONDS, Client, said
from tests.integration.capture_ledger import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

# What `[cutover]` runs here: a file that the application looks at, and answers with another one when its last write is
# done. While `broken` is there, it cannot be told.
HOOK = """
import pathlib, sys, time
folder, word = pathlib.Path(sys.argv[1]), sys.argv[2]
refused, quiet = folder / "refused", folder / "quiet"
if (folder / "broken").exists():
    sys.exit("the door is stuck")
(folder / "told").open("a").write(word + "\\n")
if word == "accept":
    refused.unlink(missing_ok=True)
    quiet.unlink(missing_ok=True)
else:
    refused.touch()
    while not quiet.exists():
        time.sleep(0.01)
"""


class Application:
    """Writes one document after the other while it may."""

    def __init__(self, rig: AgentRig) -> None:
        self._rig = rig
        self.written = 0

    @property
    def told(self) -> list[str]:
        """What the hook has told it."""
        record = self._rig.folder / "told"
        return record.read_text(encoding="utf-8").split() if record.exists() else []

    async def write(self) -> None:
        """Write for ever, but for when it is refused."""
        async with Client(self._rig.source_uri) as client:
            orders = client["shop"]["orders"]
            for number in count():
                await until(self._may_write, what="it may write", seconds=PATIENCE_SECONDS)
                await orders.insert_one({"_id": number, "n": 0})
                await orders.update_one({"_id": number // 2}, {"$inc": {"n": 1}})
                self.written = number + 1

    async def grown(self, documents: int = 20) -> None:
        """Wait until it has written so much more."""
        goal = self.written + documents

        async def is_so() -> bool:
            return self.written >= goal

        await until(is_so, what=f"{documents} more documents written", seconds=PATIENCE_SECONDS)

    async def _may_write(self) -> bool:
        is_refused = (self._rig.folder / "refused").exists()
        if is_refused:
            (self._rig.folder / "quiet").touch()
        return not is_refused


@asynccontextmanager
async def writing(rig: AgentRig) -> AsyncGenerator[tuple[Agent, Application]]:
    """Yield an agent that may be restored live from, and the application that writes meanwhile."""
    rig.config["restore"] = {"mode": "live"}
    hook = [sys.executable, "-c", HOOK, str(rig.folder)]
    rig.config["cutover"] = {"command": [*hook, "refuse"], "call_off_command": [*hook, "accept"]}
    agent, application = await rig.captured_agent(), Application(rig)
    task = asyncio.create_task(application.write())
    try:
        yield agent, application
    finally:
        task.cancel()
        await asyncio.wait([task])


async def target_count(rig: AgentRig) -> int:
    async with Client(rig.target.uri) as client:
        return await client["shop"]["orders"].count_documents({})


async def following(agent: Agent) -> None:
    await agent.until(
        lambda status: bool(status["services"].get("restore", {}).get("can_cutover")),
        what="caught up",
        seconds=PATIENCE_SECONDS,
    )


async def test_a_live_restore_ends_equal_though_the_application_writes_until_the_cutover_refuses_it(
    rig: AgentRig,
) -> None:
    async with writing(rig) as (agent, application):
        await application.grown()
        assert (await agent.run("cutover")).code == 78  # nothing to cut over yet
        await agent.call("start", "restore")
        await following(agent)
        await application.grown()
        ended = await agent.run("cutover", "--follow")
        assert ended.code == 0, said(ended)
        for event in ("application_made_read_only", "fence_drawn", "restore_verified"):
            assert event in ended.out
        assert application.told == ["refuse"]
        assert await target_count(rig) >= application.written
        source, target = await rig.hashes()
        assert source == target
        refused = await agent.run("cutover", "--call-off")
        assert (refused.code, "the certificate is issued" in said(refused)) == (78, True)


@pytest.mark.system
async def test_a_paused_restore_stands_still_over_a_restart_and_is_resumed(rig: AgentRig) -> None:
    async with writing(rig) as (agent, application):
        await agent.call("start", "restore")
        await following(agent)
        await agent.call("pause", "restore")
        await agent.until(
            lambda status: "an operator has paused it" in status["services"]["restore"]["reason"],
            what="paused",
            seconds=PATIENCE_SECONDS,
        )
        before = await target_count(rig)
        await agent.kill()
        await agent.start()
        await application.grown()
        assert (await agent.status())["restore"]["is_paused"]
        refused = await agent.run("cutover")
        assert (refused.code, "d5agent resume restore" in said(refused)) == (78, True)
        assert await target_count(rig) == before
        await agent.call("resume", "restore")
        await following(agent)
        assert await target_count(rig) > before


@pytest.mark.system
async def test_a_cutover_that_fails_is_called_off_and_a_later_one_succeeds(rig: AgentRig) -> None:
    async with writing(rig) as (agent, application):
        await agent.call("start", "restore")
        await following(agent)
        (rig.folder / "broken").touch()
        failed = await agent.run("cutover", "--follow")
        assert failed.code == 78
        for words in ("could not be made read-only", "the door is stuck", "d5agent cutover --call-off"):
            assert words in said(failed)
        (rig.folder / "broken").unlink()
        await agent.call("cutover", "--call-off")
        row = (await agent.status())["services"]["monitor-replication"]
        assert (row["state"], row["reason"]) == ("stopped", "called off")
        await application.grown()
        await agent.call("cutover", "--follow")
        assert application.told == ["accept", "refuse"]
        source, target = await rig.hashes()
        assert source == target
