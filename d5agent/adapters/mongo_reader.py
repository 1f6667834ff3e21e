"""The DocumentReader on MongoDB and DocumentDB: raw documents from the primary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from bson.json_util import CANONICAL_JSON_OPTIONS, dumps
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from d5agent.adapters.mongo import SYSTEM_DATABASES, Client, translating
from d5agent.adapters.retry import retrying
from d5agent.core.operation import OWN_DATABASE, Namespace
from d5agent.core.raw import DocumentId, any_of_filter, document_id, split_documents
from d5agent.ports import CollectionFacts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from pymongo.asynchronous.collection import AsyncCollection

    from d5agent.ports import Clock

_NAMESPACE_NOT_FOUND: Final = 26
_PAGE: Final = 1000  # documents in a page; the server cuts it at 16 MiB
# What servers write into an index specification beside what the index is (documentdb.md, listIndexes).
_NO_PART_OF_AN_INDEX: Final = frozenset({"v", "ns", "name", "background", "textIndexVersion", "2dsphereIndexVersion"})


class MongoReader:
    """Reads documents. `side` is "source" or "target", for errors."""

    def __init__(self, client: Client, *, side: str, clock: Clock) -> None:
        self._client = client
        self._side = side
        self._clock = clock

    async def collections(self) -> Sequence[Namespace]:
        """Return the applications' collections."""

        async def once() -> list[Namespace]:
            found = []
            with translating(self._side):
                for database in await self._client.list_database_names():
                    if database in SYSTEM_DATABASES or database == OWN_DATABASE:
                        continue
                    names = await self._client[database].list_collection_names(filter={"type": "collection"})
                    found += [Namespace(database, name) for name in names if not name.startswith("system.")]
            return sorted(found, key=str)

        return await retrying(once, clock=self._clock)

    async def fetch(self, namespace: Namespace, ids: Sequence[DocumentId]) -> Mapping[DocumentId, bytes]:
        """Return the documents with these `_id`s, by `_id`."""

        async def once() -> dict[DocumentId, bytes]:
            found = {}
            with translating(self._side):
                pages = self._collection(namespace).find_raw_batches(RawBSONDocument(any_of_filter(ids)))
                async for page in pages:
                    found.update({document_id(document): document for document in split_documents(_bytes(page))})
            return found

        return await retrying(once, clock=self._clock)

    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        """Yield a collection in the server's `_id` order. It does not go on after an error: begin it again."""
        with translating(self._side):
            pages = self._collection(namespace).find_raw_batches({}, sort=[("_id", 1)], batch_size=_PAGE)
            try:
                async for page in pages:
                    yield list(split_documents(_bytes(page)))
            finally:
                await pages.close()

    async def facts(self, namespace: Namespace) -> CollectionFacts:
        """Return count and indexes."""

        async def once() -> CollectionFacts:
            with translating(self._side):
                count = await self._collection(namespace).count_documents({})
                indexes = await self._indexes(namespace)
            return CollectionFacts(count=count, indexes=indexes)

        return await retrying(once, clock=self._clock)

    async def _indexes(self, namespace: Namespace) -> dict[str, str]:
        try:
            found = [dict(index) async for index in await self._collection(namespace).list_indexes()]
        except OperationFailure as error:
            if error.code == _NAMESPACE_NOT_FOUND:
                return {}
            raise
        return {index["name"]: _normalised(index) for index in found if index["name"] != "_id_"}

    def _collection(self, namespace: Namespace) -> AsyncCollection[RawBSONDocument]:
        return self._client[namespace.database][namespace.collection or ""]


def _normalised(index: Mapping[str, Any]) -> str:
    """Return what an index is, the same text for the same index on every server; the key keeps its order."""
    plain = json.loads(dumps(index, json_options=CANONICAL_JSON_OPTIONS))
    key = json.dumps(plain.pop("key"))
    rest = {name: value for name, value in sorted(plain.items()) if name not in _NO_PART_OF_AN_INDEX and value}
    return key if not rest else f"{key} {json.dumps(rest, sort_keys=True)}"


def _bytes(page: object) -> bytes:
    """Return a raw batch as what it is; the driver declares it as a document."""
    return bytes(cast("bytes", page))
