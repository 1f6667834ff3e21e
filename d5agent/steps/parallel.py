"""Some things at once, never more than a few, and the first error as itself instead of a group."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


async def parallel(work: Callable[[_Item], Awaitable[_Result]], items: Iterable[_Item], *, limit: int) -> list[_Result]:
    """Return the results of `work` for each item, in the items' order; the first failure ends the others."""
    free = asyncio.Semaphore(limit)

    async def one(item: _Item) -> _Result:
        async with free:
            return await work(item)

    before = _cancellations()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as group_error:
        forget_cancellations(before)
        raise leaf_of(group_error) from None
    return [task.result() for task in tasks]


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run works beside the block, and end them with it; the first error, of whichever, ends all and is raised."""
    before = _cancellations()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as group_error:
        forget_cancellations(before)
        raise leaf_of(group_error) from None


def forget_cancellations(before: int = 0) -> None:
    """Take back the cancellations that failed TaskGroups have left on this task; `before`: how many it had.

    CPython before 3.13 leaves one when a group fails while it is waited for (gh-116720). A library that asks
    `cancelling()` then takes the task for cancelled and ends it without an error, as aiohttp does: a service that is
    shown as running, and is not.
    """
    task = asyncio.current_task()
    while task is not None and task.cancelling() > before:
        task.uncancel()


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def leaf_of(error: BaseException) -> BaseException:
    """Return the first error inside a group of errors; callers then see what happened, not how it ran."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
