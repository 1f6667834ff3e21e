"""What to do with each upstream reply on its way to the client."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import bson
from bson.timestamp import Timestamp

from d5agent.drill.gateway import facts
from d5agent.drill.gateway.bsonwalk import assemble, elements
from d5agent.drill.gateway.listings import shape_collections, shape_indexes
from d5agent.drill.gateway.refusals import RefusedError
from d5agent.drill.gateway.streams import Stream
from d5agent.drill.gateway.wire import decode

# From the raw reply and its body's offset to the pieces of the body for the client.
Rewriter: TypeAlias = Callable[[bytes, int], list[bytes]]
Shaper: TypeAlias = Callable[[dict[str, Any]], None]
RowShaper: TypeAlias = Callable[[list[dict[str, Any]], str], None]

ROW_SHAPERS: Final[dict[str, RowShaper]] = {
    "listCollections": shape_collections,
    "listIndexes": shape_indexes,
}
_CURSOR_NOT_FOUND: Final = 43


@dataclass(slots=True)
class Replies:
    """Rewrites replies; remembers the cursors that need it and the last operationTime."""

    operation_time: bytes = b""
    streams: dict[int, Stream] = field(default_factory=dict)
    listings: dict[int, RowShaper] = field(default_factory=dict)
    told: int = 0

    def take_told(self) -> int:
        """Return how many events the reply that was rewritten last has; asked before another one is rewritten."""
        told, self.told = self.told, 0
        return told

    def plain(self, buf: bytes, at: int) -> list[bytes]:
        """Pass anything else: the same bytes without $clusterTime."""
        start = at + 4
        pieces: list[bytes] = []
        end = start
        for _, name, begin, value, end in elements(buf, at):
            if name == b"$clusterTime":
                pieces.append(buf[start:begin])
                start = end
            elif name == b"operationTime":
                self.operation_time = buf[value:end]
        pieces.append(buf[start:end])
        return assemble(pieces)

    def shaped(self, shape: Shaper) -> Rewriter:
        """Decode and shape a small reply; an error passes."""

        def rewrite(buf: bytes, at: int) -> list[bytes]:
            reply = decode(buf, at)
            if not reply.get("ok"):
                return self.plain(buf, at)
            shape(reply)
            reply.pop("$clusterTime", None)
            return [bson.encode(reply)]

        return rewrite

    def listing(self, shape_rows: RowShaper) -> Rewriter:
        """Shape a listing's rows, and those that its getMore will bring."""

        def shape(reply: dict[str, Any]) -> None:
            cursor = reply["cursor"]
            shape_rows(cursor.get("firstBatch", cursor.get("nextBatch")), cursor["ns"])
            if cursor["id"]:
                self.listings[cursor["id"]] = shape_rows

        return self.shaped(shape)

    def stream(self, stream: Stream, cursor_id: int = 0) -> Rewriter:
        """Rewrite a change stream's batch; the reply to its opening registers the cursor."""

        def rewrite(buf: bytes, at: int) -> list[bytes]:
            pieces: list[bytes] = []
            is_batch = False
            for element in elements(buf, at):
                _, name, begin, value, end = element
                if name == b"cursor":
                    is_batch = True
                    self._track(_cursor_id(buf, value), cursor_id, stream)
                    pieces += stream.rewrite_cursor(buf, element)
                    self.told = stream.told
                elif name != b"$clusterTime":
                    pieces.append(buf[begin:end])
                if name == b"operationTime":
                    self.operation_time = buf[value:end]
            return assemble(pieces) if is_batch else self._stream_error(buf, at, cursor_id)

        return rewrite

    def error(self, refusal: RefusedError) -> dict[str, Any]:
        """Word an error as DocumentDB does."""
        return {"ok": 0.0, **self.now(), "code": refusal.code, "errmsg": refusal.message}

    def now(self) -> dict[str, Any]:
        """Give {operationTime}, as every reply of a replica set carries it."""
        if not self.operation_time:
            return {}
        time = int.from_bytes(self.operation_time, "little")
        return {"operationTime": Timestamp(time >> 32, time & 0xFFFFFFFF)}

    def _track(self, reply_id: int, request_id: int, stream: Stream) -> None:
        if reply_id:
            self.streams[reply_id] = stream
        else:
            self.streams.pop(request_id, None)

    def _stream_error(self, buf: bytes, at: int, cursor_id: int) -> list[bytes]:
        code = decode(buf, at).get("code")
        if code not in facts.UPSTREAM_LOST | {_CURSOR_NOT_FOUND}:
            return self.plain(buf, at)
        self.streams.pop(cursor_id, None)
        if code == _CURSOR_NOT_FOUND:
            return self.plain(buf, at)
        return [bson.encode(self.error(RefusedError(facts.LOST, facts.POSITION_LOST)))]


def _cursor_id(buf: bytes, cursor: int) -> int:
    for _, name, _, value, end in elements(buf, cursor):
        if name == b"id":
            return int.from_bytes(buf[value:end], "little", signed=True)
    return 0
