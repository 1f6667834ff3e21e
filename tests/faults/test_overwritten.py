"""Somebody writes to the target after its dump began; wherever the agent dies, that version can be read again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from d5agent.core.run.services import Phase, Service, Status
from d5agent.steps.backups import is_stored
from tests.fakes.documents import raw_id
from tests.fakes.kept import kept_documents
from tests.fakes.mortal import Life
from tests.faults.deaths import halves_of, worlds_left
from tests.faults.test_crash_everywhere import check_clean, check_restored
from tests.faults.world import ACCOUNTS, CAPTURE, CLEAN, CUTOVER, ORDERS, RESTORE, World, restore_follows

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon
    from tests.faults.deaths import Script

FOREIGN: Final = ({"_id": 1, "n": "foreign"}, {"_id": 2, "n": "foreign"}, {"_id": "of MongoDB only"})
AGAIN: Final = {"_id": 1, "n": "foreign, while restore was stopped"}


async def target_is_dumped(world: World, daemon: Daemon) -> bool:
    """Start the backup by itself, and wait until it is stored."""
    if daemon.state.status(Service.BACKUP) is None:
        await daemon.start(Service.BACKUP)
    return await is_stored(world.store, daemon.state.run_id, "target")


async def somebody_writes(world: World, _: Daemon) -> bool:
    """Write what the outage touches too, and delete something, after the dump of the target."""
    for document in FOREIGN:
        assert world.target.database.write_as_another(ORDERS, document)
    world.target.database.remove(ORDERS, raw_id("of MongoDB only"))
    world.target.database.remove(ACCOUNTS, raw_id(2))
    return True


def check_kept(world: World, *more: dict[str, Any]) -> None:
    """The foreign versions are kept once, and nothing that the agent wrote; the certificate says so."""
    kept = kept_documents(world.store.objects)
    assert kept == {"shop.orders": [*FOREIGN[:2], ("of MongoDB only",), *more], "shop.accounts": [("2",)]}
    (body,) = [body for key, body in world.store.objects.items() if key.endswith("/certificate.json")]
    said = json.loads(body)["overwritten"]
    assert (said["state"], said["documents"], said["deleted"]) == ("complete", 2 + len(more), 2)


WRITTEN: Final[Script] = (*CAPTURE, target_is_dumped, somebody_writes)


async def test_what_was_written_after_the_dump_outlives_each_death() -> None:
    script = (*WRITTEN, *RESTORE)
    left = await worlds_left(script, first=await halves_of((*CAPTURE, target_is_dumped)))
    assert len(left) > 200
    for number, world in enumerate(left):
        assert await world.live(Life(None), script)
        try:
            await check_restored(world)
            check_kept(world)
        except AssertionError as error:
            error.add_note(f"died {number} halves of calls after the capture")
            raise


async def test_clean_leaves_what_was_kept() -> None:
    world = World()
    assert await world.live(Life(None), (*WRITTEN, *RESTORE, *CLEAN))
    await check_clean(world)
    check_kept(world)


async def test_a_live_restore_keeps_it_too() -> None:
    script = (*CAPTURE[:2], target_is_dumped, somebody_writes, restore_follows, *CUTOVER)
    captured = await halves_of(CAPTURE[:2], is_live=True)
    left = await worlds_left(script, first=captured, step=5, is_live=True)
    assert len(left) > 50
    for world in left:
        assert await world.live(Life(None), script)
        await check_restored(world)
        check_kept(world)


async def restore_is_at_work(world: World, daemon: Daemon) -> bool:
    """Start a live restore, and wait until it follows."""
    if daemon.state.status(Service.RESTORE) is None:
        await daemon.start(Phase.RESTORE)
    return daemon.progress.restore.can_cutover is True and world.target.database.is_blocked


async def restore_is_stopped(world: World, daemon: Daemon) -> bool:
    """Stop it, which gives the target back."""
    if daemon.state.status(Service.RESTORE) is not Status.STOPPED:
        await daemon.stop(Service.RESTORE)
    return not world.target.database.is_blocked


async def somebody_writes_again(world: World, _: Daemon) -> bool:
    """Write while restore is stopped."""
    assert world.target.database.write_as_another(ORDERS, AGAIN)
    return True


async def restore_is_started_again(world: World, daemon: Daemon) -> bool:
    """Start it once more, and let the applications write on to their end."""
    if daemon.state.status(Service.RESTORE) is Status.STOPPED:
        await daemon.start(Service.RESTORE)
    return await restore_follows(world, daemon)


@pytest.mark.parametrize("first", [0, 3])
async def test_what_is_written_while_restore_is_stopped_outlives_deaths(first: int) -> None:
    stopped = (*CAPTURE[:2], target_is_dumped, somebody_writes, restore_is_at_work)
    script = (*stopped, restore_is_stopped, somebody_writes_again, restore_is_started_again, *CUTOVER)
    begin = await halves_of(stopped, is_live=True)
    left = await worlds_left(script, first=begin + first, step=6, is_live=True)
    assert len(left) > 50
    for world in left:
        assert await world.live(Life(None), script)
        await check_restored(world)
        check_kept(world, AGAIN)
