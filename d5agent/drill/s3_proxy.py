"""A proxy before the S3 server that fails on command: what a network, a policy and S3 itself do on bad days.

It speaks plain HTTP/1.1, streams bodies both ways and knows nothing of S3 but its keys and its error documents. A fault
is one of the acts below, for the requests of one method and one beginning of keys, for so many of them or until lifted:

| act | what happens to a request |
|---|---|
| `refuse(503, "SlowDown")` | it is answered with that error; the server does not see it |
| `check_time()` | it is refused when its signature's time is off by more than S3 allows |
| `ignore()` | it is read and never answered; lifted, its connection is reset |
| `stall()` | it waits; lifted, it goes on as if nothing had been |
| `slow_down(bytes_per_second)` | its body goes on at that rate |
| `tear_upload()` | half of its body reaches the server, then both connections are reset |
| `lose_answer()` | the server does what it says; the connection is reset before the answer comes back |
| `delete_half("AccessDenied")` | of the objects that it is to delete, every other one is; the answer, a 200, says so |
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote
from xml.sax.saxutils import unescape

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, hdrs, web
from multidict import CIMultiDict
from yarl import URL

from d5agent.adapters.clock import SystemClock
from d5agent.drill.child import pause

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from aiohttp import ClientResponse

    Act = Callable[["Exchange"], Awaitable[web.StreamResponse]]

_PROBE_SECONDS: Final = 0.02
_SLICES_A_SECOND: Final = 20
_ALLOWED_SKEW: Final = timedelta(minutes=15)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
# Of one connection, not of the message (RFC 9110, 7.6.1); Expect is answered here: the server need not be asked.
_OF_THE_CONNECTION: Final = frozenset(
    {"connection", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)


@dataclass(slots=True, kw_only=True)
class Fault:
    """A fault at work. `times` None: until it is lifted. `met` counts the requests that it hit."""

    act: Act
    method: str = ""
    key_prefix: str = ""
    times: int | None = None
    met: int = 0
    _lifted: asyncio.Event = field(default_factory=asyncio.Event)

    def lift(self) -> None:
        """End it, also for the requests that wait in it."""
        self._lifted.set()

    async def until_lifted(self) -> None:
        """Wait for its end."""
        await self._lifted.wait()

    async def until_met(self, times: int = 1, *, seconds: float = 120.0) -> None:
        """Wait until it has hit so many requests; TimeoutError: it has not."""
        async with asyncio.timeout(seconds):
            while self.met < times:
                await pause(_PROBE_SECONDS)

    def concerns(self, method: str, key: str) -> bool:
        """Whether it hits this request."""
        is_over = self._lifted.is_set() or (self.times is not None and self.met >= self.times)
        return not is_over and self.method in {"", method} and key.startswith(self.key_prefix)


class S3Proxy:
    """Serves at `endpoint_url` what the server at `upstream` answers, but for the faults that were asked for."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._faults: list[Fault] = []
        self._session: ClientSession | None = None
        self._runner: web.ServerRunner | None = None

    @property
    def endpoint_url(self) -> str:
        """Where it listens."""
        assert self._runner is not None  # noqa: S101 -- asked for after start
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def start(self) -> None:
        """Listen on a port from the kernel."""
        self._session = ClientSession(
            auto_decompress=False,
            connector=TCPConnector(limit=0),
            skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT),
            timeout=ClientTimeout(total=None),
        )
        # Cancelled with its connection: what a client has given up must not reach the server later.
        server = web.Server(self._answer, handler_cancellation=True, auto_decompress=False, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def stop(self) -> None:
        """Lift all faults and close."""
        for fault in self._faults:
            fault.lift()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    def fail(self, act: Act, *, method: str = "", key_prefix: str = "", times: int | None = None) -> Fault:
        """Let requests fail from now on; of several faults that concern one, the first asked for hits it."""
        fault = Fault(act=act, method=method, key_prefix=key_prefix, times=times)
        self._faults.append(fault)
        return fault

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._session is not None  # noqa: S101 -- made at the start
        key = unquote(request.raw_path.partition("?")[0]).lstrip("/").partition("/")[2]
        exchange = Exchange(self._session, self._upstream, request)
        fault = next((fault for fault in self._faults if fault.concerns(request.method, key)), None)
        try:
            if fault is None:
                return await exchange.forward()
            fault.met += 1
            exchange.fault = fault
            return await fault.act(exchange)
        except ClientError:
            return exchange.reset()  # the server has gone: so do we


class Exchange:
    """One request and its answer, as an act handles it."""

    fault: Fault

    def __init__(self, session: ClientSession, upstream: str, request: web.BaseRequest) -> None:
        self.request = request
        self._session = session
        self._url = URL(upstream + request.raw_path, encoded=True)

    async def forward(self, body: AsyncGenerator[bytes] | None = None) -> web.StreamResponse:
        """Let the server answer, with another body than the request's if one is given."""
        async with self.ask_server(body) as answer:
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=_of_the_message(answer.headers)
            )
            await response.prepare(self.request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    @asynccontextmanager
    async def ask_server(self, body: AsyncGenerator[bytes] | None = None) -> AsyncGenerator[ClientResponse]:
        """Send the request on, and give the answer as it begins."""
        headers = _of_the_message(self.request.headers)
        data = (body or self.body()) if self.request.body_exists else None
        asking = self._session.request(
            self.request.method, self._url, headers=headers, data=data, allow_redirects=False
        )
        async with asking as answer:
            yield answer

    async def delete(self, key: str) -> None:
        """Delete one object on the server, in the name of whoever made this request."""
        url = self._url.with_query(None).joinpath(*key.split("/"))
        headers = {hdrs.AUTHORIZATION: self.request.headers[hdrs.AUTHORIZATION]}
        async with self._session.delete(url, headers=headers) as answer:
            answer.raise_for_status()

    async def body(self) -> AsyncGenerator[bytes]:
        """Yield the request's body; a client that waits to be told to send it is told so now."""
        transport = self.request.transport
        if self.request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async for chunk in self.request.content.iter_any():
            yield chunk

    def reset(self) -> web.StreamResponse:
        """Reset the client's connection; what is returned reaches nobody."""
        transport = self.request.transport
        if transport is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()
        return web.Response()


def refuse(status: int, code: str) -> Act:
    """Answer with an error as S3 words it."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>a drill</Message></Error>'
        is_head = exchange.request.method == hdrs.METH_HEAD
        answer = web.Response(status=status, text=None if is_head else text, content_type="application/xml")
        answer.force_close()  # as S3 does: a body that nobody read must not be taken for the next request
        return answer

    return act


def check_time() -> Act:
    """Refuse what was signed by a wrong clock, as S3 does and a server for tests does not."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        signed = datetime.strptime(exchange.request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs(SystemClock().now() - signed) > _ALLOWED_SKEW:
            return await refuse(403, "RequestTimeTooSkewed")(exchange)
        return await exchange.forward()

    return act


def ignore() -> Act:
    """Take the request and never answer."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        async for _ in exchange.body():
            pass
        await exchange.fault.until_lifted()
        return exchange.reset()

    return act


def stall() -> Act:
    """Hold the request until the fault is lifted."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        await exchange.fault.until_lifted()
        return await exchange.forward()

    return act


def slow_down(bytes_per_second: int) -> Act:
    """Let the body through slowly."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        return await exchange.forward(_paced(exchange.body(), bytes_per_second))

    return act


def tear_upload() -> Act:
    """Reset the connections in the middle of the body."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        half = (exchange.request.content_length or 0) // 2
        async with exchange.ask_server(_torn(exchange.body(), half)):
            raise AssertionError("a server answered half a body")

    return act


def lose_answer() -> Act:
    """Let the server answer, and tell nobody."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        async with exchange.ask_server() as answer:
            await answer.read()
        return exchange.reset()

    return act


def delete_half(code: str) -> Act:
    """Delete every other object of a DeleteObjects request of several, and name those that were not, as S3 does."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        if "delete" not in request.query:
            return await exchange.forward()
        body = b"".join([chunk async for chunk in exchange.body()]).decode()
        keys = re.findall("<Key>(.*?)</Key>", body)  # as they stand in XML, escaped
        refused = keys[::2] if len(keys) > 1 else []
        for key in set(keys).difference(refused):
            await exchange.delete(unescape(key))
        errors = "".join(f"<Error><Key>{key}</Key><Code>{code}</Code></Error>" for key in refused)
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<DeleteResult>{errors}</DeleteResult>'
        return web.Response(text=text, content_type="application/xml")

    return act


async def _paced(body: AsyncGenerator[bytes], bytes_per_second: int) -> AsyncGenerator[bytes]:
    size = max(1, bytes_per_second // _SLICES_A_SECOND)
    async for chunk in body:
        for at in range(0, len(chunk), size):
            await pause(len(chunk[at : at + size]) / bytes_per_second)
            yield chunk[at : at + size]


async def _torn(body: AsyncGenerator[bytes], size: int) -> AsyncGenerator[bytes]:
    """Yield so many bytes, then fail as a line does that is cut."""
    async for chunk in body:
        yield chunk[:size]
        size -= len(chunk)
        if size <= 0:
            raise ConnectionResetError("torn, as asked for")


def _of_the_message(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _OF_THE_CONNECTION)
