"""Some things at once, never more than a few, and the first error as itself instead of a group."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@asynccontextmanager
async def task_group() -> AsyncGenerator[asyncio.TaskGroup]:
    """Open a TaskGroup whose first error is raised as itself, and leaves no cancellation on the block's task."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as error:
        forget_cancellations(before)
        raise leaf_of(error) from None


async def parallel(work: Callable[[_Item], Awaitable[_Result]], items: Iterable[_Item], *, limit: int) -> list[_Result]:
    """Return the results of `work` for each item, in the items' order; the first failure ends the others."""
    free = asyncio.Semaphore(limit)

    async def one(item: _Item) -> _Result:
        async with free:
            return await work(item)

    async with task_group() as group:
        tasks = [group.create_task(one(item)) for item in items]
    return [task.result() for task in tasks]


async def streamed(
    work: Callable[[_Item], Awaitable[_Result]], items: AsyncIterator[_Item], *, limit: int
) -> list[_Result]:
    """Return the results of `work` for items, begun as they come; while `limit` are at work, one more waits at most."""
    free = asyncio.Semaphore(limit)

    async def one(item: _Item) -> _Result:
        try:
            return await work(item)
        finally:
            free.release()

    tasks: list[asyncio.Task[_Result]] = []
    async with task_group() as group:
        async for item in items:
            await free.acquire()
            tasks.append(group.create_task(one(item)))
            del item
    return [task.result() for task in tasks]


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run works beside the block, and end them with it; the first error, of whichever, ends all and is raised."""
    async with task_group() as group:
        tasks = [group.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def forget_cancellations(before: int = 0) -> None:
    """Take back the cancellations that failed TaskGroups have left on this task; `before`: how many it had.

    CPython before 3.13 leaves one when a group fails while it is waited for (gh-116720). A library that asks
    `cancelling()` then takes the task for cancelled and ends it without an error, as aiohttp does: a service that is
    shown as running, and is not.
    """
    task = asyncio.current_task()
    while task is not None and task.cancelling() > before:
        task.uncancel()


def leaf_of(error: BaseException) -> BaseException:
    """Return the first error inside a group of errors; callers then see what happened, not how it ran."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
