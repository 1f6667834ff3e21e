"""Collections move into and out of databases that are dropped; documents and indexes are right wherever it dies."""

from __future__ import annotations

from typing import Final

import pytest

from d5agent.core.log.operation import Namespace
from tests.fakes.cluster import drop_database, insert, rename, update
from tests.fakes.mortal import Life
from tests.faults.deaths import halves_of, worlds_left
from tests.faults.test_target_hold import CAPTURED, NO_RIGHT, TTL, HostileWorld, hostile
from tests.faults.world import ACCOUNTS, CAPTURE, OLD, ORDERS, RESTORE, SCRATCH

ARCHIVED: Final = Namespace("archive", "old")
MOVED: Final = Namespace("scratch", "orders")
BACK: Final = Namespace("shop", "back")
MOVES: Final = (
    (insert(SCRATCH, {"_id": 1}),),
    (drop_database("scratch"),),
    (rename(ORDERS, MOVED),),  # into a database that was dropped
    (insert(ORDERS, {"_id": 7}),),
    (insert(SCRATCH, {"_id": 2}),),
    (rename(OLD, ARCHIVED),),  # into one that will be
    (insert(OLD, {"_id": 8}),),
    (rename(MOVED, BACK),),  # out of one that will be
    (insert(ARCHIVED, {"_id": 10}),),
    (drop_database("archive"),),
    (insert(ARCHIVED, {"_id": 11}),),
    (drop_database("scratch"),),
    (rename(ARCHIVED, SCRATCH),),  # between two that were
    (update(BACK, {"_id": 1, "n": 5}),),
    (insert(ACCOUNTS, {"_id": 3, "email": "c"}),),
)
EXPECTED: Final = {ORDERS: ORDERS, BACK: ORDERS, OLD: OLD, ACCOUNTS: ACCOUNTS}
"""Which index a collection has in the end, by the name that had it."""


def check(world: HostileWorld) -> None:
    database = world.target.database
    assert database.contents() == world.contents()
    assert not database.is_blocked
    left = {name: index.seconds for name, indexes in database.ttl.items() for index in indexes}
    assert left == {name: TTL[first][0].seconds for name, first in EXPECTED.items()}
    assert database.unique == world.cluster.database.unique


@pytest.mark.parametrize("obstacle", ["", NO_RIGHT], ids=["write-block mode", "TTL held"])
async def test_databases_that_move_and_are_dropped_are_restored_wherever_restore_dies(obstacle: str) -> None:
    script = (*CAPTURE, *RESTORE)
    world = hostile(obstacle=obstacle, history=MOVES)
    first = await halves_of(script[:CAPTURED])
    left = await worlds_left(script, first=first, step=9, world=world)
    for number, each in enumerate(left):
        assert isinstance(each, HostileWorld)
        assert await each.live(Life(None), script)
        try:
            check(each)
        except AssertionError as error:
            error.add_note(f"died {number * 9} halves of calls after the capture")
            raise
    assert len(left) > 30
