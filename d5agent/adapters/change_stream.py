"""The ChangeSource on DocumentDB, and on MongoDB: one cursor, raw batches, its own resume loop.

The stream is read with plain `aggregate` and `getMore` commands, so that events stay the bytes that the server sent
and each reply's post-batch token is seen ("Change streams", Amazon DocumentDB developer guide).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from bson import Timestamp, encode
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure, PyMongoError

from d5agent.adapters.mongo import APP_NAME, SYSTEM_DATABASES, Client, hello, replica_set_of, translated, translating
from d5agent.adapters.retry import ATTEMPTS, retrying
from d5agent.core.operation import OWN_DATABASE, ClusterTime, Position, parse_event
from d5agent.errors import OperatorError, TransientError
from d5agent.ports import EventBatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from pymongo.asynchronous.client_session import AsyncClientSession

    from d5agent.errors import AgentError
    from d5agent.ports import Clock

_SIDE: Final = "source"
_RAW: Final = CodecOptions(document_class=RawBSONDocument)
_MARKS: Final = "marks"
_AWAIT_MS: Final = 500
_FIRST_PAUSE_SECONDS: Final = 0.2
_UNAUTHORIZED: Final = 13
_NOT_ENABLED_TEXT: Final = "modifyChangeStreams has not been run"
_CAPPED_POSITION_LOST: Final = 136
_LOST_ON_MONGODB: Final = frozenset({280, 286})
_FOREIGN: Final = frozenset({9, 260})
_EVENT_TOO_LARGE: Final = 10334
_WRITES: Final = frozenset({"insert", "update", "delete", "remove", "findAndModify", "findandmodify", "bulkWrite"})
ENABLE: Final = 'db.adminCommand({modifyChangeStreams: 1, database: "", collection: "", enable: true})'


def not_enabled() -> OperatorError:
    """Return the error for a cluster that keeps no changes."""
    return OperatorError(
        "change streams are not enabled for the whole cluster",
        hint=f"run the Lambda start-replication, or type on the source: {ENABLE}",
    )


def stream_error(error: PyMongoError) -> AgentError:
    """Return what an error of the stream means: the table "error, meaning, what to do" in docs/failure-modes.md."""
    code = error.code if isinstance(error, OperationFailure) else None
    if code == _CAPPED_POSITION_LOST and _NOT_ENABLED_TEXT in str(error):
        return not_enabled()
    if code == _CAPPED_POSITION_LOST or code in _LOST_ON_MONGODB:
        return OperatorError(
            "the position is older than the server's log of changes: operations are lost to the stream",
            hint="nothing goes on from now by itself; see docs/runbook, 'the position is lost'",
            code=code,
        )
    if code in _FOREIGN:
        return OperatorError(
            "the resume token is not of this cluster, or damaged",
            hint="does [source] name the cluster that this bucket's log was captured from?",
            code=code,
        )
    if code == _EVENT_TOO_LARGE:
        return OperatorError(
            "an event is larger than 16 MB: the server cannot send it",
            hint="see docs/runbook, 'an event is too large'",
            code=code,
        )
    return translated(error, _SIDE)


class ChangeStreamSource:
    """Reads the changes of a whole cluster. `flavor` is "documentdb" or "mongodb"."""

    def __init__(self, client: Client, *, uri: str, flavor: str, clock: Clock) -> None:
        self._client = client
        self._uri = uri
        self._is_documentdb = flavor == "documentdb"
        self._clock = clock

    async def check(self) -> None:
        """Raise OperatorError unless the source is a replica set whose changes are kept, cluster-wide."""
        try:
            answer = await hello(self._client, _SIDE)
        except TransientError:
            answer = {"setName": await replica_set_of(self._uri, _SIDE)}
            if answer["setName"]:
                raise
        if not answer.get("setName"):
            raise OperatorError(
                "the source is not a replica set: it has no change stream",
                hint="mend [source] uri; DocumentDB is the set rs0, a MongoDB server needs --replSet",
            )
        if self._is_documentdb:
            await self._check_enabled()

    @asynccontextmanager
    async def stream(self, after: Position | None) -> AsyncGenerator[AsyncGenerator[EventBatch]]:
        """Open the stream after a position (None: from now). It is closed on the way out, whatever the reason."""
        if after is None:
            after = Position(cluster_time=await self.now(), token=None)
        async with aclosing(self._batches(after)) as batches:
            yield batches

    async def mark(self, mark_id: str) -> bool:
        """Insert a mark into the agent's own database; False when the user may not write there."""
        marks = self._client[OWN_DATABASE][_MARKS]
        try:
            await marks.insert_one(RawBSONDocument(encode({"_id": mark_id})))
        except OperationFailure as error:
            if error.code == _UNAUTHORIZED:
                return False
            raise translated(error, _SIDE) from error
        except PyMongoError as error:
            raise translated(error, _SIDE) from error
        return True

    async def running_writes(self) -> Sequence[str]:
        """Return the writes and open transactions of others (currentOp)."""

        async def once() -> Mapping[str, Any]:
            with translating(_SIDE):
                return await self._client.admin.command({"currentOp": 1, "$all": True})

        running = [dict(operation) for operation in (await retrying(once, clock=self._clock))["inprog"]]
        return [_described(operation) for operation in running if _is_write(operation)]

    async def now(self) -> ClusterTime:
        """Return the cluster's time (hello.operationTime)."""

        async def once() -> ClusterTime:
            time = (await hello(self._client, _SIDE)).get("operationTime")
            if time is None:
                raise OperatorError("the source tells no operationTime", hint="is it a replica set?")
            return ClusterTime(time.time, time.inc)

        return await retrying(once, clock=self._clock)

    async def close_stream(self) -> None:
        """Remove the agent's marks and, on DocumentDB, switch the cluster-wide change stream off."""

        async def once() -> None:
            with translating(_SIDE):
                await self._client.drop_database(OWN_DATABASE)
                if self._is_documentdb:
                    await self._client.admin.command(
                        {"modifyChangeStreams": 1, "database": "", "collection": "", "enable": False}
                    )

        await retrying(once, clock=self._clock)

    async def _check_enabled(self) -> None:
        with translating(_SIDE):
            cursor = await self._client.admin.aggregate([{"$listChangeStreams": 1}])
            enabled = [dict(found) async for found in cursor]
        if not any(found.get("database") == "" and found.get("collection") == "" for found in enabled):
            raise not_enabled()

    async def _batches(self, position: Position) -> AsyncGenerator[EventBatch]:
        """Yield batches for ever, reopening after what passes: a lost cursor, a cut line, a fail-over."""
        failures = 0
        is_open = False
        while True:
            try:
                async with aclosing(self._cursor(position)) as replies:
                    if is_open:
                        # A new cursor's first batch is always empty: no sign that a transaction cut in two is whole.
                        await anext(replies)
                    is_open = True
                    async for batch in replies:
                        yield batch
                        failures = 0
                        position = _after(batch) or position
            except TransientError:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                await self._clock.sleep(_FIRST_PAUSE_SECONDS * 2**failures)

    async def _cursor(self, position: Position) -> AsyncGenerator[EventBatch]:
        """Yield the batches of one cursor, and close it."""
        cursor_id = 0
        session = self._client.start_session(causal_consistency=False)
        try:
            reply = await self._command(_open_command(position), session)
            while True:
                cursor = reply["cursor"]
                cursor_id = cursor["id"]
                token = cursor.get("postBatchResumeToken")
                at = _cluster_time(reply) or position.cluster_time
                yield EventBatch(
                    events=[bytes(event.raw) for event in cursor.get("nextBatch", ())],
                    position=None if token is None else Position(cluster_time=at, token=bytes(token.raw)),
                )
                more = {"getMore": cursor_id, "collection": "$cmd.aggregate", "maxTimeMS": _AWAIT_MS}
                reply = await self._command(more, session)
        finally:
            # Shielded: a cursor left open counts against the cluster's quota (30 on small instances).
            await asyncio.shield(self._close(cursor_id, session))

    async def _command(self, command: dict[str, Any], session: AsyncClientSession) -> Mapping[str, Any]:
        try:
            return await self._client.admin.command(command, session=session, codec_options=_RAW)
        except PyMongoError as error:
            raise stream_error(error) from error

    async def _close(self, cursor_id: int, session: AsyncClientSession) -> None:
        with suppress(PyMongoError):  # a server that is gone has closed it
            if cursor_id:
                command = {"killCursors": "$cmd.aggregate", "cursors": [cursor_id]}
                await self._client.admin.command(command, session=session)
        await session.end_session()


def _open_command(position: Position) -> dict[str, Any]:
    stream: dict[str, Any] = {"allChangesForCluster": True, "fullDocument": "updateLookup"}
    if position.token is None:
        time = position.cluster_time
        stream["startAtOperationTime"] = Timestamp(time.seconds, time.increment)
    else:
        stream["resumeAfter"] = RawBSONDocument(position.token)
    # An empty first batch: it tells the position that the stream begins at.
    return {"aggregate": 1, "pipeline": [{"$changeStream": stream}], "cursor": {"batchSize": 0}}


def _cluster_time(reply: Mapping[str, Any]) -> ClusterTime | None:
    time = reply.get("operationTime")
    return None if time is None else ClusterTime(time.time, time.inc)


def _after(batch: EventBatch) -> Position | None:
    """Return where to reopen after a batch that was handed on."""
    if not batch.events:
        return batch.position
    last = parse_event(batch.events[-1])
    return Position(cluster_time=last.cluster_time, token=last.token)


def _is_write(operation: Mapping[str, Any]) -> bool:
    """Whether a row of currentOp is somebody else's write, or an open transaction that may yet write."""
    database = str(operation.get("ns", "")).split(".")[0]
    if operation.get("appName") == APP_NAME or database in SYSTEM_DATABASES | {OWN_DATABASE}:
        return False
    if operation.get("transaction", {}).get("parameters", {}).get("autocommit") is False:
        return True
    command = operation.get("command") or {}
    is_write = operation.get("op") in _WRITES or not _WRITES.isdisjoint(command)
    return bool(operation.get("active")) and is_write and bool(database)


def _described(operation: Mapping[str, Any]) -> str:
    seconds = operation.get("secs_running", 0)
    return f"{operation.get('op', '?')} on {operation.get('ns', '?')} since {seconds} s"
