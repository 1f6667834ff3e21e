"""Change-stream cursors: checks and translates the opening, then rewrites each batch."""

from dataclasses import dataclass
from typing import Any, Final

from bson.timestamp import Timestamp

from d5agent.drill.gateway import facts
from d5agent.drill.gateway.bsonwalk import Element, assemble, elements
from d5agent.drill.gateway.events import (
    namespace_of,
    rewrite_batch,
    token_document,
    token_position,
)
from d5agent.drill.gateway.refusals import RefusedError, not_supported
from d5agent.drill.gateway.scopes import Scope, StreamLog
from d5agent.drill.gateway.tokens import InvalidTokenError, Position, TokenCodec

_BATCHES: Final = frozenset({b"firstBatch", b"nextBatch"})
_START: Final = Position(0, 0)


@dataclass(slots=True, kw_only=True)
class Stream:
    """One open change stream: what it is over, and how far it is."""

    scope: Scope
    log: StreamLog
    codec: TokenCodec
    sends_post_batch_token: bool
    position: Position = _START
    held: Position | None = None
    told: int = 0

    def shows(self, position: Position, buf: bytes, event: int) -> bool:
        """Whether the client gets this event: after its position, and of an enabled scope."""
        is_shown = self._is_shown(position, buf, event)
        self.told += is_shown
        return is_shown

    def _is_shown(self, position: Position, buf: bytes, event: int) -> bool:
        if position <= self.position:
            return False
        since = self.log.whole_cluster_since()
        if since is not None and since < position.time:
            return True
        namespace = namespace_of(buf, event)
        if not namespace.database:
            namespace = self.scope
        return self.log.shows(namespace, position.time)

    def rewrite_cursor(self, buf: bytes, cursor: Element) -> list[bytes]:
        """Pieces of a reply's `cursor` element with the gateway's events and tokens."""
        _, _, begin, value, _ = cursor
        pieces: list[bytes] = []
        self.told = 0
        for element in elements(buf, value):
            _, name, start, _, end = element
            if name in _BATCHES:
                pieces += rewrite_batch(buf, element, self.codec, self.shows)
            elif name == b"postBatchResumeToken":
                pieces += self._post_batch(buf, element)
            else:
                pieces.append(buf[start:end])
        return [buf[begin:value], *assemble(pieces)]

    def _post_batch(self, buf: bytes, element: Element) -> list[bytes]:
        _, _, begin, value, _ = element
        # Upstream starts at the time resumed from, so its token may lie before what was resumed.
        self.position = max(self.position, token_position(buf, value))
        if not self.sends_post_batch_token:
            return []
        token = self.codec.post_batch_token(self._announced())
        return [buf[begin:value], token_document(token)]

    def _announced(self) -> Position:
        # While nothing is enabled, a token that moved on would pretend to have covered something.
        if not self.log.is_silent(self.scope):
            self.held = None
            return self.position
        if self.held is None:
            self.held = self.position
        return self.held


def scope_of(command: dict[str, Any]) -> Scope:
    """Tell what a change-stream aggregate is over."""
    collection = command["aggregate"]
    if isinstance(collection, str):
        return Scope(command["$db"], collection)
    options = command["pipeline"][0]["$changeStream"]
    return Scope("" if options.get("allChangesForCluster") else command["$db"], "")


def check_pipeline(pipeline: list[dict[str, Any]]) -> None:
    """Refuse the options and the stages that DocumentDB does not know."""
    options = pipeline[0]["$changeStream"]
    for option in options:
        if option not in facts.STREAM_OPTIONS:
            message = f"BSON field '$changeStream.{option}' is an unknown field."
            raise RefusedError(facts.UNKNOWN_FIELD, message)
    if options.get("fullDocument", "default") not in facts.FULL_DOCUMENT:
        raise not_supported(f"fullDocument: {options['fullDocument']}")
    if "resumeAfter" in options and "startAtOperationTime" in options:
        message = "resumeAfter and startAtOperationTime cannot both be specified"
        raise RefusedError(facts.BAD_VALUE, message)
    for stage in pipeline[1:]:
        name = next(iter(stage), "")
        if name not in facts.STREAM_STAGES:
            raise not_supported(f"stage {name} in a change stream")


def start_of(options: dict[str, Any], codec: TokenCodec) -> Position | None:
    """Find where the client wants to start; None for now."""
    if "resumeAfter" in options:
        token = options["resumeAfter"]
        try:
            return codec.read(token.get("_data") if isinstance(token, dict) else None)
        except InvalidTokenError:
            raise RefusedError(facts.INVALID_TOKEN, "Invalid resume token") from None
    if "startAtOperationTime" in options:
        at: Timestamp = options["startAtOperationTime"]
        return Position((at.time << 32) | at.inc, 0)
    return None


def open_stream(command: dict[str, Any], log: StreamLog, *, oldest: int, sends_post_batch_token: bool) -> Stream:
    """Check an aggregate, make the upstream's one out of it, in place, and remember its start."""
    pipeline = command["pipeline"]
    check_pipeline(pipeline)
    options = pipeline[0]["$changeStream"]
    codec = TokenCodec(log.cluster_id)
    start = start_of(options, codec)
    scope = scope_of(command)
    if scope != Scope("", "") and log.is_silent(scope):
        raise RefusedError(facts.LOST, facts.NEVER_ENABLED)
    if start is not None:
        if start.time < oldest or log.has_lost(scope, start.time):
            raise RefusedError(facts.LOST, facts.POSITION_LOST)
        options.pop("resumeAfter", None)
        options["startAtOperationTime"] = Timestamp(start.seconds, start.increment)
    return Stream(
        scope=scope,
        log=log,
        codec=codec,
        sends_post_batch_token=sends_post_batch_token,
        position=start or _START,
    )
