"""Hosts of one agent each: a daemon is paused, killed or lost, and the daemon of another host takes its bucket over."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from tests.integration.agent_rig import PATIENCE_SECONDS, said
from tests.integration.capture_ledger import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from d5agent.drill.agent import Agent, Ended
    from tests.integration.agent_rig import AgentRig


class Host:
    """A machine with a disk of its own. Its daemon's output and exit code are in `ended`, once it has ended."""

    def __init__(self, rig: AgentRig, name: str) -> None:
        rig.config["state"]["directory"] = str(rig.folder / name / "state")
        self.state: Path = rig.state
        self.agent: Agent = rig.agent(f"{name}.toml")
        self.ended: asyncio.Task[Ended] | None = None

    @property
    def agent_id(self) -> str:
        """Who the agent is."""
        return str(self.local("agent")["agent_id"])

    def local(self, name: str) -> dict[str, Any]:
        """Return a state as it stands on the disk."""
        value: dict[str, Any] = json.loads((self.state / f"{name}.json").read_text(encoding="utf-8"))
        return value

    async def until_up(self) -> None:
        """Wait until the daemon answers: with another one's record in the bucket, half a minute."""

        async def answers() -> bool:
            assert self.ended is not None
            assert not self.ended.done(), said(self.ended.result())
            with suppress(Exception):  # not yet, whatever the reason
                await self.agent.status()
                return True
            return False

        await until(answers, what="the daemon answers")

    async def until_running(self) -> None:
        """Wait until replication is at work, without anybody's asking for it."""
        await self.until_up()
        await self.agent.until(
            lambda status: status["services"].get("replication", {}).get("state") == "running" and status["ready_at"],
            what="replication goes on",
            seconds=PATIENCE_SECONDS,
        )

    async def capture(self) -> str:
        """Start replication, wait until it is ready, and return the run."""
        await self.until_up()
        await self.agent.call("start", "replication")
        status = await self.agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)
        return str(status["run_id"])

    def pause(self) -> None:
        """Let the daemon stand still, as a stopped virtual machine does."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    async def die(self) -> Ended:
        """SIGKILL."""
        self._signal(signal.SIGKILL)
        return await self.end()

    async def stop(self) -> Ended:
        """SIGTERM: it drains and gives the log up."""
        self._signal(signal.SIGTERM)
        return await self.end()

    async def vanish(self) -> None:
        """SIGKILL, and the disk is lost."""
        await self.die()
        shutil.rmtree(self.state.parent)

    async def end(self) -> Ended:
        """Wait until the daemon has ended; how it did."""
        assert self.ended is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.shield(self.ended)

    def _signal(self, number: signal.Signals) -> None:
        os.kill(int((self.state / "lock").read_text(encoding="utf-8")), number)


@asynccontextmanager
async def serving(rig: AgentRig, name: str) -> AsyncGenerator[Host]:
    """Run the daemon of a host beside the block; what is left of it at the end is killed."""
    host = Host(rig, name)
    async with asyncio.TaskGroup() as group:
        host.ended = group.create_task(host.agent.run("serve"))
        try:
            yield host
        finally:
            if not host.ended.done():
                with suppress(OSError, ValueError):
                    await host.die()
            host.ended.cancel()


async def mirrored(rig: AgentRig, name: str) -> dict[str, Any]:
    """Return a state as it stands in the bucket."""
    async with rig.store() as store:
        body = await store.get(f"state/{name}.json")
    assert body is not None, f"state/{name}.json is missing"
    value: dict[str, Any] = json.loads(body)
    return value
