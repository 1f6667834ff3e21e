"""A relay before a server that cuts connections, or forgets them as a middlebox does."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_BUFFER: Final = 65_536


@dataclass(slots=True, eq=False)
class _Line:
    """One connection through a relay."""

    near: asyncio.StreamWriter
    is_forgotten: bool = False
    asked: bytes = b""
    """The last request."""

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a client's bytes on."""
        with suppress(OSError):
            while data := await reader.read(_BUFFER):
                self.asked = data
                await self._pass(data, writer)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a server's bytes on."""
        with suppress(OSError):
            while data := await reader.read(_BUFFER):
                await self._pass(data, writer)

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if not self.is_forgotten:
            writer.write(data)
            await writer.drain()


@dataclass(slots=True)
class Relay:
    """Passes bytes on between clients and a server, until it cuts a connection or forgets it: nobody is told of that.

    `is_dark`: what connects meanwhile is forgotten at once.
    """

    address: str = ""
    is_dark: bool = False
    _lines: set[_Line] = field(default_factory=set)

    def forget_connections(self, *, that_asked: bytes = b"") -> None:
        """Pass nothing on any more of what is connected now: of all, or of those that have sent these bytes."""
        for line in self._lines:
            line.is_forgotten |= that_asked in line.asked

    def cut_connections(self) -> int:
        """Reset what is connected now; return how many connections that were."""
        for line in self._lines:
            line.near.transport.abort()
        return len(self._lines)

    async def serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter, server: str) -> None:
        """Serve one client until either side closes."""
        host, _, port = server.rpartition(":")
        far, forth = await asyncio.open_connection(host, int(port))
        line = _Line(is_forgotten=self.is_dark, near=back)
        self._lines.add(line)
        try:
            async with asyncio.TaskGroup() as group:
                pumps = [group.create_task(line.ask(near, forth)), group.create_task(line.answer(far, back))]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
        finally:
            self._lines.discard(line)
            forth.transport.abort()
            back.transport.abort()


@asynccontextmanager
async def relay(server: str) -> AsyncGenerator[Relay]:
    """Open a relay before a server."""
    opened = Relay()
    listener = await asyncio.start_server(lambda near, back: opened.serve(near, back, server), "127.0.0.1", 0)
    opened.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield opened
    finally:
        listener.close()
