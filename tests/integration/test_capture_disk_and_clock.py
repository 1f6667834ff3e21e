"""Capture while the state directory cannot be written, and while the machine's clock is moved.

**Disk.** No test here mounts anything, which only root may, nor trusts a mode that root passes over: each runs the
same everywhere. A full disk is /dev/full, the kernel's own: state files are written beside and renamed, so a link in
the place of the file beside lets every write of them end with ENOSPC, and leaves the old file and the machine's disk
alone. A read-only directory is one without the right to write; where the tests run as root, the daemon is started
without the capability that passes over it (CAP_DAC_OVERRIDE), and is then refused like anybody.

**Clock.** The machine's clock is everybody's, so only the daemon's is moved: its process runs the command line with a
SystemClock, and botocore's clock for signatures, that add what a file says. Monotonic time goes on, as it does when a
real clock is set.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from d5agent.drill.child import Child
from d5agent.drill.s3_proxy import S3Proxy, check_time
from d5agent.drill.tools import find_tool
from tests.integration.agent_rig import PATIENCE_SECONDS, said
from tests.integration.capture_ledger import Ledger, captured, until, writers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
OPERATOR = 78
STATE_FILES = ("phase", "data_resume_token")
HOUR = 3600
WITHOUT_ROOTS_RIGHT = ("--bounding-set", "-dac_override", "--inh-caps", "-dac_override", "--")
SHIFTED = """
import sys
from datetime import timedelta
from pathlib import Path

import botocore.auth

from d5agent.adapters.clock import SystemClock
from d5agent.cli import main

offset = Path(sys.argv.pop(1))


def shifted(now):
    return lambda *given: now(*given) + timedelta(seconds=int(offset.read_text()))


SystemClock.now = shifted(SystemClock.now)
botocore.auth.get_current_datetime = shifted(botocore.auth.get_current_datetime)
main()
"""


async def replication_is(agent: Agent, state: str) -> dict[str, Any]:
    """Wait until replication is in a state, and return its row."""

    async def is_so() -> bool:
        return bool((await agent.status())["services"]["replication"]["state"] == state)

    await until(is_so, what=f"replication is {state}: see {agent.log}")
    row: dict[str, Any] = (await agent.status())["services"]["replication"]
    return row


async def captured_agent(rig: AgentRig, argv: Sequence[str]) -> Agent:
    """Return an agent whose daemon is started with words before `serve`, once its replication is ready."""
    await rig.enable()
    agent = rig.agent()
    configuration = str(rig.folder / "d5agent.toml")
    agent._daemon = Child([*argv, "serve", "--config", configuration], log=agent.log, environment=agent._environment)
    await agent.start()
    await agent.call("start", "replication")
    await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)
    return agent


async def require_failed_and_refused(agent: Agent, reason: str) -> None:
    """See that replication has failed with that reason and a hint, and is not started while the fault lasts."""
    row = await replication_is(agent, "failed")
    assert "a state file cannot be written" in row["error"]
    assert reason in row["error"]
    assert "free space on the disk, or mend the directory's rights" in row["hint"]
    ended = await agent.run("start", "replication")
    assert ended.code == OPERATOR
    assert "free space on the disk" in said(ended)
    assert reason in said(ended)


async def fill_disk(rig: AgentRig) -> None:
    """Let no state file be written any more. A file that is being written now is waited for: it is renamed next."""
    for name in STATE_FILES:

        def is_linked(beside: Path = rig.state / f"{name}.new") -> bool:
            try:
                beside.symlink_to("/dev/full")
            except FileExistsError:
                return False
            return True

        await until(is_linked, what=f"no {name} is being written")


def free_disk(rig: AgentRig) -> None:
    """Let state files be written again."""
    for name in STATE_FILES:
        (rig.state / f"{name}.new").unlink()


def read_states(rig: AgentRig) -> dict[str, Any]:
    """Return the state files, which must be whole."""
    return {name: json.loads((rig.state / f"{name}.json").read_text(encoding="utf-8")) for name in STATE_FILES}


async def test_a_full_disk(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(50)
        await fill_disk(rig)
        await require_failed_and_refused(agent, "No space left on device")
        assert set(read_states(rig)) == set(STATE_FILES)
        await ledger.grown(50)
        free_disk(rig)
        await agent.call("start", "replication")
        await ledger.grown(50)
    await captured(rig, agent, ledger)
    assert read_states(rig)["phase"]["services"]["replication"]["status"] == "running"


async def test_a_state_directory_that_is_read_only(rig: AgentRig) -> None:
    python = (sys.executable, "-m", "d5agent")
    as_root = (str(find_tool("setpriv")), *WITHOUT_ROOTS_RIGHT)
    agent = await captured_agent(rig, (*as_root, *python) if os.geteuid() == 0 else python)
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(50)
        rig.state.chmod(0o500)
        await require_failed_and_refused(agent, "Permission denied")
        await ledger.grown(50)
        rig.state.chmod(0o700)
        await agent.call("start", "replication")
        await ledger.grown(50)
    await captured(rig, agent, ledger)
    assert read_states(rig)["phase"]["services"]["replication"]["status"] == "running"


async def test_a_disk_that_is_full_when_the_daemon_starts(rig: AgentRig) -> None:
    """What it only reads is enough to come up, and to say what is wrong."""
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(50)
        await agent.kill()
        await fill_disk(rig)
        await agent.start()
        await require_failed_and_refused(agent, "No space left on device")
        free_disk(rig)
        await agent.call("start", "replication")
        await ledger.grown(50)
    await captured(rig, agent, ledger)


class ShiftedClock:
    """The clock of a rig's daemon."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "offset"
        self._script = folder / "shifted.py"
        self._script.write_text(SHIFTED, encoding="utf-8")
        self.set(0)

    @property
    def argv(self) -> tuple[str, ...]:
        """What runs the command line under this clock."""
        return sys.executable, str(self._script), str(self._offset)

    def set(self, seconds: int) -> None:
        """Move the clock to so many seconds after (before) the real one."""
        beside = self._offset.with_suffix(".new")
        beside.write_text(str(seconds), encoding="utf-8")
        beside.replace(self._offset)


async def commits(rig: AgentRig) -> list[dict[str, Any]]:
    """Return the log's commits."""
    async with rig.store() as store:
        keys = [key for key in await rig.keys() if key.startswith("replication/.log/0")]
        return [json.loads(await store.get(key) or b"") for key in sorted(keys)]


async def until_a_commit_of(rig: AgentRig, offset: int) -> None:
    """Wait for a commit that was written under a clock that is off by so much."""
    slack = timedelta(minutes=5)

    async def is_there() -> bool:
        written = datetime.fromisoformat((await commits(rig))[-1]["written_at"])
        return abs(written - datetime.now(UTC) - timedelta(seconds=offset)) < slack

    await until(is_there, what=f"a commit under a clock that is off by {offset} s")


async def test_a_clock_that_is_moved_forward_and_back_by_an_hour(rig: AgentRig) -> None:
    clock = ShiftedClock(rig.folder)
    agent = await captured_agent(rig, clock.argv)
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        for offset in (HOUR, -HOUR, 0):
            clock.set(offset)
            await ledger.grown(50)
            await until_a_commit_of(rig, offset)
            lag = (await agent.status())["capture"]["lag_seconds"]
            assert lag is None or 0 <= lag < HOUR / 2
        clock.set(-HOUR)
        await agent.kill()  # the log's newest commit is then an hour ahead of the clock
        await agent.start()
        await until_a_commit_of(rig, -HOUR)
        await ledger.grown(50)
    await captured(rig, agent, ledger)
    times = [commit["position"]["cluster_time"] for commit in await commits(rig)]
    assert times == sorted(times)
    assert "service_failed" not in agent.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("offset", [HOUR, -HOUR])
async def test_a_clock_that_s3_does_not_accept(rig: AgentRig, offset: int) -> None:
    """S3 refuses signatures that are 15 minutes off."""
    proxy = S3Proxy(rig.s3.endpoint_url)
    await proxy.start()
    rig.config["store"]["endpoint_url"] = proxy.endpoint_url
    try:
        proxy.fail(check_time())
        clock = ShiftedClock(rig.folder)
        agent = await captured_agent(rig, clock.argv)
        ledger = Ledger()
        async with writers(rig.source_uri, ledger):
            await ledger.grown(50)
            clock.set(offset)
            row = await replication_is(agent, "failed")
            assert "RequestTimeTooSkewed" in row["error"]
            assert "set this machine's clock right" in row["hint"]
            clock.set(0)
            await agent.call("start", "replication")
            await ledger.grown(50)
        await captured(rig, agent, ledger)
    finally:
        await proxy.stop()
