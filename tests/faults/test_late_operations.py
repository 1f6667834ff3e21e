"""Operations that come after the fence: over the whole chain they are restored, and nothing is cleaned before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bson import decode

from d5agent.core.naming import SEGMENTS
from d5agent.core.services import Phase, Service
from tests.fakes.cluster import insert
from tests.fakes.mortal import Life
from tests.faults.world import CAPTURE, CLEAN, ORDERS, RESTORE, World, restore_is_verified

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon

LATE = 100


def _write_late(world: World) -> None:
    if LATE not in [document.get("n") for document in _documents(world)]:
        world.cluster.apply(insert(ORDERS, {"_id": LATE, "n": LATE}))


def _documents(world: World) -> list[dict[str, object]]:
    return [decode(document) for document in world.contents().get(ORDERS, {}).values()]


async def an_operation_comes_after_the_fence(world: World, daemon: Daemon) -> bool:
    """Start restore, and write as soon as the fence is drawn."""
    if daemon.state.status(Service.RESTORE) is None:
        await daemon.start(Phase.RESTORE)
    if daemon.state.fence is None:
        return False
    _write_late(world)
    return await world.captured() == world.foreign_events


async def an_operation_comes_after_the_proof(world: World, daemon: Daemon) -> bool:
    """Write when restore has verified all that there was."""
    if not await restore_is_verified(world, daemon):
        return False
    _write_late(world)
    return await world.captured() == world.foreign_events


async def check_end(world: World) -> None:
    assert world.target.database.contents() == world.contents()
    assert LATE in [document.get("n") for document in _documents(world)]
    assert not [key for key in world.store.objects if key.startswith(SEGMENTS)]
    assert world.power.requests == 1


async def test_an_operation_after_the_fence_is_replayed_and_verified_before_the_clean_up() -> None:
    world = World()
    assert await world.live(Life(None), (*CAPTURE, an_operation_comes_after_the_fence, *RESTORE, *CLEAN))
    await check_end(world)


async def test_an_operation_after_the_proof_is_replayed_and_verified_before_the_clean_up() -> None:
    world = World()
    assert await world.live(Life(None), (*CAPTURE, an_operation_comes_after_the_proof, *CLEAN))
    await check_end(world)
