"""A delete that the store performs late, after its repetition was answered, meets nothing of the next run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.core.log.naming import SEGMENTS
from d5agent.core.run.services import Phase
from d5agent.errors import RefusedError
from d5agent.steps.log.reader import LogReader
from tests.fakes.mortal import Life
from tests.fakes.store import FakeObjectStore
from tests.faults.test_crash_everywhere import check_log, check_restored
from tests.faults.world import CAPTURE, CLEAN, FORCE, RESTORE, World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.runtime.daemon import Daemon
    from tests.faults.world import Act


async def another_run_begins(_: World, daemon: Daemon) -> bool:
    """Start replication on what an ended run has left, once no power-off is under way."""
    try:
        await daemon.start(Phase.REPLICATION)
    except RefusedError:
        return False
    return True


@pytest.mark.parametrize("script", [(*CAPTURE, *RESTORE, *CLEAN), (*CAPTURE, *FORCE)], ids=["earned", "forced"])
async def test_deletes_of_one_run_that_come_late_meet_nothing_of_the_next(script: tuple[Act, ...]) -> None:
    first = World()
    late: list[str] = []
    delete = first.store.delete

    async def remember(keys: Sequence[str]) -> None:
        late.extend(key for key in keys if key.startswith(SEGMENTS))
        await delete(keys)

    first.store.delete = remember  # type: ignore[method-assign]  # what is sent twice
    assert await first.live(Life(None), script)
    assert late

    await first.clock.sleep(60)
    second = World(clock=first.clock, store=first.store, states=first.states)
    assert await second.live(Life(None), (another_run_begins, *CAPTURE))
    before = dict(second.store.objects)
    await FakeObjectStore.delete(second.store, late)
    assert second.store.objects == before
    await check_log(second)
    numbers = [link.commit.sequence async for link in LogReader(store=second.store).links()]
    assert numbers[0] > max(int(key.split("/")[-1][:12]) for key in late if "/.log/0" in key)
    assert await second.live(Life(None), (another_run_begins, *CAPTURE, *RESTORE))
    await check_restored(second)
