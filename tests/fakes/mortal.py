"""Ports that die: the process ends before, or right after, a chosen call."""

from __future__ import annotations

import inspect
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

_Port = TypeVar("_Port")


class DiedError(BaseException):
    """The end of a process: nothing catches it."""


class Life:
    """The calls that a process may still make: half a call is one half before, and one half after it was made.

    `Life(None)` never ends and counts: `spent` tells how many halves there are to die in.
    """

    def __init__(self, halves: int | None) -> None:
        self._halves = halves
        self.spent = 0

    def spend(self) -> None:
        """Go on, or die; who is dead stays so."""
        if self._halves is not None and self.spent >= self._halves:
            raise DiedError
        self.spent += 1


class _Mortal:
    def __init__(self, port: object, life: Life) -> None:
        self._port = port
        self._life = life

    def __getattr__(self, name: str) -> object:
        found = getattr(self._port, name)
        if inspect.iscoroutinefunction(found):
            return _calling(found, self._life)
        if inspect.isasyncgenfunction(found):
            return _yielding(found, self._life)
        return _entering(found, self._life) if callable(found) else found

    @override
    def __repr__(self) -> str:
        return f"mortal {self._port!r}"


def mortal(port: _Port, life: Life) -> _Port:
    """Return a port whose every call, and every page of a listing, costs life."""
    return cast("_Port", _Mortal(port, life))


def _calling(function: Callable[..., Awaitable[Any]], life: Life) -> Callable[..., Awaitable[Any]]:
    async def call(*args: object, **kwargs: object) -> object:
        life.spend()
        result = await function(*args, **kwargs)
        life.spend()
        return result

    return call


def _yielding(function: Callable[..., AsyncGenerator[Any]], life: Life) -> Callable[..., AsyncGenerator[Any]]:
    async def pages(*args: object, **kwargs: object) -> AsyncGenerator[object]:
        async with aclosing(_paid(function(*args, **kwargs), life)) as found:
            async for page in found:
                yield page

    return pages


async def _paid(pages: AsyncGenerator[Any], life: Life) -> AsyncGenerator[object]:
    life.spend()
    async with aclosing(pages):
        async for page in pages:
            yield page
            life.spend()


def _entering(function: Callable[..., object], life: Life) -> Callable[..., object]:
    """Wrap a plain method; where it opens something, what it opens costs life as well."""

    @asynccontextmanager
    async def opened(context: AbstractAsyncContextManager[Any]) -> AsyncGenerator[object]:
        life.spend()
        async with context as inner:
            if not inspect.isasyncgen(inner):
                yield mortal(inner, life)
                return
            async with aclosing(_paid(cast("AsyncGenerator[Any]", inner), life)) as pages:
                yield pages

    def call(*args: object, **kwargs: object) -> object:
        result = function(*args, **kwargs)
        return opened(result) if isinstance(result, AbstractAsyncContextManager) else result

    return call
