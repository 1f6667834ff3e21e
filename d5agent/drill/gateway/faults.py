"""Faults on command: {d5Gateway: 1, action: …}, known to the gateway alone.

| action | fields | what happens |
|---|---|---|
| status | | what is enabled, open, and going wrong |
| cutConnections | | every other client connection is reset |
| delay | ms | each request waits that long; 0 ends it |
| slowLookups | ms | each batch of a change stream waits that long for each of its events; 0 ends it |
| blackhole | seconds | connections are accepted and nothing is answered, then they are reset |
| failover | seconds, upstream | connections are cut; not primary for that long; then the upstream named |
| expireLog | seconds | positions older than that (default: any before now) are lost |
| maxCursors | count | at most so many change streams at once; null lifts it |
| refuseStreams | code, count | so many readings of change streams (aggregate, getMore) fail with that code |
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from d5agent.drill.child import pause
from d5agent.drill.gateway.refusals import RefusedError


@dataclass(slots=True)
class Faults:
    """What goes wrong at the moment."""

    delay_seconds: float = 0.0
    lookup_seconds: float = 0.0
    max_cursors: int | None = None
    failing_over: bool = False
    stream_error: int = 0
    stream_refusals: int = 0
    _lit: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._lit.set()

    @property
    def is_dark(self) -> bool:
        return not self._lit.is_set()

    async def hold(self) -> bool:
        """Wait as the faults demand; True if the connection was in a black hole."""
        if self.delay_seconds:
            await pause(self.delay_seconds)
        if not self.is_dark:
            return False
        await self._lit.wait()
        return True

    def slow_down(self, action: str, seconds: float) -> None:
        if action == "delay":
            self.delay_seconds = seconds
        else:
            self.lookup_seconds = seconds

    async def look_up(self, events: int) -> None:
        """Take the time that a server needs to look up so many documents."""
        if events and self.lookup_seconds:
            await pause(events * self.lookup_seconds)

    def check_stream(self) -> None:
        """Raise while change streams are to be refused."""
        if self.stream_refusals:
            self.stream_refusals -= 1
            raise RefusedError(self.stream_error, "a drill")

    def darken(self, seconds: float, then: Callable[[], object]) -> None:
        self._lit.clear()

        def relight() -> None:
            then()
            self._lit.set()

        asyncio.get_running_loop().call_later(seconds, relight)

    def end(self) -> None:
        """Hold nobody any longer: the gateway stops."""
        self.delay_seconds = self.lookup_seconds = 0.0
        self._lit.set()

    def fail_over(self, seconds: float, then: Callable[[], object]) -> None:
        self.failing_over = True

        def recover() -> None:
            then()
            self.failing_over = False

        asyncio.get_running_loop().call_later(seconds, recover)

    def status(self) -> dict[str, Any]:
        return {
            "delayMs": self.delay_seconds * 1000,
            "lookupMs": self.lookup_seconds * 1000,
            "dark": self.is_dark,
            "failingOver": self.failing_over,
            "maxCursors": self.max_cursors,
            "streamRefusals": self.stream_refusals,
        }
