"""One client connection: a pump to upstream, a pump back, and the replies still awaited."""

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

from d5agent.drill.gateway.cluster import Cluster
from d5agent.drill.gateway.router import Answer, Command, Forward, Router
from d5agent.drill.gateway.wire import (
    Message,
    ProtocolError,
    read_message,
    reply_to,
    with_body,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.drill.gateway.replies import Rewriter

BUFFER_BYTES: Final = 4 << 20
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Control(Protocol):
    """Carries out the faults that a client asks for."""

    def __call__(self, document: dict[str, Any], message: Message, asking: "Connection") -> Answer | Forward: ...


class _EndedError(Exception):
    """A side has closed: the other pump ends too."""


class Connection:
    """Serves one client until either side closes."""

    def __init__(self, cluster: Cluster, router: Router, control: Control) -> None:
        self._cluster = cluster
        self._router = router
        self._control = control
        self._awaited: dict[int, Rewriter] = {}
        self._abort: Callable[[], None] = lambda: None

    def reset(self) -> None:
        """Cut the line: the client sees a reset, not a close."""
        self._abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._abort = lambda: _reset(writer)
        host, _, port = self._cluster.upstream.rpartition(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port), limit=BUFFER_BYTES)
        except OSError:
            _reset(writer)
            return
        try:
            await self._pump_both(reader, writer, up_reader, up_writer)
        finally:
            up_writer.transport.abort()
            writer.close()

    async def _pump_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump_requests(reader, writer, up_writer))
                group.create_task(self._pump_replies(up_reader, writer))
        except* (_EndedError, ProtocolError, OSError):
            # An ended connection is an event of the protocol, not a failure of the gateway.
            pass

    async def _pump_requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        while message := await read_message(reader):
            if await self._cluster.faults.hold():
                break
            decision = self._router.decide(message)
            if isinstance(decision, Command):
                decision = self._control(decision.document, message, self)
            if isinstance(decision, Answer):
                if not message.more_to_come:
                    writer.write(reply_to(message, decision.document))
                    await writer.drain()
                continue
            if not message.more_to_come:
                self._awaited[message.request_id] = decision.rewrite
            up_writer.write(decision.raw)
            await up_writer.drain()
        raise _EndedError

    async def _pump_replies(self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while message := await read_message(up_reader):
            rewrite = self._awaited.pop(message.response_to, self._cluster.replies.plain)
            if message.more_to_come:
                # A streaming hello: the next reply answers this one.
                self._awaited[message.request_id] = rewrite
            if self._cluster.faults.is_dark:
                await self._cluster.faults.hold()
                break
            body = rewrite(message.raw, message.body)
            await self._cluster.faults.look_up(self._cluster.replies.take_told())
            writer.write(with_body(message, body))
            await writer.drain()
        raise _EndedError


def _reset(writer: asyncio.StreamWriter) -> None:
    line = writer.get_extra_info("socket")
    if line is not None and not writer.transport.is_closing():
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
