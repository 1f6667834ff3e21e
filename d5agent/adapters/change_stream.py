"""The ChangeSource on DocumentDB, and on MongoDB: one cursor, raw batches, its own resume loop.

The stream is read with plain `aggregate` and `getMore` commands, so that events stay the bytes that the server sent
and each reply's post-batch token is seen ("Change streams", Amazon DocumentDB developer guide).
"""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from bson import encode
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure, PyMongoError

from d5agent.adapters.current_operations import writing
from d5agent.adapters.mongo import RAW, Client, require_set, translating
from d5agent.adapters.retry import ATTEMPTS, retrying
from d5agent.adapters.stream_cursor import (
    ANSWER_SECONDS,
    SIDE,
    EventTooLargeError,
    StreamCursor,
    UnansweredError,
    View,
    classifying,
    not_enabled,
    stream_error,
)
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.log.batch_size import BatchSize
from d5agent.core.log.operation import OWN_DATABASE, ClusterTime, Position, parse_event
from d5agent.errors import OperatorError, TransientError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from d5agent.ports import Clock, EventBatch

_MARKS: Final = "marks"
_FIRST_PAUSE_SECONDS: Final = 0.2
_UNAUTHORIZED: Final = 13
_MOST_SINGLE: Final = 20_000  # read one by one in search of the event that is too large; a batch is half of it at most


class ChangeStreamSource:
    """Reads the changes of a whole cluster. `flavor` is "documentdb" or "mongodb".

    `enables`: on DocumentDB, the cluster-wide change stream is switched on where it is off. A batch that does not come
    within `answer_seconds` is asked for again with half as many events, also by a later stream.
    """

    answer_seconds: float = ANSWER_SECONDS

    def __init__(
        self,
        client: Client,
        *,
        uri: str,
        flavor: str,
        clock: Clock,
        enables: bool = False,
        gate: WriteGate | None = None,
    ) -> None:
        self._client = client
        self._uri = uri
        self._is_documentdb = flavor == "documentdb"
        self._enables = enables
        self._clock = clock
        self._gate = gate or WriteGate()
        self._portion = BatchSize(answer_seconds=self.answer_seconds)

    async def check(self, *, before_enabling: Callable[[], Awaitable[None]] | None) -> None:
        """Raise OperatorError unless the source is a replica set whose changes are kept, cluster-wide.

        Whether they are is what `$listChangeStreams` says; that modifyChangeStreams answered with ok proves nothing.
        """
        await self.require_set()
        if not self._is_documentdb:
            return
        is_enabled = await self._is_enabled()
        if not is_enabled and before_enabling is not None and self._enables:
            await before_enabling()
            await self._modify_change_streams(enable=True)
            is_enabled = await self._is_enabled()
        if not is_enabled:
            raise not_enabled()

    async def check_kept(self, since: ClusterTime | None) -> ClusterTime:
        """Open a stream at a time, and close it: off and on again ends the history (docs/gateway.md, inferred).

        A stream that is open passes over that, so this one is new each time. MongoDB keeps its oplog.
        """

        async def once() -> ClusterTime:
            until = await self._operation_time()
            if not self._is_documentdb:
                return until
            if not await self._is_enabled():
                raise not_enabled()
            position = Position(cluster_time=since or until, token=None)
            cursor = self._cursor(position, View.SINGLE)
            async with aclosing(cursor.batches()) as batches:
                await anext(batches)
            return until

        return await retrying(once, clock=self._clock)

    async def require_set(self) -> None:
        """Raise OperatorError unless the source is the replica set that its URI names."""
        await require_set(self._hello, self._uri, SIDE)

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
            raise stream_error(error) from error
        except PyMongoError as error:
            raise stream_error(error) from error
        return True

    async def running_writes(self) -> Sequence[str]:
        """Return the writes and open transactions of others (currentOp)."""

        async def once() -> Mapping[str, Any]:
            with translating(SIDE):
                return await self._client.admin.command({"currentOp": 1, "$all": True}, codec_options=RAW)

        rows = (await retrying(once, clock=self._clock))["inprog"]
        return [found for found in map(writing, rows) if found is not None]

    async def now(self) -> ClusterTime:
        """Return the cluster's time (hello.operationTime)."""
        return await retrying(self._operation_time, clock=self._clock)

    async def close_stream(self, *, switches_off: bool) -> bool:
        """Remove the agent's marks and, on DocumentDB, switch the cluster-wide change stream off, and see that it is.

        Without the right to write into the agent's own database there are no marks, or they stay.
        """

        async def once() -> bool:
            with translating(SIDE):
                try:
                    await self._client.drop_database(OWN_DATABASE)
                except OperationFailure as error:
                    if error.code != _UNAUTHORIZED:
                        raise
            if not self._is_documentdb:
                return False
            if switches_off:
                await self._modify_change_streams(enable=False)
            return await self._is_enabled()

        is_enabled = await self._gate.retrying(once, clock=self._clock)
        if switches_off and is_enabled:
            raise OperatorError(
                "the change stream is still on, although it was switched off",
                hint='type in a mongo shell: db.adminCommand({modifyChangeStreams: 1, database: "", collection: "",'
                " enable: false}); then d5agent start clean",
            )
        return is_enabled

    async def _modify_change_streams(self, *, enable: bool) -> None:
        """Switch the cluster-wide change stream ("Enabling change streams", Amazon DocumentDB developer guide)."""
        command = {"modifyChangeStreams": 1, "database": "", "collection": "", "enable": enable}
        with classifying():
            await self._client.admin.command(command)

    async def _operation_time(self) -> ClusterTime:
        time = (await self._hello()).get("operationTime")
        if time is None:
            raise OperatorError("the source tells no operationTime", hint="is it a replica set?")
        return ClusterTime(time.time, time.inc)

    async def _hello(self) -> Mapping[str, Any]:
        with classifying():
            return await self._client.admin.command("hello")

    async def _is_enabled(self) -> bool:
        with classifying():
            cursor = await self._client.admin.aggregate([{"$listChangeStreams": 1}])
            enabled = [dict(found) async for found in cursor]
        return any(found.get("database") == "" and found.get("collection") == "" for found in enabled)

    def _cursor(self, position: Position, view: View) -> StreamCursor:
        return StreamCursor(client=self._client, clock=self._clock, position=position, view=view, portion=self._portion)

    async def _batches(self, position: Position) -> AsyncGenerator[EventBatch]:
        """Yield batches for ever, reopening after what passes: a lost cursor, a cut line, a fail-over."""
        failures = 0
        is_open = False
        view = View.WHOLE
        last: EventBatch | None = None
        while True:
            # Not as each batch goes by: a look at its events takes time in which the server could make the next one.
            position = _after(last) if last is not None else position
            cursor = self._cursor(position, view)
            single = 0
            try:
                async with aclosing(cursor.batches()) as batches:
                    if is_open:
                        # A new cursor's first batch is always empty: no sign that a transaction cut in two is whole.
                        await anext(batches)
                    is_open = True
                    async for batch in batches:
                        yield batch
                        failures = 0
                        last = batch if batch.events or batch.position else last
                        single += 0 if view is View.WHOLE else len(batch.events)
                        if _is_over(view, single):
                            break
                view = View.WHOLE
            except EventTooLargeError:
                # From now on one by one, up to the event that is too large; that one with less in it.
                view = view.narrower()
            except TransientError as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                # Who has waited for an answer has paused already, and asks for less next time.
                pauses = 0 if isinstance(error, UnansweredError) else failures
                await self._clock.sleep(_FIRST_PAUSE_SECONDS * 2**pauses)


def _is_over(view: View, read: int) -> bool:
    """Whether a view has served: one event in a narrow one; one by one, as many as stood in the batch that failed.

    An empty batch says nothing: a server sends one too while it still looks for the next event.
    """
    return read >= (_MOST_SINGLE if view is View.SINGLE else 1)


def _after(batch: EventBatch) -> Position:
    """Return where to reopen after a batch that was handed on: it has events, or a position."""
    if not batch.events and batch.position is not None:
        return batch.position
    last = parse_event(batch.events[-1])
    return Position(cluster_time=last.cluster_time, token=last.token)
