"""What the gateway's tests share: a gateway before a real mongod, and a raw change-stream reader."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from d5agent.drill.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from bson.timestamp import Timestamp

    from d5agent.drill.servers import ReplicaSet

Client = AsyncMongoClient[dict[str, Any]]
RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


def fresh_name() -> str:
    """Give a database name that no other test uses."""
    return f"gateway_{ObjectId()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """A gateway, a client through it, and a client around it."""

    gateway: Gateway
    client: Client
    direct: Client
    server: ReplicaSet

    @property
    def uri(self) -> str:
        return f"mongodb://{self.gateway.address}/?replicaSet=rs0&retryWrites=false"

    async def enable(self, database: str = "", collection: str = "", *, on: bool = True) -> None:
        command = {"modifyChangeStreams": 1, "database": database, "collection": collection}
        await self.client.admin.command({**command, "enable": on})

    async def now(self) -> Timestamp:
        time: Timestamp = (await self.client.admin.command("hello"))["operationTime"]
        return time

    async def fault(self, action: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - a command's
        """Ask for a fault on a line of its own: it works while there is no primary, too."""
        async with connected(f"mongodb://{self.gateway.address}/?directConnection=true") as line:
            return await line.admin.command({"d5Gateway": 1, "action": action, **fields})


@asynccontextmanager
async def connected(uri: str, **options: Any) -> AsyncIterator[Client]:  # noqa: ANN401 - a client's
    client: Client = AsyncMongoClient(uri, serverSelectionTimeoutMS=20_000, **options)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def rig_before(server: ReplicaSet, **options: Any) -> AsyncIterator[Rig]:  # noqa: ANN401 - Gateway's
    """Start a gateway before a server, with clients on both sides; stop all of it."""
    gateway = Gateway(server.members[0].address, **options)
    await gateway.start()
    uri = f"mongodb://{gateway.address}/?replicaSet=rs0&retryWrites=false"
    try:
        async with connected(uri) as client, connected(server.uri) as direct:
            yield Rig(gateway=gateway, client=client, direct=direct, server=server)
    finally:
        await gateway.stop()


@dataclass(frozen=True, slots=True)
class Batch:
    """What one round trip brought."""

    events: list[RawBSONDocument]
    token: dict[str, str] | None


class Tail:
    """A change stream read by raw getMore, as the agent reads it."""

    def __init__(self, client: Client, *, over: tuple[str, str] = ("", ""), size: int = 0) -> None:
        database, collection = over
        self._database = client[database or "admin"]
        self._collection = collection
        self._cluster = {} if database else {"allChangesForCluster": True}
        self._size = {"batchSize": size} if size else {}
        self._name = collection or "$cmd.aggregate"
        self._session = client.start_session(causal_consistency=False)
        self.cursor = 0

    async def open(self, *stages: dict[str, Any], **options: Any) -> Batch:  # noqa: ANN401 - a command's
        pipeline = [{"$changeStream": {**self._cluster, **options}}, *stages]
        command = {
            "aggregate": self._collection or 1,
            "pipeline": pipeline,
            "cursor": self._size,
        }
        return await self._run(command, "firstBatch")

    async def more(self, *, wait_ms: int = 2_000) -> Batch:
        command = {
            "getMore": self.cursor,
            "collection": self._name,
            "maxTimeMS": wait_ms,
            **self._size,
        }
        return await self._run(command, "nextBatch")

    async def close(self) -> None:
        if self.cursor:
            command = {"killCursors": self._name, "cursors": [self.cursor]}
            await self._database.command(command, session=self._session)
        await self._session.end_session()

    async def _run(self, command: dict[str, Any], batch: str) -> Batch:
        reply = await self._database.command(command, codec_options=RAW, session=self._session)
        cursor = reply["cursor"]
        self.cursor = cursor["id"]
        token = cursor.get("postBatchResumeToken")
        return Batch(list(cursor[batch]), dict(token) if token is not None else None)


async def read_to(
    client: Client,
    fence: ObjectId,
    *stages: dict[str, Any],
    over: tuple[str, str] = ("", ""),
    size: int = 0,
    **options: Any,  # noqa: ANN401 - $changeStream's own
) -> list[Batch]:
    """Read every batch up to the one that holds the fence's event, and no event after it."""
    tail = Tail(client, over=over, size=size)
    batches = [await tail.open(*stages, **options)]
    try:
        while not any(_is_fence(event, fence) for event in batches[-1].events):
            batches.append(await tail.more())
    finally:
        await tail.close()
    return batches


def _is_fence(event: RawBSONDocument, fence: ObjectId) -> bool:
    key = event.get("documentKey")
    return key is not None and key["_id"] == fence


def events_of(batches: list[Batch]) -> list[RawBSONDocument]:
    return [event for batch in batches for event in batch.events]


async def fence_in(client: Client, database: str, collection: str = "fence") -> ObjectId:
    fence = ObjectId()
    await client[database][collection].insert_one({"_id": fence})
    return fence


async def refused(attempt: Awaitable[object]) -> tuple[int | None, str]:
    """Return code and text of the error that the attempt must end in."""
    with pytest.raises(OperationFailure) as caught:
        await attempt
    details = caught.value.details or {}
    return caught.value.code, str(details.get("errmsg"))
