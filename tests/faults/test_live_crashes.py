"""A live restore dies before and after every call, and so does its cutover, called off or not: the same end."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import structlog

from d5agent.core.services import Service, Status
from tests.fakes.cluster import insert
from tests.fakes.documents import raw_id
from tests.fakes.mortal import Life
from tests.faults.test_crash_everywhere import check_clean, check_log_and_target
from tests.faults.world import CLEAN, CUTOVER, FOLLOW, ORDERS, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from d5agent.runtime.daemon import Daemon
    from tests.faults.world import Act

WHOLE = (*FOLLOW, *CUTOVER, *CLEAN)
TRIPLES = 40


async def cutover_is_called_off(world: World, daemon: Daemon) -> bool:
    """Ask for the cutover while a write does not end, and call it off once the application was refused."""
    status = daemon.state.status(Service.MONITOR_REPLICATION)
    if status is None:
        world.source.writes = ["update on shop.orders since 3 s"]
        await daemon.start(Service.MONITOR_REPLICATION)
    elif status is Status.STOPPED and "accept" in world.application.told:
        world.source.writes = []
        await daemon.start(Service.MONITOR_REPLICATION)
        return True
    elif "refuse" in world.application.told:
        await daemon.call_off()  # typed again where a death came before it had answered
    return False


CALLED_OFF = (*FOLLOW, cutover_is_called_off, *CUTOVER)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A death leaves a traceback; thousands of them hide the one that matters."""
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.ReturnLoggerFactory()
    )
    yield
    structlog.reset_defaults()


async def die_at(script: tuple[Act, ...], *deaths: int) -> World:
    """Return the live world after agents that died after so many halves of calls, and one that lived to the end."""
    world = World(is_live=True)
    for halves in deaths:
        await world.live(Life(halves), script)
    assert await world.live(Life(None), script)
    return world


async def halves_of(script: tuple[Act, ...]) -> int:
    """Return how many moments there are to die in."""
    life = Life(None)
    assert await World(is_live=True).live(life, script)
    return life.spent


async def crash_everywhere(script: tuple[Act, ...], *, first: int, step: int) -> int:
    """Die at each moment once, or at each so-and-so-many-th; start again, check. Return how many moments there were."""
    count = await halves_of(script)
    for halves in range(first, count, step):
        world = await die_at(script, halves)
        await check_log_and_target(world)
        assert set(world.application.told) <= {"refuse"}
    return count - first


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.system), 7])
async def test_a_live_restore_that_dies_anywhere_follows_again_and_ends_equal(step: int) -> None:
    captured = await halves_of(FOLLOW[:2])
    assert await crash_everywhere((*FOLLOW, *CUTOVER), first=captured, step=step) > 400


@pytest.mark.timeout(300)
async def test_dying_three_times_at_random_moments_of_a_live_failback_does_no_harm() -> None:
    dice, count = random.Random(20261124), await halves_of(WHOLE)
    for _ in range(TRIPLES):
        await check_clean(await die_at(WHOLE, *[dice.randrange(count) for _ in range(3)]))


async def test_a_cutover_that_is_called_off_dies_anywhere_and_a_later_one_ends_equal() -> None:
    following = await halves_of(FOLLOW)
    count = await halves_of(CALLED_OFF)
    for halves in range(following, count, 11):
        world = await die_at(CALLED_OFF, halves)
        await check_log_and_target(world)
        assert world.application.told.index("accept") > world.application.told.index("refuse")
        assert world.application.told[-1] == "refuse"


async def write_after_the_fence(world: World, daemon: Daemon) -> bool:
    """Write as soon as the fence is drawn: the application was not really read-only."""
    if daemon.state.status(Service.MONITOR_REPLICATION) is None:
        await daemon.start(Service.MONITOR_REPLICATION)
    if daemon.state.fence is None:
        return False
    if raw_id("late") not in world.contents()[ORDERS]:
        world.cluster.apply(insert(ORDERS, {"_id": "late"}))
    return await world.captured() == world.foreign_events


async def test_a_write_after_the_fence_of_a_cutover_is_replayed_and_verified_before_the_clean_up() -> None:
    world = World(is_live=True)
    assert await world.live(Life(None), (*FOLLOW, write_after_the_fence, *CUTOVER, *CLEAN))
    await check_clean(world)
    assert raw_id("late") in world.contents()[ORDERS]
