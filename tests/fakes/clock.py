"""A clock that is moved by those who sleep on it, or by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta
from typing import Final

_BEGIN: Final = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
_TURNS: Final = 25  # rounds of the event loop that the others get before time moves


class FakeClock:
    """Time passes as soon as everybody sleeps; with `is_manual`, only when `advance` is called."""

    def __init__(self, *, is_manual: bool = False) -> None:
        self._is_manual = is_manual
        self._seconds = 0.0
        self._sleepers: list[tuple[float, int]] = []
        self._numbers = itertools.count()

    def now(self) -> datetime:
        return _BEGIN + timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        sleeper = (self._seconds + max(seconds, 0), next(self._numbers))
        heapq.heappush(self._sleepers, sleeper)
        try:
            await self._wait_until(sleeper)
        finally:
            self._sleepers.remove(sleeper)
            heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let time pass: who wakes within it wakes at his own moment, in order."""
        end = self._seconds + seconds
        await _give_turns()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._seconds = max(self._seconds, self._sleepers[0][0])
            await _give_turns()
        self._seconds = end

    async def _wait_until(self, sleeper: tuple[float, int]) -> None:
        await asyncio.sleep(0)
        while self._seconds < sleeper[0]:
            before = (self._seconds, len(self._sleepers))
            await _give_turns()
            if self._is_manual or self._sleepers[0] != sleeper or before != (self._seconds, len(self._sleepers)):
                continue
            self._seconds = sleeper[0]


async def _give_turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
