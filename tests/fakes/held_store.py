"""A store whose puts are held and let go by key, and ways to wait for what tasks do meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE: Final = 10_000
_TURNS: Final = 50  # of the event loop, after which what is going to happen without help has happened


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    for _ in range(_PATIENCE):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come true")


async def settled() -> None:
    """Let everybody go on until all of them wait for something."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


class HeldStore(FakeObjectStore):
    """Holds the puts of keys until they are let go, or lets them fail. `waiting` has those that are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: Counter[str] = Counter()
        self.most_waiting = 0
        self.put_keys: list[str] = []
        self.holds: Callable[[str], bool] = lambda _: False
        self.errors: dict[str, BaseException] = {}
        self._changed = asyncio.Condition()

    async def let_go(self, holds: Callable[[str], bool] = lambda _: False) -> None:
        """Hold only these from now on."""
        async with self._changed:
            self.holds = holds
            self._changed.notify_all()

    async def fail(self, key: str, error: BaseException) -> None:
        """Let the put of a key fail, held or not."""
        async with self._changed:
            self.errors[key] = error
            self._changed.notify_all()

    @override
    async def put_once(self, key: str, body: bytes) -> bool:
        self.waiting[key] += 1
        self.most_waiting = max(self.most_waiting, self.waiting.total())
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: key in self.errors or not self.holds(key))
        finally:
            self.waiting[key] -= 1
        if key in self.errors:
            raise self.errors[key]
        is_new = await super().put_once(key, body)
        if is_new:
            self.put_keys.append(key)
        return is_new
