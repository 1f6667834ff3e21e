"""A live restore dies before and after every call, and so does its cutover, called off or not: the same end."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from d5agent.core.run.services import Phase, Service, Status
from d5agent.core.run.words import Words
from tests.fakes.cluster import insert
from tests.fakes.documents import raw_id
from tests.fakes.mortal import Life
from tests.faults.deaths import crash_everywhere, die_at, halves_of
from tests.faults.test_crash_everywhere import check_clean, check_log_and_target
from tests.faults.world import CLEAN, CUTOVER, FOLLOW, ORDERS, World

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon

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


async def check_refused(world: World) -> None:
    """All is restored, and the application was never told that it may write again."""
    await check_log_and_target(world)
    assert set(world.application.told) <= {"refuse"}


async def check_called_off(world: World) -> None:
    """All is restored; the application might write again after the first cutover, and was refused at the second."""
    await check_log_and_target(world)
    assert world.application.told.index("accept") > world.application.told.index("refuse")
    assert world.application.told[-1] == "refuse"


async def test_a_live_restore_that_dies_anywhere_follows_again_and_ends_equal() -> None:
    captured = await halves_of(FOLLOW[:2], is_live=True)
    assert await crash_everywhere((*FOLLOW, *CUTOVER), check_refused, first=captured, is_live=True) > 400


async def test_dying_three_times_at_random_moments_of_a_live_failback_does_no_harm() -> None:
    dice, count = random.Random(20261124), await halves_of(WHOLE, is_live=True)
    for _ in range(TRIPLES):
        await check_clean(await die_at(WHOLE, *[dice.randrange(count) for _ in range(3)], is_live=True))


async def test_a_cutover_that_is_called_off_dies_anywhere_and_a_later_one_ends_equal() -> None:
    following = await halves_of(FOLLOW, is_live=True)
    assert await crash_everywhere(CALLED_OFF, check_called_off, first=following, is_live=True) > 100


async def write_after_the_fence(world: World, daemon: Daemon) -> bool:
    """Write as soon as the fence is drawn: the application was not really read-only."""
    if daemon.state.status(Service.MONITOR_REPLICATION) is None:
        await daemon.start(Service.MONITOR_REPLICATION)
    if daemon.state.fence is None:
        return False
    if raw_id("late") not in world.contents()[ORDERS]:
        world.cluster.apply(insert(ORDERS, {"_id": "late"}))
    return await world.captured() == world.foreign_events


async def all_is_clean_on_a_word(world: World, daemon: Daemon) -> bool:
    """Clean up; a write that came only after the certificate is reported, and accepted."""
    status = daemon.state.status(Service.MONITOR_RESTORE)
    if status is None and daemon.state.phase is not Phase.IDLE:
        await daemon.start(Service.MONITOR_RESTORE)
    elif status is Status.FAILED and not daemon.state.late.words:
        await daemon.start(Service.MONITOR_RESTORE, words=Words(accept_late=daemon.state.run_id))
    return daemon.state.phase is Phase.IDLE and world.power.requests > 0


async def test_a_write_after_the_fence_of_a_cutover_is_in_the_target_before_the_clean_up() -> None:
    world = World(is_live=True)
    assert await world.live(Life(None), (*FOLLOW, write_after_the_fence, *CUTOVER, all_is_clean_on_a_word))
    await check_clean(world)
    assert raw_id("late") in world.contents()[ORDERS]
