"""Stopping: a signal asks, services drain inside a budget, then they are cancelled."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


async def drained(task: asyncio.Task[None], *, may_drain: bool, seconds: float) -> None:
    """Wait for a task that was asked to end; cancel it at once when it does not drain, else after `seconds`."""
    if may_drain:
        await asyncio.wait([task], timeout=seconds)
    task.cancel()
    await asyncio.wait([task])


@contextmanager
def on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` on SIGTERM and on SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
