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

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as group_error:
        raise leaf_of(group_error) from None
    return [task.result() for task in tasks]


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run works beside the block, and end them with it; the first error, of whichever, ends all and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as group_error:
        raise leaf_of(group_error) from None


def leaf_of(error: BaseException) -> BaseException:
    """Return the first error inside a group of errors; callers then see what happened, not how it ran."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
