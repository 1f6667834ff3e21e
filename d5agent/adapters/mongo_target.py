"""The Target on MongoDB: every call is acknowledged by a majority, journaled, and safe to repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bson.json_util import dumps
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteOne, InsertOne, ReplaceOne, WriteConcern
from pymongo.errors import BulkWriteError, CollectionInvalid, OperationFailure

from d5agent.adapters.mongo import Client, translating
from d5agent.adapters.retry import retrying
from d5agent.core.raw import id_document
from d5agent.core.replay import Failure
from d5agent.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.core.operation import Namespace
    from d5agent.core.replay import Barrier, Write, WriteBatch
    from d5agent.ports import Clock

_SIDE: Final = "target"
_DURABLE: Final = WriteConcern("majority", j=True, wtimeout=30_000)
_DUPLICATE_KEY: Final = 11000
_NAMESPACE_NOT_FOUND: Final = 26
_SHOWN: Final = 300  # characters of a server's message
_Request = InsertOne[RawBSONDocument] | ReplaceOne[RawBSONDocument] | DeleteOne


class MongoTarget:
    """Writes documents as raw bytes."""

    def __init__(self, client: Client, *, clock: Clock) -> None:
        self._client = client
        self._clock = clock

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

        await retrying(once, clock=self._clock)

    async def create_collection(self, namespace: Namespace) -> None:
        """Make an empty collection, unless it is there."""

        async def once() -> None:
            with translating(_SIDE):
                try:
                    await self._client[namespace.database].create_collection(namespace.collection or "")
                except CollectionInvalid:
                    return  # it is there

        await retrying(once, clock=self._clock)

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
        collection = self._client[namespace.database].get_collection(namespace.collection or "", write_concern=_DURABLE)
        requests = [_request(write, may_insert=may_insert) for write in writes]

        async def once() -> list[Mapping[str, Any]]:
            with translating(_SIDE):
                try:
                    await collection.bulk_write(requests, ordered=False)
                except BulkWriteError as error:
                    return _write_errors(error)
            return []

        return [_failure(namespace, writes[error["index"]], error) for error in await retrying(once, clock=self._clock)]


def _request(write: Write, *, may_insert: bool) -> _Request:
    which = RawBSONDocument(id_document(write.id))
    if write.document is None:
        return DeleteOne(which)
    document = RawBSONDocument(write.document)
    if write.is_new and may_insert:
        return InsertOne(document)
    return ReplaceOne(which, document, upsert=True)


def _write_errors(error: BulkWriteError) -> list[Mapping[str, Any]]:
    """Return the errors of single writes; TransientError when the others are not acknowledged by a majority."""
    details: Mapping[str, Any] = error.details or {}
    unacknowledged = details.get("writeConcernErrors")
    if unacknowledged:
        raise TransientError("writes are not acknowledged by a majority", reason=unacknowledged[0].get("errmsg", "?"))
    found: list[Mapping[str, Any]] = details.get("writeErrors", [])
    return found


def _failure(namespace: Namespace, write: Write, error: Mapping[str, Any]) -> Failure:
    is_conflict = error.get("code") == _DUPLICATE_KEY
    message = str(error.get("errmsg", "?"))
    index = message.split(" index: ")[1].split(" ", maxsplit=1)[0] if is_conflict and " index: " in message else ""
    held = dumps(error["keyValue"]) if is_conflict and "keyValue" in error else message
    reason = f"the unique index {index} holds {held} for another document" if is_conflict else message
    return Failure(namespace=namespace, write=write, reason=reason[:_SHOWN], is_conflict=is_conflict, index=index)
