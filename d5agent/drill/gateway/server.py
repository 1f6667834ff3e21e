"""The gateway itself: listens, serves, stops, and carries out faults."""

import asyncio
from pathlib import Path
from typing import Any

from d5agent.drill.gateway import facts
from d5agent.drill.gateway.cluster import Cluster
from d5agent.drill.gateway.connection import BUFFER_BYTES, Connection
from d5agent.drill.gateway.refusals import RefusedError
from d5agent.drill.gateway.router import Answer, Forward, Router
from d5agent.drill.gateway.scopes import StreamLog
from d5agent.drill.gateway.wire import Message


class Gateway:
    """A real mongod behind it, DocumentDB's manners before it."""

    def __init__(  # noqa: PLR0913 (each one is a switch of its own for the drill)
        self,
        upstream: str,
        *,
        listen_port: int = 0,
        listen_host: str = "127.0.0.1",
        set_name: str = "rs0",
        allow: frozenset[str] = frozenset(),
        state_path: Path | None = None,
        no_post_batch_token: bool = False,
        log_seconds: int | None = None,
    ) -> None:
        self._listen = (listen_host, listen_port)
        self.cluster = Cluster(
            upstream=upstream,
            set_name=set_name,
            allow=allow,
            log=StreamLog.load(state_path),
            sends_post_batch_token=not no_post_batch_token,
            log_seconds=log_seconds,
        )
        self._router = Router(self.cluster)
        self._connections: set[Connection] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """host:port for clients; known once started."""
        return self.cluster.address

    async def start(self) -> None:
        host, port = self._listen
        self._server = await asyncio.start_server(self._serve, host, port, limit=BUFFER_BYTES)
        port = self._server.sockets[0].getsockname()[1]
        self.cluster.address = f"{host}:{port}"

    async def stop(self) -> None:
        """Stop listening, reset whoever is connected, return when all of it has ended."""
        if self._server is not None:
            self._server.close()
        self.cluster.faults.end()
        self.cut_connections()
        await self._idle.wait()
        if self._server is not None:
            await self._server.wait_closed()

    def cut_connections(self, *, but: Connection | None = None) -> int:
        """Reset every client connection; how many there were."""
        cut = [each for each in self._connections if each is not but]
        for connection in cut:
            connection.reset()
        return len(cut)

    def fail_over(self, seconds: float, upstream: str | None = None) -> None:
        """Cut everybody; be no primary for so long; then serve from the upstream named."""
        target = upstream or self.cluster.upstream
        self.cluster.faults.fail_over(seconds, lambda: self._move_to(target))
        self.cut_connections()

    def _move_to(self, upstream: str) -> None:
        if upstream != self.cluster.upstream:
            self.cluster.move_to(upstream)
            self.cut_connections()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self.cluster, self._router, self._control)
        self._connections.add(connection)
        self._idle.clear()
        try:
            await connection.serve(reader, writer)
        finally:
            self._connections.discard(connection)
            if not self._connections:
                self._idle.set()

    def _control(self, document: dict[str, Any], message: Message, asking: Connection) -> Answer | Forward:
        action = document.get("action")
        if action == "expireLog":
            return self._expire_log(document, message)
        try:
            result = self._act(str(action), document, asking)
        except RefusedError as refusal:
            return Answer(self.cluster.replies.error(refusal))
        except (KeyError, TypeError, ValueError) as error:
            wrong = RefusedError(facts.BAD_VALUE, f"{action}: missing or wrong field: {error}")
            return Answer(self.cluster.replies.error(wrong))
        return Answer({**result, "ok": 1.0})

    def _expire_log(self, document: dict[str, Any], message: Message) -> Forward:
        back = int(document.get("seconds", 0)) << 32
        log = self.cluster.log
        return self._router.at_a_new_time(message, lambda time: log.expire(time - back))

    def _act(self, action: str, document: dict[str, Any], asking: Connection) -> dict[str, Any]:
        faults = self.cluster.faults
        match action:
            case "cutConnections":
                return {"cut": self.cut_connections(but=asking)}
            case "delay" | "slowLookups":
                faults.slow_down(action, document["ms"] / 1000)
            case "blackhole":
                faults.darken(document["seconds"], self.cut_connections)
            case "failover":
                self._later_fail_over(document)
            case "maxCursors":
                faults.max_cursors = document["count"]
            case "refuseStreams":
                faults.stream_error, faults.stream_refusals = document["code"], document["count"]
            case "status":
                return self.status()
            case _:
                raise RefusedError(facts.BAD_VALUE, f"unknown action: {action}")
        return {}

    def _later_fail_over(self, document: dict[str, Any]) -> None:
        # The answer goes out first; the asking connection is cut with the others.
        seconds = float(document.get("seconds", 1))
        loop = asyncio.get_running_loop()
        loop.call_later(0.02, self.fail_over, seconds, document.get("upstream"))

    def status(self) -> dict[str, Any]:
        cluster = self.cluster
        return {
            "upstream": cluster.upstream,
            "connections": len(self._connections),
            "changeStreams": len(cluster.replies.streams),
            "enabled": cluster.log.enabled(),
            **cluster.faults.status(),
        }
