"""The gate that every write passes: a process that was paused must not go on writing where another one writes now.

It is asked before each attempt of each write, since the time may pass inside a repeated one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from d5agent.adapters.retry import retrying
from d5agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.ports import Clock

_Result = TypeVar("_Result")


class Held(Protocol):
    """What this agent holds, and may have lost (runtime/holder.py)."""

    @property
    def is_fresh(self) -> bool:
        """Whether nobody else can hold it yet, by this machine's clock alone."""
        ...

    async def confirm(self) -> None:
        """Make sure of it; LogHeldError: another agent has it."""
        ...


class WriteGate:
    """Lets writes pass while this agent holds the log. Without `held` all pass: the command line holds nothing."""

    def __init__(self, held: Held | None = None) -> None:
        self.held = held

    @property
    def is_open(self) -> bool:
        """Whether a write may be sent at this moment."""
        return self.held is None or self.held.is_fresh

    async def enter(self) -> None:
        """Return when a write may be sent. LogHeldError: never again; TransientError: nobody could say."""
        if self.held is not None and not self.held.is_fresh:
            await self.held.confirm()

    async def retrying(self, write: Callable[[], Awaitable[_Result]], *, clock: Clock) -> _Result:
        """Return the result of a write, repeated while it fails for a passing reason and the gate is open."""

        async def once() -> _Result:
            if not self.is_open:
                raise _ClosedError
            return await write()

        while True:
            await self.enter()
            try:
                return await retrying(once, clock=clock)
            except _ClosedError:  # outside of the repetition: what asks the store is itself repeated
                continue


class _ClosedError(AgentError):
    """The time in which this agent surely holds the log is over."""

    def __init__(self) -> None:
        super().__init__("it is not known who holds the log")
