"""A disk from a snapshot is a stranger: it takes nothing from a living agent, and goes on from the newest state."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from d5agent.errors import LogHeldError
from d5agent.runtime.holder import KEY
from tests.fakes.pausing import Gate
from tests.fakes.stage import until
from tests.faults.test_crash_everywhere import check_clean
from tests.faults.test_two_writers import Agent
from tests.faults.world import CAPTURE, CLEAN, RESTORE, World

if TYPE_CHECKING:
    from pathlib import Path

    from d5agent.runtime.daemon import Daemon


@pytest.mark.parametrize("copied_at", range(len(CAPTURE) + 1))
async def test_a_disk_from_a_snapshot_goes_on_with_the_newest_state(tmp_path: Path, copied_at: int) -> None:
    world = World()
    first = Agent(world=world, name="first", folder=tmp_path / "first", gate=Gate())
    copies = (tmp_path / "refused", tmp_path / "second")

    async def the_disk_is_copied(*_: World | Daemon) -> bool:
        for copy in copies:
            shutil.copytree(first.folder, copy)
        return True

    script = (*CAPTURE[:copied_at], the_disk_is_copied, *CAPTURE[copied_at:], *RESTORE)
    async with asyncio.TaskGroup() as group:
        one = group.create_task(first.live(script))
        await until(world.clock, lambda: first.has_played)

        refused = await Agent(world=world, name="copy", folder=copies[0], gate=Gate()).live(())
        assert isinstance(refused, LogHeldError)
        assert not one.done(), "the living agent is left alone"

        first.gate.is_closed = True
        began = world.clock.monotonic()
        second = Agent(world=world, name="second", folder=copies[1], gate=Gate())
        two = group.create_task(second.live((*script, *CLEAN)))
        await until(world.clock, lambda: second.has_played or two.done())
        assert world.clock.monotonic() - began > 3 * second.lease.beat_seconds
        assert json.loads(world.store.objects[KEY])["agent_id"] == second.disk.agent_id != "first"
        first.gate.wake()
        await until(world.clock, one.done)
        assert isinstance(one.result(), LogHeldError)
        second.daemon.end()
    await check_clean(world)
