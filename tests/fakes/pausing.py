"""Ports of a process that is stopped in the middle of a call, as a paused machine is, and goes on much later."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

    from d5agent.adapters.write_gate import WriteGate

_Port = TypeVar("_Port")
_TURNS: Final = 50  # of the event loop, for who is woken first
_AFTER: Final = "after "


class Gate:
    """Where a process passes before and after each call; at a chosen moment it stands still until it is woken.

    `Gate()` never closes and notes: `trail` tells what the moments are. `wakes`: at one, another gate is opened first.
    """

    def __init__(self, moment: int | None = None, *, wakes: tuple[int, Gate] | None = None) -> None:
        self._moment = moment
        self._wakes = wakes
        self._woken = asyncio.Event()
        self.is_closed = False
        self.trail: list[str] = []

    async def enter(self, what: str) -> None:
        """Pass, or stand still."""
        number = len(self.trail)
        self.trail.append(what)
        if self._moment is not None and number >= self._moment:
            self.is_closed = True
        if self._wakes is not None and number == self._wakes[0]:
            self._wakes[1].wake()
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        await self.hold()

    async def hold(self) -> None:
        """Stand still with the rest of the process."""
        if self.is_closed:
            await self._woken.wait()

    def wake(self) -> None:
        """Let it go on, with all that it was doing."""
        self._woken.set()


class _Pausing:
    def __init__(self, port: object, enter: Callable[[str], Awaitable[None]], names: Collection[str] | None) -> None:
        self._port = port
        self._enter = enter
        self._names = names

    def __getattr__(self, name: str) -> object:
        found = getattr(self._port, name)
        if self._names is not None and name not in self._names:
            return found
        if inspect.isasyncgenfunction(found):
            return _yielding(found, self._enter, name)
        if inspect.iscoroutinefunction(found):
            return _calling(found, self._enter, name)
        return _entering(found, self._enter, name) if callable(found) else found


def pausing(port: _Port, gate: Gate) -> _Port:
    """Return a port whose every call passes a gate: before it is made, and before its result is known."""
    return cast("_Port", _Pausing(port, gate.enter, None))


def fenced(port: _Port, fence: WriteGate, *names: str) -> _Port:
    """Return a port whose calls of these names pass a fence, as those of the real adapters do."""

    async def enter(what: str) -> None:
        if not what.startswith(_AFTER):
            await fence.enter()

    return cast("_Port", _Pausing(port, enter, names))


class PausingClock:
    """The clock of a process: who sleeps on it sleeps as long as the process stands still."""

    def __init__(self, clock: Any, gate: Gate) -> None:  # noqa: ANN401 -- a fake clock
        self._gate = gate
        self._sleep = clock.sleep
        self.now = clock.now
        self.monotonic = clock.monotonic

    async def sleep(self, seconds: float) -> None:
        await self._sleep(seconds)
        await self._gate.hold()


def _calling(
    function: Callable[..., Awaitable[Any]], enter: Callable[[str], Awaitable[None]], name: str
) -> Callable[..., Awaitable[Any]]:
    async def call(*args: object, **kwargs: object) -> object:
        what = f"{name} {args[0] if args else ''}"
        await enter(what)
        result = await function(*args, **kwargs)
        await enter(_AFTER + what)
        return result

    return call


def _yielding(
    function: Callable[..., AsyncGenerator[Any]], enter: Callable[[str], Awaitable[None]], name: str
) -> Callable[..., AsyncGenerator[Any]]:
    async def pages(*args: object, **kwargs: object) -> AsyncGenerator[object]:
        async with aclosing(function(*args, **kwargs)) as found:
            await enter(name)
            async for page in found:
                yield page
                await enter(_AFTER + name)

    return pages


def _entering(
    function: Callable[..., object], enter: Callable[[str], Awaitable[None]], name: str
) -> Callable[..., object]:
    @asynccontextmanager
    async def opened(context: AbstractAsyncContextManager[Any]) -> AsyncGenerator[object]:
        await enter(name)
        async with context as inner, aclosing(_yielding(lambda: inner, enter, f"{name}: batch")()) as pages:
            yield pages

    def call(*args: object, **kwargs: object) -> object:
        result = function(*args, **kwargs)
        return opened(result) if isinstance(result, AbstractAsyncContextManager) else result

    return call
