"""Pages are read ahead, a little; large ones one by one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from d5agent.errors import TransientError
from d5agent.steps.compare.page_feed import PageFeed
from d5agent.steps.parallel import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

SMALL, LARGE = b"x" * 100, b"x" * 5_000_000


class Pages:
    """A scan that counts how many pages were asked for."""

    def __init__(self, *pages: Sequence[bytes], error: Exception | None = None) -> None:
        self.pages = pages
        self.error = error
        self.asked = 0

    async def read(self) -> AsyncGenerator[Sequence[bytes]]:
        for page in self.pages:
            self.asked += 1
            await asyncio.sleep(0)
            yield page
        if self.error is not None:
            raise self.error


async def settle() -> None:
    """Let the feed go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("page", "ahead"), [([SMALL], 2), ([LARGE], 1)], ids=["small", "large"])
async def test_pages_are_read_ahead_as_far_as_they_are_small(page: list[bytes], ahead: int) -> None:
    pages = Pages(*[page] * 6)
    async with aclosing(pages.read()) as read:
        feed = PageFeed(pages=read)
        async with beside(feed.fill()):
            await settle()
            assert pages.asked == ahead
            assert await feed.next_page() == page
            await settle()
            assert pages.asked == (3 if page == [SMALL] else 1)
            for _ in range(5):
                assert await feed.next_page() == page
            assert await feed.next_page() == ()
            assert await feed.next_page() == ()


async def test_an_error_of_the_scan_reaches_whoever_waits_for_a_page() -> None:
    async def read_all(pages: Pages) -> None:
        async with aclosing(pages.read()) as read:
            feed = PageFeed(pages=read)
            async with beside(feed.fill()):
                while await feed.next_page():
                    pass

    with pytest.raises(TransientError, match="gone"):
        await read_all(Pages([SMALL], error=TransientError("gone")))
