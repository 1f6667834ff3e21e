"""Decides what becomes of each request: answered here, or passed on with a way to rewrite its reply."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import bson

from d5agent.drill.gateway import facts
from d5agent.drill.gateway.bsonwalk import elements, find
from d5agent.drill.gateway.cluster import Cluster
from d5agent.drill.gateway.listings import shape_databases, shape_hello
from d5agent.drill.gateway.refusals import (
    RefusedError,
    Request,
    read_request,
    refuse_unsupported,
)
from d5agent.drill.gateway.replies import ROW_SHAPERS, Rewriter
from d5agent.drill.gateway.scopes import Scope
from d5agent.drill.gateway.streams import open_stream
from d5agent.drill.gateway.wire import OP_QUERY, Message, decode, request_instead, with_body

_UNAUTHORIZED: Final = 13
HELLO: Final = frozenset({"hello", "isMaster", "ismaster"})
# What a member that is not primary still answers.
_ALWAYS: Final = HELLO | {
    "ping", "buildInfo", "buildinfo", "saslStart", "saslContinue", "endSessions", "killCursors",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """The gateway's own reply."""

    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Forward:
    """Bytes for upstream, and how to rewrite what comes back."""

    raw: bytes
    rewrite: Rewriter


@dataclass(frozen=True, slots=True)
class Command:
    """A fault for the connection to carry out."""

    document: dict[str, Any]


Decision = Answer | Forward | Command


class Router:
    """The decisions of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._replies = cluster.replies
        self._routes: dict[str, Callable[[Request], Decision]] = {
            "aggregate": self._aggregate,
            "getMore": self._get_more,
            "killCursors": self._kill_cursors,
            "listDatabases": self._list_databases,
            "modifyChangeStreams": self._modify_change_streams,
            "d5Gateway": lambda request: Command(request.message.decode()),
            **dict.fromkeys(HELLO, self._hello),
            **dict.fromkeys(ROW_SHAPERS, self._list),
        }

    def decide(self, message: Message) -> Decision:
        """Decide what to do with a request; a refusal is an answer too."""
        try:
            return self._decide(read_request(message))
        except RefusedError as refusal:
            return Answer(self._replies.error(refusal))

    def _decide(self, request: Request) -> Decision:
        if request.message.opcode == OP_QUERY and request.command not in HELLO:
            raise RefusedError(352, f"Unsupported OP_QUERY command: {request.command}")
        if self._cluster.faults.failing_over and request.command not in _ALWAYS | {"d5Gateway"}:
            raise RefusedError(facts.NOT_PRIMARY, "not primary")
        refuse_unsupported(request, self._cluster.allow)
        route = self._routes.get(request.command)
        return route(request) if route else self._plain(request)

    def _plain(self, request: Request) -> Forward:
        return Forward(request.message.raw, self._replies.plain)

    def _hello(self, request: Request) -> Forward:
        cluster = self._cluster

        def shape(reply: dict[str, Any]) -> None:
            shape_hello(reply, cluster.address, cluster.set_name, failing=cluster.faults.failing_over)

        return Forward(request.message.raw, self._replies.shaped(shape))

    def _list(self, request: Request) -> Forward:
        rewrite = self._replies.listing(ROW_SHAPERS[request.command])
        return Forward(request.message.raw, rewrite)

    def _list_databases(self, request: Request) -> Forward:
        return Forward(request.message.raw, self._replies.shaped(shape_databases))

    def _get_more(self, request: Request) -> Forward:
        raw = request.message.raw
        _, _, _, value, end = next(elements(raw, request.message.body))
        cursor_id = int.from_bytes(raw[value:end], "little", signed=True)
        if stream := self._replies.streams.get(cursor_id):
            self._cluster.faults.check_stream()
            return Forward(raw, self._replies.stream(stream, cursor_id))
        if shape_rows := self._replies.listings.pop(cursor_id, None):
            return Forward(raw, self._replies.listing(shape_rows))
        return self._plain(request)

    def _kill_cursors(self, request: Request) -> Forward:
        for cursor_id in request.message.decode().get("cursors", ()):
            self._replies.streams.pop(cursor_id, None)
        return self._plain(request)

    def _aggregate(self, request: Request) -> Forward:
        stage = _first_stage(request.message)
        if stage == b"$changeStream":
            return self._open_stream(request)
        if stage == b"$listChangeStreams" and request.database == "admin":
            return self._list_change_streams(request)
        return self._plain(request)

    def _open_stream(self, request: Request) -> Forward:
        cluster = self._cluster
        cluster.faults.check_stream()
        limit = cluster.faults.max_cursors
        if limit is not None and len(self._replies.streams) >= limit:
            raise RefusedError(facts.CURSOR_QUOTA, facts.TOO_MANY_CURSORS)
        command = request.message.decode()
        stream = open_stream(
            command,
            cluster.log,
            oldest=cluster.oldest(),
            sends_post_batch_token=cluster.sends_post_batch_token,
        )
        raw = with_body(request.message, [bson.encode(command)])
        return Forward(raw, self._replies.stream(stream))

    def _list_change_streams(self, request: Request) -> Forward:
        # Upstream is asked for something that needs a login too.
        asked = {"listDatabases": 1, "nameOnly": True, "authorizedDatabases": True, "$db": "admin"}

        def shape(reply: dict[str, Any]) -> None:
            del reply["databases"]
            rows = self._cluster.log.enabled()
            cursor = {"id": bson.Int64(0), "ns": "admin.$cmd.aggregate", "firstBatch": rows}
            kept = dict(reply)
            reply.clear()
            reply |= {"cursor": cursor, **kept}

        return Forward(request_instead(request.message, asked), self._replies.shaped(shape))

    def _modify_change_streams(self, request: Request) -> Forward:
        command = request.message.decode()
        scope = Scope(command.get("database", ""), command.get("collection", ""))
        if request.database != "admin" or (scope.collection and not scope.database):
            raise RefusedError(facts.BAD_VALUE, "modifyChangeStreams: wrong database or collection")
        enable = bool(command.get("enable"))

        def apply(time: int) -> None:
            self._cluster.log.modify(scope, enable=enable, at=time)

        return self.at_a_new_time(request.message, apply)

    def at_a_new_time(self, message: Message, apply: Callable[[int], None]) -> Forward:
        """Draw a line in the oplog and act at its clusterTime; clusterManager may, as it must be."""
        asked = message.command()
        note = {"appendOplogNote": 1, "data": {"gateway": asked}, "$db": "admin"}

        def rewrite(buf: bytes, at: int) -> list[bytes]:
            reply = decode(buf, at)
            if reply.get("code") == _UNAUTHORIZED:
                refusal = RefusedError(_UNAUTHORIZED, f"Authorization failure: {asked}")
                return [bson.encode(self._replies.error(refusal))]
            if not reply.get("ok"):
                return self._replies.plain(buf, at)
            time = reply["operationTime"]
            apply((time.time << 32) | time.inc)
            return [bson.encode({"ok": 1.0, "operationTime": time})]

        return Forward(request_instead(message, note), rewrite)


def _first_stage(message: Message) -> bytes:
    found = find(message.raw, message.body, b"pipeline")
    if found is None:
        return b""
    stage = next(elements(message.raw, found[3]), None)
    if stage is None:
        return b""
    return next((each[1] for each in elements(message.raw, stage[3])), b"")
