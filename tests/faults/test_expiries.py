"""The source's TTL indexes delete on after the certificate; wherever the agent dies, monitor-restore and clean end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from d5agent.core.replay.ttl import TtlIndex
from tests.fakes.cluster import delete
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.mortal import Life
from tests.faults.deaths import halves_of, worlds_left
from tests.faults.test_crash_everywhere import check_cleared
from tests.faults.world import CAPTURE, CLEAN, ORDERS, RESTORE, World

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon

TTL: Final = TtlIndex(namespace=ORDERS, name="at_1", field="at", seconds=60)
SESSIONS: Final = 6


class ExpiringWorld(World):
    """Its source holds documents that have expired, and so does its target, which lets them be."""

    @override
    def _connect(self) -> None:
        super()._connect()
        self.store.may_delete = lambda: True  # what has expired is different in the end

    def session(self) -> int | None:
        """Return a document that is to expire next."""
        left = (n for n in range(SESSIONS) if self.cluster.database.find(ORDERS, raw_id(f"session {n}")) is not None)
        return next(left, None)


def expiring() -> ExpiringWorld:
    world = ExpiringWorld()
    world.cluster.database.ttl[ORDERS] = (TTL,)
    for number in range(SESSIONS):
        document = {"_id": f"session {number}", "at": datetime(2026, 1, 1, tzinfo=UTC)}
        for database in (world.target.database, world.cluster.database):
            database.put(ORDERS, raw_id(document["_id"]), raw_document(document))
    return world


async def all_is_clean_while_documents_expire(world: World, daemon: Daemon) -> bool:
    """Let a document expire at each look, until all is clean."""
    assert isinstance(world, ExpiringWorld)
    number = world.session()
    if number is not None:
        world.cluster.apply(delete(ORDERS, f"session {number}"))
    return await CLEAN[0](world, daemon)


SCRIPT: Final = (*CAPTURE, *RESTORE, all_is_clean_while_documents_expire)


async def test_a_steady_expiry_ends_the_failback() -> None:
    first = await halves_of((*CAPTURE, *RESTORE))
    left = await worlds_left(SCRIPT, first=first, step=4, world=expiring())
    for world in left:
        assert await world.live(Life(None), SCRIPT)
        await check_cleared(world)
        assert isinstance(world, ExpiringWorld)
        assert world.session() is None
        held = (world.target.database.find(ORDERS, raw_id(f"session {number}")) for number in range(SESSIONS))
        assert all(held)  # listed, never applied
    assert len(left) > 20
