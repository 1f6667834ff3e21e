"""The machine's clock: the only file that asks for the time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime


class SystemClock:
    """The Clock of this machine."""

    def now(self) -> datetime:
        """Return the time of day, in UTC."""
        return datetime.now(UTC)  # noqa: TID251 -- this is the Clock

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()  # noqa: TID251 -- this is the Clock

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)  # noqa: TID251 -- this is the Clock
