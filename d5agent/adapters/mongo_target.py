"""The Target on MongoDB: every call is acknowledged by a majority, journaled, and safe to repeat."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from bson.codec_options import CodecOptions, DatetimeConversion
from bson.json_util import dumps
from bson.raw_bson import RawBSONDocument
from pymongo import WriteConcern
from pymongo.errors import CollectionInvalid, OperationFailure

from d5agent.adapters.fence import Fence
from d5agent.adapters.mongo import Client, translating
from d5agent.core.raw import id_document
from d5agent.core.replay import Failure
from d5agent.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from d5agent.core.operation import Namespace
    from d5agent.core.replay import Barrier, Write, WriteBatch
    from d5agent.ports import Clock

_SIDE: Final = "target"
_DURABLE: Final = WriteConcern("majority", j=True, wtimeout=30_000)
_DUPLICATE_KEY: Final = 11000
_NAMESPACE_NOT_FOUND: Final = 26
_SHOWN: Final = 300  # characters of a server's message
_BATCH_WRITES: Final = 1000
_BATCH_BYTES: Final = 4 * 1024 * 1024  # a command is one BSON document: 16 MiB at most
_STATEMENT_BYTES: Final = 64
_STATEMENTS: Final = {"delete": "deletes", "insert": "documents", "update": "updates"}
# The server puts the current time in the place of a top-level Timestamp(0, 0), on insert and on replacement ("BSON
# types", MongoDB manual), but not in what a pipeline computes. A hit elsewhere in the document does no harm.
_ZERO_TIMESTAMP: Final = re.compile(rb"\x11[^\0]*\0{9}")
# An error may quote an _id that is a date of the year 40000.
_LENIENT: Final[CodecOptions[dict[str, Any]]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)


class MongoTarget:
    """Writes documents as raw bytes."""

    def __init__(self, client: Client, *, clock: Clock, fence: Fence | None = None) -> None:
        self._client = client
        self._clock = clock
        self._fence = fence or Fence()

    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        """Make each document what the batch says.

        What began with an insert is tried as one, which is cheapest, a replacement where the `_id` is taken.
        """
        failures = await self._write(batch.namespace, batch.writes, may_insert=True)
        taken = [failure.write for failure in failures if failure.index == "_id_"]
        others = [failure for failure in failures if failure.index != "_id_"]
        if taken:
            others += await self._write(batch.namespace, taken, may_insert=False)
        return others

    async def apply(self, barrier: Barrier) -> None:
        """Apply a drop, a rename (onto whatever has the new name) or a dropDatabase."""

        async def once() -> None:
            with translating(_SIDE):
                await self._apply(barrier)

        await self._fence.retrying(once, clock=self._clock)

    async def create_collection(self, namespace: Namespace) -> None:
        """Make an empty collection, unless it is there."""

        async def once() -> None:
            with translating(_SIDE):
                try:
                    await self._client[namespace.database].create_collection(namespace.collection or "")
                except CollectionInvalid:
                    return  # it is there

        await self._fence.retrying(once, clock=self._clock)

    async def _apply(self, barrier: Barrier) -> None:
        namespace = barrier.namespace
        database = self._client.get_database(namespace.database, write_concern=_DURABLE)
        if barrier.kind == "dropDatabase":
            await self._client.drop_database(database.name)
        elif barrier.rename_to is None:
            await database.drop_collection(namespace.collection or "")
        else:
            command = {
                "renameCollection": str(namespace),
                "to": str(barrier.rename_to),
                "dropTarget": True,
                "writeConcern": _DURABLE.document,
            }
            try:
                await self._client.admin.command(command)
            except OperationFailure as error:
                # Renamed already, before a crash; or never there, since DocumentDB tells of no empty collection.
                if error.code != _NAMESPACE_NOT_FOUND:
                    raise

    async def _write(self, namespace: Namespace, writes: Sequence[Write], *, may_insert: bool) -> list[Failure]:
        """Send deletes, inserts and replacements as plain commands: the driver's bulk writes decode each document."""
        kinds: dict[str, list[Write]] = {"delete": [], "insert": [], "update": []}
        for write in writes:
            is_insert = write.is_new and may_insert and not _ZERO_TIMESTAMP.search(write.document or b"")
            kinds["delete" if write.document is None else "insert" if is_insert else "update"].append(write)
        failures = []
        for kind, some in kinds.items():
            for batch in _batches(some):
                failures += await self._send(kind, namespace, batch)
        return failures

    async def _send(self, kind: str, namespace: Namespace, writes: Sequence[Write]) -> list[Failure]:
        command = {
            kind: namespace.collection,
            _STATEMENTS[kind]: [_statement(kind, write) for write in writes],
            "ordered": False,
            "writeConcern": _DURABLE.document,
        }

        async def once() -> list[Mapping[str, Any]]:
            with translating(_SIDE):
                answer = await self._client[namespace.database].command(command, codec_options=_LENIENT)
            unacknowledged = answer.get("writeConcernError")
            if unacknowledged:
                reason = unacknowledged.get("errmsg", "?")
                raise TransientError("writes are not acknowledged by a majority", reason=reason)
            errors: list[Mapping[str, Any]] = answer.get("writeErrors", [])
            return errors

        errors = await self._fence.retrying(once, clock=self._clock)
        return [_failure(namespace, writes[error["index"]], error) for error in errors]


def _statement(kind: str, write: Write) -> RawBSONDocument | dict[str, Any]:
    which = RawBSONDocument(id_document(write.id))
    if write.document is None:
        return {"q": which, "limit": 1}
    document = RawBSONDocument(write.document)
    if kind == "insert":
        return document
    literally = _ZERO_TIMESTAMP.search(write.document) is not None
    return {"q": which, "u": [{"$replaceWith": {"$literal": document}}] if literally else document, "upsert": True}


def _batches(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """Yield writes in portions that fit into one command; a document of 16 MB is a command of its own."""
    batch: list[Write] = []
    size = 0
    for write in writes:
        bytes_ = len(write.document or b"") + len(write.id) + _STATEMENT_BYTES
        if batch and (len(batch) == _BATCH_WRITES or size + bytes_ > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += bytes_
    if batch:
        yield batch


def _failure(namespace: Namespace, write: Write, error: Mapping[str, Any]) -> Failure:
    is_conflict = error.get("code") == _DUPLICATE_KEY
    message = str(error.get("errmsg", "?"))
    index = message.split(" index: ")[1].split(" ", maxsplit=1)[0] if is_conflict and " index: " in message else ""
    held = dumps(error["keyValue"]) if is_conflict and "keyValue" in error else message
    reason = f"the unique index {index} holds {held} for another document" if is_conflict else message
    return Failure(namespace=namespace, write=write, reason=reason[:_SHOWN], is_conflict=is_conflict, index=index)
