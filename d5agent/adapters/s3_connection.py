"""The S3 client, made again after its credentials were refused or missing, so that renewed ones are taken up.

A session reads keys once, from the environment, a file or the instance's role. It renews those of a role by itself, as
long as the role answers; keys that an operator has replaced it never reads.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from types_aiobotocore_s3.client import S3Client

_OPEN_AT_ONCE: Final = 2  # requests may be under way on the client before


class S3Connection:
    """The client to be used at this moment. `open_client` opens one in a new session; without it there is no other."""

    def __init__(
        self, client: S3Client, open_client: Callable[[], AbstractAsyncContextManager[S3Client]] | None = None
    ) -> None:
        self.client = client
        self._open_client = open_client
        self._opened: list[AsyncExitStack] = []
        self._renewing = asyncio.Lock()

    async def renew(self, refused: S3Client) -> None:
        """Put a new client in the place of the one that was refused, unless that is done already."""
        async with self._renewing:
            if self._open_client is None or self.client is not refused:
                return
            stack = AsyncExitStack()
            try:
                self.client = await stack.enter_async_context(self._open_client())
            except (BotoCoreError, ValueError):
                return  # a file of credentials that is being written: the next refusal leads here again
            self._opened.append(stack)
            while len(self._opened) > _OPEN_AT_ONCE:
                await self._opened.pop(0).aclose()

    async def close(self) -> None:
        """Close the clients that were opened here."""
        while self._opened:
            await self._opened.pop().aclose()
