"""A connection to the source whose user or password may be renewed while the daemon runs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, cast

from d5agent.adapters.uri import read_uri

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from d5agent.adapters.mongo import Client


class RenewableClient:
    """Hands each question on to the client that is current. A session stays with the client that it began on.

    `read` returns the URI as it is now. A client that was replaced is closed at the end only: its connections may be in
    use, since a server asks for user and password once a connection.
    """

    def __init__(
        self,
        client: Client,
        uri: str,
        *,
        side: str,
        read: Callable[[], Awaitable[str]],
        open_client: Callable[[str], AbstractAsyncContextManager[Client]],
    ) -> None:
        self.uri = uri
        self._client = client
        self._side = side
        self._read = read
        self._open_client = open_client
        self._opened = AsyncExitStack()

    def as_client(self) -> Client:
        """Return this object as what it stands for."""
        return cast("Client", self)

    async def renew(self) -> bool:
        """Read the URI again, and use it if user, password or options have changed; whether they have.

        One with other hosts is not used: positions and comparisons belong to the cluster that they were made with.
        """
        uri = await self._read()
        if uri == self.uri or read_uri(uri, self._side).hosts != read_uri(self.uri, self._side).hosts:
            return False
        self._client = await self._opened.enter_async_context(self._open_client(uri))
        self.uri = uri
        return True

    async def close(self) -> None:
        """Close the clients that were opened here."""
        await self._opened.aclose()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the client has
        return getattr(self._client, name)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 -- a database of the client
        return self._client[name]
