"""A clock that is moved by those who sleep on it, or by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

_BEGIN: Final = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
_QUIET_TURNS: Final = 3  # rounds of the event loop in which nobody had anything to do, before time moves
_Sleeper = tuple[float, int, "asyncio.Future[None]"]


class FakeClock:
    """Time passes as soon as everybody sleeps; with `is_manual`, only when `advance` is called."""

    def __init__(self, *, is_manual: bool = False) -> None:
        self._is_manual = is_manual
        self._seconds = 0.0
        self._sleepers: list[_Sleeper] = []
        self._numbers = itertools.count()
        self._watched: asyncio.AbstractEventLoop | None = None

    def __deepcopy__(self, _: object) -> FakeClock:
        """Return a clock that shows the same time; who sleeps on this one does not sleep on it."""
        other = FakeClock(is_manual=self._is_manual)
        other._seconds = self._seconds
        return other

    def now(self) -> datetime:
        return _BEGIN + timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        sleeper = (self._seconds + max(seconds, 0), next(self._numbers), loop.create_future())
        heapq.heappush(self._sleepers, sleeper)
        if not self._is_manual and self._watched is not loop:
            self._watched = loop
            loop.call_soon(self._watch, loop, 0)
        try:
            await sleeper[2]
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let time pass: who wakes within it wakes at his own moment, in order."""
        end = self._seconds + seconds
        await _until_quiet()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._wake_next()
            await _until_quiet()
        self._seconds = end

    def _watch(self, loop: asyncio.AbstractEventLoop, quiet: int) -> None:
        """Wake the next sleeper once nobody else has anything to do; look again in each round until then."""
        if not self._sleepers:
            self._watched = None
            return
        quiet = quiet + 1 if _is_quiet(loop) else 0
        if quiet >= _QUIET_TURNS:
            self._wake_next()
            quiet = 0
        loop.call_soon(self._watch, loop, quiet)

    def _wake_next(self) -> None:
        when, _, woken = heapq.heappop(self._sleepers)
        self._seconds = max(self._seconds, when)
        if not woken.done():  # a cancelled sleeper leaves in the next round
            woken.set_result(None)


async def _until_quiet() -> None:
    quiet = 0
    while quiet < _QUIET_TURNS:
        await asyncio.sleep(0)
        quiet = quiet + 1 if _is_quiet(asyncio.get_running_loop()) else 0


def _is_quiet(loop: asyncio.AbstractEventLoop) -> bool:
    """Say whether nothing but the caller is ready to run: only the loop itself knows, and it has no public word."""
    return not cast("Any", loop)._ready
