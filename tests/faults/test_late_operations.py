"""Operations after the fence are restored; after the certificate only on an operator's word, and none is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from bson import decode

from d5agent.core.log.naming import SEGMENTS
from d5agent.core.replay.ttl import TtlIndex
from d5agent.core.run.services import Phase, Service, Status
from d5agent.core.run.words import Words
from tests.fakes.cluster import delete, insert, update
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.mortal import Life
from tests.faults.deaths import crash_everywhere, halves_of, worlds_left
from tests.faults.world import ACCOUNTS, CAPTURE, CLEAN, CUTOVER, FOLLOW, ORDERS, RESTORE, World

if TYPE_CHECKING:
    from d5agent.core.log.operation import Namespace
    from d5agent.runtime.daemon import Daemon
    from tests.faults.deaths import Script

LATE = 100
NO_RIGHT: Final = "the agent's user may not setUserWriteBlockMode"
TTL: Final = TtlIndex(namespace=ORDERS, name="at_1", field="at", seconds=60, collection_id="1")


def _write_late(world: World) -> None:
    if LATE not in [document.get("n") for document in _documents(world)]:
        world.cluster.apply(insert(ORDERS, {"_id": LATE, "n": LATE}))


def _documents(world: World) -> list[dict[str, object]]:
    return [decode(document) for document in world.contents().get(ORDERS, {}).values()]


def _found(world: World, namespace: Namespace, id_: object) -> dict[str, object] | None:
    document = world.target.database.find(namespace, raw_id(id_))
    return None if document is None else decode(document)


async def an_operation_comes_after_the_fence(world: World, daemon: Daemon) -> bool:
    """Start restore, and write once the fence is drawn; restore applies nothing before the log holds it."""
    if daemon.state.status(Service.RESTORE) is None:
        await daemon.start(Phase.RESTORE)
        await daemon.pause(is_paused=True)
    if daemon.state.fence is None:
        return False
    _write_late(world)
    if await world.captured() < world.foreign_events:
        return False
    await daemon.pause(is_paused=False)
    return True


async def applications_move_over(world: World, _: Daemon) -> bool:
    """Change a document in the target, and delete another."""
    world.target.database.put(ORDERS, raw_id(2), raw_document({"_id": 2, "n": 999}))
    world.target.database.remove(ACCOUNTS, raw_id(3))
    return True


async def stray_writes_reach_the_source(world: World, _: Daemon) -> bool:
    """Let forgotten jobs write what the target can take, and what it has changed since."""
    if LATE not in [document.get("n") for document in _documents(world)]:
        world.cluster.apply(insert(ORDERS, {"_id": LATE, "n": LATE}))
        world.cluster.apply(delete(ORDERS, 1))
        world.cluster.apply(update(ORDERS, {"_id": 2, "n": 6}))
    return await world.captured() == world.foreign_events


async def monitor_restore_asks(_: World, daemon: Daemon) -> bool:
    """Start monitor-restore, which reports the late operations and ends."""
    if daemon.state.status(Service.MONITOR_RESTORE) is None:
        await daemon.start(Service.MONITOR_RESTORE)
    return daemon.state.status(Service.MONITOR_RESTORE) is Status.FAILED and daemon.state.late.shown is not None


async def late_operations_are_accepted(world: World, daemon: Daemon) -> bool:
    """Say that they are to be written, and wait for the end."""
    world.may_clean = lambda world: _found(world, ORDERS, LATE) is not None
    if daemon.state.phase is not Phase.IDLE and not daemon.state.late.words:
        await daemon.start(Service.MONITOR_RESTORE, words=Words(accept_late=daemon.state.run_id))
    return daemon.state.phase is Phase.IDLE and world.power.requests > 0


async def late_operations_are_discarded(world: World, daemon: Daemon) -> bool:
    """Say that the target is to stay as it is, and wait for the end."""
    world.may_clean = lambda _: True
    if daemon.state.phase is not Phase.IDLE and not daemon.state.late.words:
        await daemon.start(Service.MONITOR_RESTORE, words=Words(discard_late=daemon.state.run_id))
    return daemon.state.phase is Phase.IDLE and world.power.requests > 0


MOVED = (applications_move_over, stray_writes_reach_the_source, monitor_restore_asks)


async def check_end(world: World) -> None:
    assert world.target.database.contents() == world.contents()
    assert LATE in [document.get("n") for document in _documents(world)]
    check_cleared(world)
    assert world.power.requests == 1


def check_cleared(world: World) -> None:
    assert not [key for key in world.store.objects if key.startswith(SEGMENTS)]
    assert set(world.states.texts) == {"phase"}


def check_applications_writes(world: World) -> None:
    """What applications wrote to the target is there."""
    assert _found(world, ORDERS, 2) == {"_id": 2, "n": 999}
    assert _found(world, ACCOUNTS, 3) is None


async def check_accepted(world: World) -> None:
    """So it is, and so is what was accepted, where the target had not changed it."""
    check_applications_writes(world)
    assert _found(world, ORDERS, LATE) == {"_id": LATE, "n": LATE}
    assert _found(world, ORDERS, 1) is None
    check_cleared(world)
    assert [key for key in world.store.objects if key.startswith("reports/") and key.endswith("/result.json")]


async def check_discarded(world: World) -> None:
    """The target is as applications left it, and the discarded operations can be read."""
    check_applications_writes(world)
    assert _found(world, ORDERS, LATE) is None
    assert _found(world, ORDERS, 1) is not None
    check_cleared(world)
    assert [key for key in world.store.objects if "/late/" in key and "events-" in key]


async def test_an_operation_after_the_fence_is_replayed_and_verified_before_the_clean_up() -> None:
    world = World()
    assert await world.live(Life(None), (*CAPTURE, an_operation_comes_after_the_fence, *RESTORE, *CLEAN))
    await check_end(world)


async def test_no_restore_after_the_certificate_reverts_an_application() -> None:
    async def restore_is_typed_again(_: World, daemon: Daemon) -> bool:
        row = daemon.state.services[Service.MONITOR_RESTORE]
        if daemon.state.services[Service.RESTORE].since <= row.since:
            await world.clock.sleep(2)
            await daemon.start(Phase.RESTORE)
        return daemon.state.status(Service.RESTORE) is Status.FAILED

    for is_live, restore in ((False, (*CAPTURE, *RESTORE)), (True, (*FOLLOW, *CUTOVER))):
        world = World(is_live=is_live)
        assert await world.live(Life(None), (*restore, *MOVED, restore_is_typed_again))
        check_applications_writes(world)
        assert _found(world, ORDERS, LATE) is None
        assert _found(world, ORDERS, 1) is not None
        assert await world.live(Life(None), (*restore, *MOVED, restore_is_typed_again, late_operations_are_accepted))
        await check_accepted(world)


async def test_an_accepted_late_restore_that_dies_anywhere_reverts_and_loses_nothing() -> None:
    asked = (*CAPTURE, *RESTORE, *MOVED)
    first = await halves_of((*CAPTURE, *RESTORE))
    assert await crash_everywhere((*asked, late_operations_are_accepted), check_accepted, first=first) > 200


@pytest.mark.parametrize("obstacle", ["", NO_RIGHT], ids=["write-block mode", "TTL held"])
async def test_a_word_on_late_operations_meets_no_target_that_a_death_has_left_closed(obstacle: str) -> None:
    """Die around the certificate, whatever is left closed then: applications move, and a word is given."""

    async def applications_may_move(world: World, daemon: Daemon) -> bool:
        is_given_back = not world.target.database.is_blocked and world.target.database.ttl == {ORDERS: (TTL,)}
        return is_given_back and await applications_move_over(world, daemon)

    script = (*CAPTURE, *RESTORE, applications_may_move, *MOVED[1:], late_operations_are_accepted)
    world, others = World(obstacle=obstacle), World(obstacle=obstacle)
    for each in (world, others):
        each.target.database.ttl[ORDERS] = (TTL,)
    life = Life(None)
    assert await others.live(life, (*CAPTURE, *RESTORE))
    left = await worlds_left(script, first=life.spent - 80, step=8, world=world)
    for number, each in enumerate(left):
        assert await each.live(Life(None), script)
        await check_accepted(each)
        assert not each.target.database.is_blocked, number
        assert each.target.database.ttl == {ORDERS: (TTL,)}
    assert len(left) > 30


async def test_a_discarding_word_that_dies_anywhere_leaves_the_target_as_it_is() -> None:
    asked = (*CAPTURE, *RESTORE, *MOVED)
    first = await halves_of(asked)
    assert await crash_everywhere((*asked, late_operations_are_discarded), check_discarded, first=first) > 80


@pytest.mark.parametrize(
    ("restore", "is_live"), [((*CAPTURE, *RESTORE), False), ((*FOLLOW, *CUTOVER), True)], ids=["drained", "live"]
)
async def test_whoever_sees_a_certificate_may_write_even_if_the_agent_died_over_it(
    restore: Script, *, is_live: bool
) -> None:
    seen = 0
    for world in await worlds_left(restore, first=await halves_of(restore[:-1], is_live=is_live), is_live=is_live):
        if not any(key.endswith(("certificate.html", "certificate.json")) for key in world.store.objects):
            continue
        seen += 1
        world.target.database.put(ORDERS, raw_id(2), raw_document({"_id": 2, "n": 999}))
        assert await world.live(Life(None), restore)
        assert _found(world, ORDERS, 2) == {"_id": 2, "n": 999}
        assert {"certificate.json", "certificate.html"} <= {key.rpartition("/")[2] for key in world.store.objects}
    assert seen > 3
