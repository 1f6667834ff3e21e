"""While restore is at work nobody else writes to the target; wherever the agent dies, it is given back in the end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
from typing_extensions import override

from d5agent.core.log.operation import ClusterTime
from d5agent.core.replay.ttl import TtlIndex
from d5agent.core.run.hold import HOLD
from d5agent.core.run.services import Phase, Service, Status
from d5agent.errors import OperatorError
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.mortal import Life
from tests.faults.deaths import halves_of, worlds_left
from tests.faults.test_crash_everywhere import check_clean
from tests.faults.world import ACCOUNTS, CAPTURE, CLEAN, CUTOVER, FOLLOW, FORCE, OLD, ORDERS, RESTORE, World

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon
    from tests.faults.deaths import Script

EXPIRED: Final = {"_id": "session", "at": datetime(2026, 1, 1, tzinfo=UTC)}
FOREIGN: Final = {"_id": "foreign"}
NO_RIGHT: Final = "the agent's user may not setUserWriteBlockMode"
# The history renames and drops the one of these collections, and leaves the others.
TTL: Final = {
    namespace: (TtlIndex(namespace=namespace, name="at_1", field="at", seconds=60 * number, collection_id=str(number)),)
    for number, namespace in enumerate((ORDERS, ACCOUNTS, OLD), 1)
}


class HostileWorld(World):
    """Whenever the agent writes to the target, its reaper passes by, and somebody else writes to it as well.

    (As soon as restore is at work: what reaches the target before its hold is not the hold's affair.) `refuses`: the
    target takes no write of the agent's either.
    """

    refuses = False
    has_no_others = False

    @override
    def daemon(self, life: Life) -> Daemon:
        daemon = super().daemon(life)

        def before_each() -> None:
            self.target.database.reap(ClusterTime(int(self.clock.now().timestamp()), 1))
            if not self.has_no_others:
                self.target.database.write_as_another(ACCOUNTS, FOREIGN)
            if self.refuses:
                raise OperatorError("the target refused a command", hint="see what it says")
            life.spend()

        self.target.before_each = before_each
        return daemon


def hostile(**changed: Any) -> HostileWorld:  # noqa: ANN401 -- fields of the world
    """Return a world whose target has TTL indexes, and on both sides a document that has expired."""
    world = HostileWorld(**changed)
    world.target.database.ttl.update(TTL)
    for database in (world.target.database, world.cluster.database):
        database.put(ORDERS, raw_id(EXPIRED["_id"]), raw_document(EXPIRED))
    world.has_no_others = bool(world.obstacle)
    return world


async def check_given_back(world: World) -> None:
    """Both sides are equal, everybody may write, each TTL index is as it was, and nobody has written in between."""
    database = world.target.database
    assert database.contents() == world.contents()
    assert not database.is_blocked
    assert {n: database.ttl.get(n) for n in (ORDERS, ACCOUNTS)} == {n: TTL[n] for n in (ORDERS, ACCOUNTS)}
    left = {str(name): index.seconds for name, indexes in database.ttl.items() for index in indexes}
    assert left == {str(name): index.seconds for name, (index,) in TTL.items()}


async def die_everywhere(script: Script, world: HostileWorld, *, step: int = 1) -> int:
    """Die at each moment after the capture, or at every `step`-th; look at each end. Return the number of deaths."""
    captured = await halves_of(script[:CAPTURED], is_live=world.is_live)
    left = await worlds_left(script, first=captured, step=step, world=world)
    for number, each in enumerate(left):
        assert await each.live(Life(None), script)
        try:
            await check_given_back(each)
        except AssertionError as error:
            error.add_note(f"died {number * step} halves of calls after the capture")
            raise
    return len(left)


CAPTURED: Final = 2  # acts of FOLLOW, and of CAPTURE but for its last


@pytest.mark.parametrize("obstacle", ["", NO_RIGHT], ids=["write-block mode", "TTL held"])
async def test_a_restore_that_dies_anywhere_gives_the_target_back(obstacle: str) -> None:
    assert await die_everywhere((*CAPTURE, *RESTORE), hostile(obstacle=obstacle)) > 400


@pytest.mark.parametrize("obstacle", ["", NO_RIGHT], ids=["write-block mode", "TTL held"])
async def test_a_live_restore_that_dies_gives_the_target_back(obstacle: str) -> None:
    assert await die_everywhere((*FOLLOW, *CUTOVER), hostile(obstacle=obstacle, is_live=True), step=7) > 50


async def restore_has_failed(world: World, daemon: Daemon) -> bool:
    """Start a restore whose first write is refused; its target stays closed to others."""
    assert isinstance(world, HostileWorld)
    if daemon.state.status(Service.RESTORE) is None:
        world.refuses = True
        await daemon.start(Phase.RESTORE)
    if daemon.state.status(Service.RESTORE) is not Status.FAILED:
        return False
    is_closed = world.target.database.is_blocked or not world.target.database.ttl[ORDERS][0].deletes
    assert is_closed
    return True


async def restore_is_stopped(world: World, daemon: Daemon) -> bool:
    """Stop the restore that has failed: the target is given back, and stays so."""
    assert isinstance(world, HostileWorld)
    world.has_no_others = True
    await daemon.stop(Phase.RESTORE)
    database = world.target.database
    assert not database.is_blocked
    assert database.ttl[ORDERS] == TTL[ORDERS]
    world.refuses = False
    return True


async def restore_is_started_again(_: World, daemon: Daemon) -> bool:
    """Restore once more, and wait for the proof."""
    if daemon.state.status(Service.RESTORE) is Status.FAILED:
        await daemon.start(Phase.RESTORE)
    return daemon.state.verified is not None and daemon.state.status(Service.RESTORE) is Status.DONE


@pytest.mark.parametrize("obstacle", ["", NO_RIGHT], ids=["write-block mode", "TTL held"])
async def test_a_failed_restore_holds_the_target_until_it_is_stopped(obstacle: str) -> None:
    script = (*CAPTURE, restore_has_failed, restore_is_stopped, restore_is_started_again)
    assert await die_everywhere(script, hostile(obstacle=obstacle), step=7) > 50


async def test_a_failed_restore_that_is_given_up_gives_the_target_back() -> None:
    script = (*CAPTURE, restore_has_failed, *FORCE)
    captured = await halves_of(script[:CAPTURED])
    for world in await worlds_left(script, first=captured, step=3, world=hostile()):
        assert await world.live(Life(None), script)
        assert not world.target.database.is_blocked
        assert HOLD not in world.states.texts


async def test_a_block_that_somebody_else_has_set_is_left() -> None:
    world = hostile()
    world.target.database.is_blocked = True
    script = (*CAPTURE, *RESTORE)
    for each in await worlds_left(script, first=await halves_of(CAPTURE), step=5, world=world):
        assert await each.live(Life(None), script)
        assert each.target.database.is_blocked
        each.target.database.is_blocked = False
        await check_given_back(each)


async def test_a_target_stays_open_from_its_certificate_on() -> None:
    world = hostile()
    assert await world.live(Life(None), (*CAPTURE, *RESTORE))
    world.has_no_others = True

    async def all_is_clean_while_others_write(world: World, daemon: Daemon) -> bool:
        assert world.target.database.write_as_another(ORDERS, {"_id": "after the certificate"})
        world.target.database.remove(ORDERS, raw_id("after the certificate"))
        return await CLEAN[0](world, daemon)

    assert await world.live(Life(None), (*CAPTURE, *RESTORE, all_is_clean_while_others_write))
    await check_clean(world)
