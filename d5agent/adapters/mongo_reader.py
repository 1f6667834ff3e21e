"""The DocumentReader on MongoDB and DocumentDB: raw documents from the primary."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from bson.json_util import RELAXED_JSON_OPTIONS, dumps
from bson.raw_bson import RawBSONDocument

from d5agent.adapters.mongo import RAW, Client, application_databases, close_cursor, translating
from d5agent.adapters.retry import retrying
from d5agent.core.log import raw
from d5agent.core.log.cursor_pages import FoundDocuments, RawPage
from d5agent.core.log.operation import Namespace
from d5agent.core.replay.ttl import NEVER, TtlIndex
from d5agent.errors import OperatorError, TooManyBytesError, TransientError
from d5agent.ports import CollectionFacts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

    from pymongo.asynchronous.client_session import AsyncClientSession

    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.unique_key import Key, UniqueIndex
    from d5agent.ports import Clock

_NAMESPACE_NOT_FOUND: Final = 26
_KEYS: Final = 200  # of a unique index asked for at a time
_SIMPLE: Final = {"locale": "simple"}
_FIRST_PAGE: Final = 100  # documents
_MOST_DOCUMENTS: Final = 10_000
_PAGE_BYTES: Final = 1024 * 1024  # aimed at; the server cuts a page at 16 MiB
_EMPTY_ARRAY: Final = 5  # bytes
_ANSWER_SECONDS: Final = 120  # a page from a cold disk takes a while; a middlebox that forgets a flow answers never
# What servers write into an index specification beside what the index is (documentdb.md, listIndexes).
_NO_PART_OF_AN_INDEX: Final = frozenset({"v", "ns", "name", "background", "textIndexVersion", "2dsphereIndexVersion"})
# What they write into a collection's options beside what its owner asked for (listCollections).
_NO_OPTION: Final = frozenset({"storageEngine", "autoIndexId", "ns", "uuid", "flags", "temp"})
_DEFAULTS: Final[Mapping[str, object]] = {
    "validationLevel": "strict",
    "validationAction": "error",
    "capped": False,
    "validator": {},
}


class MongoReader:
    """Reads documents. `side` is "source" or "target", for errors. A page may take `answer_seconds`."""

    def __init__(self, client: Client, *, side: str, clock: Clock, answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._client = client
        self._side = side
        self._clock = clock
        self._answer_seconds = answer_seconds

    async def collections(self) -> Sequence[Namespace]:
        """Return the applications' collections."""

        async def once() -> list[Namespace]:
            found = []
            for database in await application_databases(self._client, self._side):
                command: dict[str, Any] = {"listCollections": 1, "filter": {"type": "collection"}, "cursor": {}}
                names = [raw.text_named(bytes(row.raw), b"name") for row in await self._documents(database, command)]
                found += [Namespace(database, name) for name in names if not name.startswith("system.")]
            return sorted(found, key=str)

        return await retrying(once, clock=self._clock)

    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        """Return the documents with these `_id`s, by `_id`; TooManyBytesError as soon as that is known."""
        most = most_bytes if most_bytes is not None and len(ids) > 1 else math.inf

        async def once() -> FoundDocuments | None:
            # One more than there can be: the server sees that nothing is left, and closes the cursor by itself.
            which = {"filter": RawBSONDocument(raw.any_of_filter(ids)), "batchSize": len(ids) + 1, "sort": {"_id": 1}}
            found, size = [], 0
            async with aclosing(self._found(namespace, which)) as pages:
                async for page in pages:
                    found.append(page)
                    size += page.size
                    if size > most:
                        return None  # an error's traceback would keep the pages
            return FoundDocuments(found)

        documents = await retrying(once, clock=self._clock)
        if documents is None:
            raise TooManyBytesError("the documents are too large to be read at once", asked_for=len(ids))
        return documents

    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        """Yield a collection in the server's `_id` order. It does not go on after an error: begin it again."""
        async with aclosing(self._found(namespace, {"batchSize": _FIRST_PAGE, "sort": {"_id": 1}})) as pages:
            async for page in pages:
                yield page

    def _found(self, namespace: Namespace, find: dict[str, Any]) -> AsyncGenerator[RawPage]:
        return self._pages(namespace.database, {"find": namespace.collection, **find})

    async def _pages(self, database: str, command: dict[str, Any]) -> AsyncGenerator[RawPage]:
        """Yield what a command's cursor returns, as the replies come; pages of about a megabyte after the first."""
        session = self._client.start_session(causal_consistency=False)  # DocumentDB has none (303)
        name, cursor = "", 0
        try:
            while True:
                reply = await self._command(database, command, session)
                cursor, name, page = _read(reply)
                del reply  # large, and the next one comes while this page is worked on
                if page.size > _EMPTY_ARRAY:
                    yield page
                if not cursor:
                    return
                fitting = _PAGE_BYTES * len(page) // page.size if page.size > _EMPTY_ARRAY else _FIRST_PAGE
                batch_size = max(1, min(_MOST_DOCUMENTS, fitting))
                command = {"getMore": cursor, "collection": name, "batchSize": batch_size}
        finally:
            # Shielded: a cursor left open counts against the cluster's quota.
            await asyncio.shield(close_cursor(session, database, name, cursor))

    async def _documents(self, database: str, command: dict[str, Any]) -> list[RawBSONDocument]:
        """Return all that a command's cursor returns."""
        async with aclosing(self._pages(database, command)) as pages:
            return [RawBSONDocument(document, RAW) async for page in pages for document in page]

    async def _command(
        self, database: str, command: dict[str, Any], session: AsyncClientSession | None = None
    ) -> bytes:
        try:
            with translating(self._side):
                async with asyncio.timeout(self._answer_seconds):
                    client = self._client if session is None else session.client
                    reply = await client[database].command(command, session=session, codec_options=RAW)
        except TimeoutError as error:
            raise TransientError(
                f"the {self._side} does not answer", hint="it is asked again", seconds=self._answer_seconds
            ) from error
        return bytes(reply.raw)

    async def count(self, namespace: Namespace, *, exactly: bool) -> int:
        """Return the number of documents. After a crash the number that is written down may be wrong."""

        async def once() -> int:
            if not exactly:
                reply = await self._command(namespace.database, {"count": namespace.collection})
                return int(RawBSONDocument(reply)["n"])
            count = {"$group": {"_id": None, "n": {"$sum": 1}}}
            command: dict[str, Any] = {"aggregate": namespace.collection, "pipeline": [count], "cursor": {}}
            return sum([int(row["n"]) for row in await self._documents(namespace.database, command)])

        return await retrying(once, clock=self._clock)

    async def facts(self, namespace: Namespace) -> CollectionFacts:
        """Return indexes and options."""

        async def once() -> CollectionFacts:
            command: dict[str, Any] = {"listCollections": 1, "filter": {"name": namespace.collection}, "cursor": {}}
            found = await self._documents(namespace.database, command)
            if not found:
                return CollectionFacts(indexes={}, options={}, exists=False)
            indexes, options = await self._indexes(namespace), found[0].get("options", {})
            return CollectionFacts(
                indexes={index["name"]: _normalised(index) for index in indexes if index["name"] != "_id_"},
                options=_options(options),
                ttl=tuple(_ttl_indexes(namespace, found[0], indexes)),
            )

        return await retrying(once, clock=self._clock)

    async def holders(self, namespace: Namespace, index: UniqueIndex, keys: Sequence[Key]) -> Sequence[bytes]:
        """Return the documents that hold one of these keys; the index's own filter lets the server use it."""

        async def once() -> list[bytes]:
            found: list[bytes] = []
            for at in range(0, len(keys), _KEYS):
                equal = [_equalities(index, key) for key in keys[at : at + _KEYS]]
                which = {"$and": [{"$or": equal}, *_is_in(index)]}
                # Said aloud: without it the collection's own collation counts, which the index may not have.
                collation = index.collation or _SIMPLE
                find = {"filter": which, "projection": dict.fromkeys(index.fields, 1), "collation": collation}
                async with aclosing(self._found(namespace, find)) as pages:
                    found += [document async for page in pages for document in page]
            return found

        return await retrying(once, clock=self._clock)

    async def _indexes(self, namespace: Namespace) -> Sequence[Mapping[str, Any]]:
        try:
            return await self._documents(namespace.database, {"listIndexes": namespace.collection, "cursor": {}})
        except OperatorError as error:
            if error.facts.get("code") == _NAMESPACE_NOT_FOUND:
                return ()
            raise


def _read(reply: bytes) -> tuple[int, str, RawPage]:
    """Return a reply's cursor id (0: it has ended), its collection, and its documents, which are not looked at."""
    cursor = raw.spans(reply, raw.spans(reply)[b"cursor"][1])
    _, start, end = cursor.get(b"nextBatch") or cursor[b"firstBatch"]
    _, collection = raw.text_at(reply, cursor[b"ns"]).split(".", maxsplit=1)  # no database has a dot
    return raw.int64_at(reply, cursor[b"id"]), collection, RawPage(reply[start:end])


def _is_in(index: UniqueIndex) -> list[Mapping[str, Any]]:
    """Return filters that only documents of the index meet: to a query, an absent field is null, and not only there."""
    partial = [index.partial] if index.partial else []
    return [*partial, {"$or": [{field: {"$exists": True}} for field in index.fields]}] if index.is_sparse else partial


def _equalities(index: UniqueIndex, key: Key) -> RawBSONDocument:
    return RawBSONDocument(raw.equality_filter(dict(zip(index.fields, key, strict=True))))


def _normalised(index: Mapping[str, Any]) -> str:
    """Return what an index is, the same text for the same index on every server; the key keeps its order."""
    plain = _plain(index)
    key = json.dumps(plain.pop("key"))
    rest = {name: value for name, value in sorted(plain.items()) if name not in _NO_PART_OF_AN_INDEX}
    return key if not rest else f"{key} {json.dumps(rest, sort_keys=True)}"


def _ttl_indexes(
    namespace: Namespace, collection: Mapping[str, Any], indexes: Sequence[Mapping[str, Any]]
) -> Iterator[TtlIndex]:
    """Yield what deletes documents by their age: indexes, and the expiry of a clustered collection."""
    id_ = collection.get("info", {}).get("uuid")
    collection_id = bytes(id_).hex() if isinstance(id_, bytes) else ""
    options = collection.get("options", {})
    # One without an expiry is as one that is held.
    never = {"expireAfterSeconds": NEVER, "name": "", "key": {"_id": 1}}
    clustered = [{**never, **options}] if "clusteredIndex" in options else []
    for index in (*indexes, *clustered):
        seconds = index.get("expireAfterSeconds")
        if isinstance(seconds, int | float):
            yield TtlIndex(
                namespace=namespace,
                name=index["name"],
                field=next(iter(index["key"])),
                seconds=seconds,
                collection_id=collection_id,
                is_partial="partialFilterExpression" in index,
            )


def _options(options: Mapping[str, Any]) -> dict[str, str]:
    """Return a collection's options by name, as texts; what is as it would be anyway is as good as absent."""
    return {
        name: json.dumps(value, sort_keys=True)
        for name, value in _plain(options).items()
        if name not in _NO_OPTION and value != _DEFAULTS.get(name)
    }


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values: a key of 1 and one of 1.0 are the same index, and shells write either."""
    text = dumps(value, json_options=RELAXED_JSON_OPTIONS)
    plain: dict[str, Any] = json.loads(text, parse_float=_whole_if_it_is)
    return plain


def _whole_if_it_is(text: str) -> float:
    return int(float(text)) if float(text).is_integer() else float(text)
