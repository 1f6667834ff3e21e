"""A replica set of three members, and what happens to its primary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.capture_ledger import until

if TYPE_CHECKING:
    from d5agent.drill.servers import Member, ReplicaSet


async def primary_of(servers: ReplicaSet) -> Member:
    """Wait for a primary, and return it."""
    found: list[Member] = []

    async def has_one() -> bool:
        primary = await servers.find_primary()
        found.extend([primary] if primary else [])
        return bool(found)

    await until(has_one, what="a primary")
    return found[-1]


async def kill_primary(servers: ReplicaSet) -> Member:
    """SIGKILL the primary, and return its successor."""
    await (await primary_of(servers)).kill()
    return await primary_of(servers)


async def step_down(servers: ReplicaSet) -> None:
    """Make the primary step down; another member follows it."""
    before = await primary_of(servers)
    assert await servers.step_down() is not before
