"""One cursor on the cluster-wide change stream: plain `aggregate` and `getMore`, replies as the bytes that came.

A reply is not decoded: a walk over its top-level elements finds the events, and each is kept as it is.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from bson import Timestamp
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo.errors import ConfigurationError, ExecutionTimeout, InvalidURI, OperationFailure, PyMongoError
from typing_extensions import override

from d5agent.adapters.mongo import RAW, close_cursor, translated
from d5agent.core.log import raw
from d5agent.core.log.cursor_pages import LazyDocuments
from d5agent.core.log.operation import ClusterTime, Position
from d5agent.errors import AgentError, NotKeptError, OperatorError, TransientError, UnclassifiedError
from d5agent.ports import EventBatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from pymongo.asynchronous.client_session import AsyncClientSession

    from d5agent.adapters.mongo import Client
    from d5agent.core.log.batch_size import BatchSize
    from d5agent.ports import Clock

SIDE: Final = "source"
ENABLE: Final = 'db.adminCommand({modifyChangeStreams: 1, database: "", collection: "", enable: true})'
_AWAIT_MS: Final = 500
_AWAIT_MORE_MS: Final = 50  # after events: that nothing follows lets what came be committed
_EMPTY_ARRAY: Final = 5  # bytes
_NOT_ENABLED_TEXT: Final = "modifyChangeStreams has not been run"
_CAPPED_POSITION_LOST: Final = 136
_LOST_ON_MONGODB: Final = frozenset({280, 286})
_FOREIGN: Final = frozenset({9, 260, 50811})  # 50811: MongoDB's for a token that is not even its own form
# What a person must change before the same command can succeed: docs/failure-modes.md lists each with its reason.
_FINAL: Final = frozenset({13, 59, 303, 40324, 40415, 40573})
# "Resumable errors", MongoDB change streams specification; 462: a server that limits requests.
_RESUMABLE: Final = frozenset({63, 133, 134, 150, 202, 234, 246, 462, 13388})
_RESUMABLE_LABEL: Final = "ResumableChangeStreamError"
ANSWER_SECONDS: Final = 30  # a getMore waits half a second; a middlebox that forgets one flow answers never
_OPEN_SECONDS: Final = 300  # from an old position the server looks through all of its log after it
_TOO_MANY_TEXT: Final = "too many cursors are already opened"
_EVENT_TOO_LARGE: Final = 10334
# MongoDB's words beside that code. DocumentDB's own code for it is not documented.
_TOO_LARGE_TEXT: Final = re.compile(r"BSONObj size|larger than 16|exceeds.{0,40}16 ?MB", re.IGNORECASE)


class View(Enum):
    """How much of an event is asked for, and how many at once."""

    WHOLE = "as many as fit, whole"
    SINGLE = "one by one, whole"
    WITHOUT_CHANGE = "one, without updateDescription"
    WITHOUT_DOCUMENT = "one, with its key only"

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves something out: for exactly one event."""
        return self in {View.WITHOUT_CHANGE, View.WITHOUT_DOCUMENT}

    def narrower(self) -> View:
        """Return the next one to try when an event is too large; OperatorError: there is none."""
        order = list(View)
        if self is order[-1]:
            raise OperatorError(
                "an event is larger than 16 MB, even without its document: the server cannot send it",
                hint="see docs/runbook, 'an event is too large'",
            )
        return order[order.index(self) + 1]


class EventTooLargeError(AgentError):
    """The server cannot send the next event in this view."""


class UnansweredError(TransientError):
    """The server has not answered in time: another time it is asked for less."""


def not_enabled() -> NotKeptError:
    """Return the error for a cluster that keeps no changes."""
    return NotKeptError(
        "change streams are not enabled for the whole cluster",
        hint=f"before the first capture, set [source] enable_change_streams, or type on the source: {ENABLE}; "
        "after it, operations are lost to the stream: docs/runbook, 'the position is lost'",
    )


def stream_error(error: PyMongoError | BSONError) -> AgentError:
    """Return what an error of the stream means: "Which errors end capture" in docs/failure-modes.md."""
    code = error.code if isinstance(error, OperationFailure) else None
    if code == _CAPPED_POSITION_LOST and _NOT_ENABLED_TEXT in str(error):
        return not_enabled()
    if code == _CAPPED_POSITION_LOST or code in _LOST_ON_MONGODB:
        return NotKeptError(
            "the position is older than the server's log of changes: operations are lost to the stream",
            hint="d5agent never resumes from the current time on its own; see docs/runbook, 'the position is lost'",
            code=code,
        )
    if _TOO_MANY_TEXT in str(error):
        return TransientError(
            "the source has too many cursors open",
            hint="it goes on when one is closed: are there other change streams, or a larger instance to be had?",
            code=code,
        )
    if code in _FOREIGN:
        return OperatorError(
            "the resume token is not of this cluster, or damaged",
            hint="does [source] name the cluster that this bucket's log was captured from?",
            code=code,
        )
    if code == _EVENT_TOO_LARGE or (code is not None and _TOO_LARGE_TEXT.search(str(error))):
        return EventTooLargeError("an event is larger than 16 MB", code=code)
    return _other_error(error, code)


def _other_error(error: PyMongoError | BSONError, code: int | None) -> AgentError:
    """Return what an error means that says nothing of the position: only what is named here needs a person."""
    known = translated(error, SIDE)
    if isinstance(known, TransientError) or code in _FINAL or isinstance(error, InvalidURI | ConfigurationError):
        return known
    if code in _RESUMABLE or (isinstance(error, PyMongoError) and error.has_error_label(_RESUMABLE_LABEL)):
        return TransientError("the source interrupted the stream", hint="the stream is opened again", **known.facts)
    return UnclassifiedError(
        f"{known.message}, for a reason that d5agent does not know",
        hint="it is tried again until a quarter of the retention is left; see what the server says",
        **known.facts,
    )


@contextmanager
def classifying() -> Iterator[None]:
    """Turn the driver's errors inside the block into what they mean for capture."""
    try:
        yield
    except (PyMongoError, BSONError) as error:
        raise stream_error(error) from error


class ReplyEvents(LazyDocuments):
    """The events of a reply, taken apart when somebody first looks at them: the next reply is asked for before that."""

    def __init__(self, reply: bytes, span: raw.Span | None) -> None:
        self.size = 0 if span is None else span[2] - span[1]
        self._reply = reply if self.size > _EMPTY_ARRAY else None
        self._start = 0 if span is None else span[1]
        self._found: list[bytes] = []

    @property
    def average(self) -> float | None:
        """Bytes an event, once they have been taken apart."""
        return self.size / len(self._found) if self._found else None

    @property
    def told(self) -> int:
        """How many there are; 0 until they were taken apart."""
        return len(self._found)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._found) or self._reply is not None

    @override
    def _taken_apart(self) -> list[bytes]:
        if self._reply is not None:
            self._found = raw.documents_of(self._reply, self._start)
            self._reply = None
        return self._found


@dataclass(slots=True, kw_only=True)
class StreamCursor:
    """A cursor that was not opened yet. It reads from a position, in a view, as many events as `portion` says."""

    client: Client
    clock: Clock
    position: Position
    view: View
    portion: BatchSize
    _took: tuple[int, float] = (0, 0.0)
    """How many events the last getMore asked for, and how many seconds its answer took."""

    async def batches(self) -> AsyncGenerator[EventBatch]:
        """Open the cursor, yield its batches for ever, and close it. The first batch is empty: where it begins."""
        cursor_id = 0
        session = self.client.start_session(causal_consistency=False)  # DocumentDB has none (303)
        try:
            reply = await self._command(self._open_command(), session, seconds=_OPEN_SECONDS)
            events: ReplyEvents | None = None
            took = self._took
            while True:
                if events is not None:  # the batch before this one: it has been looked at by now
                    self.portion.note_answer(asked=took[0], came=events.told, seconds=took[1])
                    self.portion.fit(events.average)
                took = self._took
                cursor_id, events, position = _read(reply, before=self.position)
                batch = EventBatch(events=events, position=position, is_reduced=self.view.is_narrow, size=events.size)
                del reply  # large, and the next one comes while this batch is worked on
                yield batch
                reply = await self._more(cursor_id, session, _AWAIT_MORE_MS if batch.events else _AWAIT_MS)
        finally:
            # Shielded: a cursor left open counts against the cluster's quota (30 on small instances).
            await asyncio.shield(close_cursor(session, "admin", "$cmd.aggregate", cursor_id))

    def _open_command(self) -> dict[str, Any]:
        stream: dict[str, Any] = {"allChangesForCluster": True}
        pipeline: list[dict[str, Any]] = [{"$changeStream": stream}]
        if self.view is not View.WITHOUT_DOCUMENT:
            stream["fullDocument"] = "updateLookup"
        if self.view is View.WITHOUT_CHANGE:
            pipeline.append({"$project": {"updateDescription": 0}})
        if self.view is View.WITHOUT_DOCUMENT:
            pipeline.append({"$project": {"updateDescription": 0, "fullDocument": 0}})
        if self.position.token is None:
            time = self.position.cluster_time
            stream["startAtOperationTime"] = Timestamp(time.seconds, time.increment)
        else:
            stream["resumeAfter"] = RawBSONDocument(self.position.token)
        # An empty first batch: it tells the position that the stream begins at.
        return {"aggregate": 1, "pipeline": pipeline, "cursor": {"batchSize": 0}}

    async def _more(self, cursor_id: int, session: AsyncClientSession, await_ms: int) -> bytes:
        """Ask for the next batch, and note how long it takes."""
        asked = self.portion.events if self.view is View.WHOLE else 1
        command = {"getMore": cursor_id, "collection": "$cmd.aggregate", "maxTimeMS": await_ms, "batchSize": asked}
        began = self.clock.monotonic()
        try:
            reply = await self._command(command, session, seconds=self.portion.seconds)
        except UnansweredError:
            self.portion.note_silence(asked)
            raise
        self._took = asked, self.clock.monotonic() - began
        return reply

    async def _command(self, command: dict[str, Any], session: AsyncClientSession, *, seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                reply = await session.client.admin.command(command, session=session, codec_options=RAW)
        except TimeoutError as error:
            raise _unanswered(seconds) from error
        except ExecutionTimeout as error:
            raise _unanswered(seconds) from error
        except (PyMongoError, BSONError) as error:
            raise stream_error(error) from error
        return bytes(reply.raw)


def _unanswered(seconds: float) -> UnansweredError:
    return UnansweredError(
        "the source does not answer in time", hint="it is asked again for less, on a new connection", seconds=seconds
    )


def _read(reply: bytes, *, before: Position) -> tuple[int, ReplyEvents, Position | None]:
    """Return a reply's cursor id, its events, and where the stream goes on."""
    fields = raw.spans(reply)
    cursor = raw.spans(reply, fields[b"cursor"][1])
    token = cursor.get(b"postBatchResumeToken")
    time = fields.get(b"operationTime")
    at = before.cluster_time if time is None else ClusterTime(*raw.timestamp_in(reply, time))
    position = None if token is None else Position(cluster_time=at, token=reply[token[1] : token[2]])
    return raw.int64_at(reply, cursor[b"id"]), ReplyEvents(reply, cursor.get(b"nextBatch")), position
