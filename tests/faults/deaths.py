"""An agent that dies at any moment of a script, and one that carries on from what the death left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from tests.fakes.mortal import Life
from tests.faults.world import World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.faults.world import Act

    Script = tuple[Act, ...]


class _RecordedLife(Life):
    """A life that never ends; at each moment from `first` on, every `step`, it keeps what a death would leave."""

    def __init__(self, world: World, *, first: int, step: int) -> None:
        super().__init__(None)
        self._world = world
        self._moments = (first, step)
        self.left: list[World] = []

    @override
    def spend(self) -> None:
        first, step = self._moments
        if self.spent >= first and (self.spent - first) % step == 0:
            self.left.append(self._world.copied())
        super().spend()


async def halves_of(script: Script, *, is_live: bool = False, keep_log_days: int | None = None) -> int:
    """Return how many moments there are to die in."""
    life = Life(None)
    assert await World(is_live=is_live, keep_log_days=keep_log_days).live(life, script)
    return life.spent


async def die_at(script: Script, *deaths: int, is_live: bool = False, keep_log_days: int | None = None) -> World:
    """Return the world after agents that died after so many halves of calls, and one that lived to the end."""
    world = World(is_live=is_live, keep_log_days=keep_log_days)
    for halves in deaths:
        await world.live(Life(halves), script)
    assert await world.live(Life(None), script)
    return world


async def worlds_left(
    script: Script,
    *,
    first: int = 0,
    step: int = 1,
    is_live: bool = False,
    keep_log_days: int | None = None,
    world: World | None = None,
) -> list[World]:
    """Return what a death at each moment leaves, in order. `world`: another one than the usual.

    One life is lived, and the world around it copied at each moment: all that a dead agent leaves is outside of it.
    """
    world = world or World(is_live=is_live, keep_log_days=keep_log_days)
    life = _RecordedLife(world, first=first, step=step)
    assert await world.live(life, script)
    return life.left


async def crash_everywhere(
    script: Script,
    check: Callable[[World], Awaitable[None]],
    *,
    first: int = 0,
    step: int = 1,
    is_live: bool = False,
    keep_log_days: int | None = None,
) -> int:
    """Die at each moment once, or at every `step`-th; start again, check. Return how many deaths there were."""
    left = await worlds_left(script, first=first, step=step, is_live=is_live, keep_log_days=keep_log_days)
    for number, world in enumerate(left):
        assert await world.live(Life(None), script)
        try:
            await check(world)
        except AssertionError as error:
            error.add_note(f"died after {first + number * step} halves of calls")
            raise
    return len(left)
