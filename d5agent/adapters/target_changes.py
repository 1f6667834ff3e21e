"""The target's own change stream, cluster-wide and without documents: which ones were written, by whomever."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

from bson.raw_bson import RawBSONDocument
from pymongo import WriteConcern
from pymongo.errors import OperationFailure

from d5agent.adapters.mongo import RAW, Client, close_cursor, translating
from d5agent.adapters.retry import ATTEMPTS, retrying
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.log import raw
from d5agent.core.log.operation import OWN_DATABASE, parse_event
from d5agent.errors import OperatorError, TransientError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from pymongo.asynchronous.client_session import AsyncClientSession

    from d5agent.core.log.operation import Operation
    from d5agent.ports import Clock

_SIDE: Final = "target"
_MARKS: Final = "marks"
_DURABLE: Final = WriteConcern("majority", j=True, wtimeout=30_000)
_NAMESPACE_NOT_FOUND: Final = 26
# No look-ups, and no documents: an event is about 300 bytes, and never too large to be sent.
_FIELDS: Final = {"operationType": 1, "clusterTime": 1, "ns": 1, "to": 1, "documentKey": 1}
_MOST_EVENTS: Final = 10_000
_AWAIT_MS: Final = 200
_ANSWER_SECONDS: Final = 120  # from an old position the server looks through all of its log after it
_FIRST_PAUSE_SECONDS: Final = 0.2


class MongoTargetChanges:
    """Reads the stream of a MongoDB replica set or cluster ("Change Streams", MongoDB manual)."""

    def __init__(self, client: Client, *, clock: Clock, gate: WriteGate | None = None) -> None:
        self._client = client
        self._clock = clock
        self._gate = gate or WriteGate()

    async def position(self) -> bytes:
        """Return the token of this moment: the one that a stream opened now begins with."""

        async def once() -> bytes:
            async with aclosing(self._replies(None)) as replies:
                async for _, token in replies:
                    if token is not None:
                        return token
            raise OperatorError("the target's change stream tells no position", hint="MongoDB tells it from 4.0.7 on")

        return await retrying(once, clock=self._clock)

    async def after(self, position: bytes) -> AsyncGenerator[Sequence[Operation]]:
        """Yield batches, reopening after what passes: a lost cursor, a cut line, a fail-over."""
        failures = 0
        while True:
            try:
                async with aclosing(self._replies(position)) as replies:
                    async for events, token in replies:
                        operations = [parse_event(event) for event in events]
                        yield operations
                        failures = 0
                        position = operations[-1].token if operations else token or position
            except TransientError:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                await self._clock.sleep(_FIRST_PAUSE_SECONDS * 2**failures)

    async def mark(self, mark_id: str) -> None:
        """Write a mark, and remove the ones before it; made again, it changes nothing."""
        concern = {"writeConcern": _DURABLE.document}

        async def once() -> None:
            await self._own({"delete": _MARKS, "deletes": [{"q": {"_id": {"$ne": mark_id}}, "limit": 0}], **concern})
            one = {"q": {"_id": mark_id}, "u": {"_id": mark_id}, "upsert": True}
            await self._own({"update": _MARKS, "updates": [one], **concern})

        await self._write(once)

    async def remove_marks(self) -> None:
        """Drop the collection of marks; the agent's database goes with it unless somebody keeps more there."""

        async def once() -> None:
            with suppress(_NothingThereError):
                await self._own({"drop": _MARKS, "writeConcern": _DURABLE.document})

        await self._write(once)

    async def _write(self, once: Callable[[], Awaitable[None]]) -> None:
        async def answered() -> None:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await once()
            except TimeoutError as error:
                raise _no_answer() from error

        await self._gate.retrying(answered, clock=self._clock)

    async def _own(self, command: dict[str, Any]) -> None:
        with translating(_SIDE):
            try:
                await self._client[OWN_DATABASE].command(command)
            except OperationFailure as error:
                if error.code == _NAMESPACE_NOT_FOUND:
                    raise _NothingThereError from error
                raise

    async def _replies(self, position: bytes | None) -> AsyncGenerator[tuple[list[bytes], bytes | None]]:
        """Open a cursor and yield its replies: raw events, and the token after them. The first one has no events."""
        stream: dict[str, Any] = {"allChangesForCluster": True}
        if position is not None:
            stream["resumeAfter"] = RawBSONDocument(position)
        pipeline = [{"$changeStream": stream}, {"$project": _FIELDS}]
        command: dict[str, Any] = {"aggregate": 1, "pipeline": pipeline, "cursor": {"batchSize": 0}}
        session = self._client.start_session(causal_consistency=False)
        cursor = 0
        try:
            while True:
                cursor, events, token = _read(await self._command(command, session))
                yield events, token
                command = {"getMore": cursor, "collection": "$cmd.aggregate", "maxTimeMS": _AWAIT_MS}
                command["batchSize"] = _MOST_EVENTS
        finally:
            await asyncio.shield(close_cursor(session, "admin", "$cmd.aggregate", cursor))

    async def _command(self, command: dict[str, Any], session: AsyncClientSession) -> bytes:
        try:
            with translating(_SIDE):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    reply = await self._client.admin.command(command, session=session, codec_options=RAW)
        except TimeoutError as error:
            raise _no_answer() from error
        return bytes(reply.raw)


class _NothingThereError(Exception):
    """The collection of marks is gone already."""


def _no_answer() -> TransientError:
    return TransientError("the target does not answer", hint="it is asked again", seconds=_ANSWER_SECONDS)


def _read(reply: bytes) -> tuple[int, list[bytes], bytes | None]:
    """Return a reply's cursor id, its events, and the token after them."""
    cursor = raw.spans(reply, raw.spans(reply)[b"cursor"][1])
    token = cursor.get(b"postBatchResumeToken")
    _, start, _ = cursor.get(b"nextBatch") or cursor[b"firstBatch"]
    position = None if token is None else reply[token[1] : token[2]]
    return raw.int64_at(reply, cursor[b"id"]), raw.documents_of(reply, start), position
