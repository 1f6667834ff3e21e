"""Both sides of a restore in memory: what reads documents, and what writes them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from bson import decode, encode
from typing_extensions import override

from d5agent.core.log.operation import OWN_DATABASE, ClusterTime, Namespace, Operation
from d5agent.core.log.raw import document_id
from d5agent.core.replay.pace import Tickets
from d5agent.core.replay.replay import Failure
from d5agent.core.replay.specification import Specification
from d5agent.core.replay.ttl import NEVER, TtlIndex
from d5agent.core.replay.unique_key import comparable, keys_of
from d5agent.errors import OperatorError, TooManyBytesError
from d5agent.ports import CollectionFacts
from tests.fakes.documents import FakeDatabase, raw_document, raw_id
from tests.fakes.indexes import identity, index_of, vars_of

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Barrier, Write, WriteBatch
    from d5agent.core.replay.unique_key import Key, UniqueIndex
    from d5agent.errors import AgentError
    from tests.fakes.cluster import FakeCluster

_PAGE: Final = 3
_MOST_CLUSTERED: Final = 1_700_000_000  # seconds: a server refuses what leads to before 1970


class FakeReader:
    """Reads a FakeCluster's documents, as they are at the moment of the call."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    @property
    def database(self) -> FakeDatabase:
        return self._cluster.database

    async def collections(self) -> Sequence[Namespace]:
        await asyncio.sleep(0)
        return sorted((n for n in self.database.collections if n.database != OWN_DATABASE), key=str)

    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        await asyncio.sleep(0)
        found = (self.database.find(namespace, id_) for id_ in ids)
        documents = {document_id(document): document for document in found if document is not None}
        if most_bytes is not None and len(ids) > 1 and sum(map(len, documents.values())) > most_bytes:
            raise TooManyBytesError("too large")
        return documents

    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        documents = [document for _, document in sorted(self.database.collections.get(namespace, {}).items())]
        for at in range(0, len(documents), _PAGE):
            await asyncio.sleep(0)
            yield documents[at : at + _PAGE]

    async def count(self, namespace: Namespace, *, exactly: bool) -> int:
        await asyncio.sleep(0)
        del exactly
        return len(self.database.collections.get(namespace, {}))

    async def facts(self, namespace: Namespace) -> CollectionFacts:
        await asyncio.sleep(0)
        indexes = {index.name: index.specification for index in self.database.unique.get(namespace, frozenset())}
        options = dict(self.database.options.get(namespace, {}))
        for ttl in self.database.ttl.get(namespace, ()):
            if ttl.name:
                indexes[ttl.name] = f'{{"{ttl.field}": 1}} {{"expireAfterSeconds": {ttl.seconds}}}'
            elif ttl.seconds != NEVER:
                options["expireAfterSeconds"] = str(ttl.seconds)
        if namespace in self.database.capped:
            options["capped"] = "true"
        exists = namespace in self.database.collections
        return CollectionFacts(
            indexes=indexes, options=options, exists=exists, ttl=self.database.ttl.get(namespace, ())
        )

    async def holders(self, namespace: Namespace, index: UniqueIndex, keys: Sequence[Key]) -> Sequence[bytes]:
        await asyncio.sleep(0)
        wanted = {comparable(index, key) for key in keys}
        documents = self.database.collections.get(namespace, {}).values()
        return [d for d in documents if wanted & {comparable(index, key) for key in keys_of(index, d)}]


class FakeTarget(FakeReader):
    """A database to write into, with unique indexes; it can be read as well.

    `shuffle` gives the order of a batch's writes. `before_each` is called before each single write: what it raises
    leaves a batch half done, as a crash does. `is_valid`: what a validator of the collection says of a document.
    """

    def __init__(
        self,
        database: FakeDatabase | None = None,
        *,
        shuffle: random.Random | None = None,
        before_each: Callable[[], None] = lambda: None,
        is_valid: Callable[[bytes], bool] = lambda _: True,
    ) -> None:
        self._database = database or FakeDatabase()
        self._shuffle = shuffle
        self.before_each = before_each
        self.is_valid = is_valid
        self.free: Tickets | None = Tickets(free=128, total=128)

    @property
    @override
    def database(self) -> FakeDatabase:
        return self._database

    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        writes = list(batch.writes)
        if self._shuffle is not None:
            self._shuffle.shuffle(writes)
        failures = []
        for write in writes:
            await asyncio.sleep(0)
            self.before_each()
            failures += self._write(batch.namespace, write)
        return failures

    async def exchange(self, namespace: Namespace, write: Write, *, expected: bytes | None) -> str:
        await asyncio.sleep(0)
        self.before_each()
        found = self._database.find(namespace, write.id)
        if found == write.document:
            return ""
        if found != expected:
            return "it was changed in the target"
        failures = self._write(namespace, write)
        return failures[0].reason if failures else ""

    async def apply(self, barrier: Barrier) -> None:
        await asyncio.sleep(0)
        self.before_each()
        if barrier.kind == "dropDatabase":
            self._database.drop_database(barrier.namespace.database)
        elif barrier.rename_to is None:
            self._database.drop(barrier.namespace)
        else:
            self._database.rename(barrier.namespace, barrier.rename_to)

    async def specifications(self) -> Mapping[Namespace, Specification]:
        await asyncio.sleep(0)
        database = self._database
        return {
            namespace: Specification(
                options=encode(database.options.get(namespace, {}) | _clustered_options(database, namespace)),
                indexes=(
                    *(encode(vars_of(index)) for index in sorted(database.unique.get(namespace, ()), key=str)),
                    *(
                        encode({"key": {index.field: 1}, "name": index.name, "expireAfterSeconds": index.seconds})
                        for index in database.ttl.get(namespace, ())
                        if index.name
                    ),
                ),
            )
            for namespace in database.collections
            if namespace.database != OWN_DATABASE
            and any(namespace in those for those in (database.unique, database.options, database.ttl))
        }

    async def build(self, namespace: Namespace, specification: Specification) -> Sequence[str]:
        await asyncio.sleep(0)
        self.before_each()
        database = self._database
        options = decode(specification.options)
        refused = self._make_clustered(namespace, options) if options.pop("clusteredIndex", None) else []
        if refused:
            return refused
        documents = database.collections.setdefault(namespace, {}).values()
        database.options[namespace] = {**database.options.get(namespace, {}), **options}
        for found in map(decode, specification.indexes):
            if "expireAfterSeconds" in found:
                refused += self._build_ttl(namespace, found)
                continue
            index = index_of(found)
            keys = [key for document in documents for key in index.keys(document)]
            if len(keys) > len(set(keys)):
                refused.append(f"index {index.name}: two documents have one value")
                continue
            database.unique[namespace] = database.unique.get(namespace, frozenset()) | {index}
        return refused

    def _make_clustered(self, namespace: Namespace, options: dict[str, Any]) -> list[str]:
        """Make a clustered collection: nothing can make another one clustered, nor give it a large expiry."""
        database, limit = self._database, options.pop("expireAfterSeconds", None)
        seconds = NEVER if limit is None else limit
        there = [index for index in database.ttl.get(namespace, ()) if not index.name]
        if there or namespace in database.collections:
            is_so = any(index.seconds == seconds for index in there)
            return [] if is_so else ["options that only a new collection can have: clusteredIndex, expireAfterSeconds"]
        if limit is not None and limit > _MOST_CLUSTERED:
            return ["options: TTL index 'expireAfterSeconds' option must be within an acceptable range"]
        self._add_ttl(namespace, {"name": "", "key": {"_id": 1}, "expireAfterSeconds": seconds})
        return []

    def _build_ttl(self, namespace: Namespace, found: Mapping[str, Any]) -> list[str]:
        there = [i.seconds for i in self._database.ttl.get(namespace, ()) if i.name == found["name"]]
        if there and there != [found["expireAfterSeconds"]]:
            return [f"index {found['name']}: an equivalent index already exists with different options"]
        if not there:
            self._add_ttl(namespace, found)
        return []

    def _add_ttl(self, namespace: Namespace, found: Mapping[str, Any]) -> None:
        others = self._database.ttl.get(namespace, ())
        index = TtlIndex(
            namespace=namespace,
            name=found["name"],
            field=next(iter(found["key"])),
            seconds=found["expireAfterSeconds"],
            collection_id=others[0].collection_id if others else f"made {len(self._database.changes)}",
        )
        self._database.ttl[namespace] = (*others, index)

    async def tickets(self) -> Tickets | None:
        await asyncio.sleep(0)
        return self.free

    async def create_collection(self, namespace: Namespace) -> None:
        await asyncio.sleep(0)
        self._database.collections.setdefault(namespace, {})

    def _write(self, namespace: Namespace, write: Write) -> list[Failure]:
        if write.document is None:
            self._database.remove(namespace, write.id)
            return []
        # The document that a look-up found may have an equal `_id` of another type: the server compares values.
        assert identity(document_id(write.document)) == identity(write.id)
        if not self.is_valid(write.document):
            reason = "Document failed validation"
            return [Failure(namespace=namespace, write=write, reason=reason, is_conflict=False)]
        index = self._database.put(namespace, write.id, write.document)
        if index is None:
            return []
        reason = f"the unique index {index} holds the value for another document"
        return [Failure(namespace=namespace, write=write, reason=reason, is_conflict=True, index=index)]


def _clustered_options(database: FakeDatabase, namespace: Namespace) -> dict[str, Any]:
    clustered = [index for index in database.ttl.get(namespace, ()) if not index.name]
    options: dict[str, Any] = {}
    for index in clustered:
        options["clusteredIndex"] = {"key": {"_id": 1}, "unique": True}
        if index.seconds != NEVER:
            options["expireAfterSeconds"] = index.seconds
    return options


_MARKS: Final = Namespace(OWN_DATABASE, "marks")


class FakeTargetChanges:
    """The change stream of a FakeTarget. `kept_from`: the number of the first event that it remembers.

    `error`: what it answers whoever asks. `before_each`: called at each batch; `before_mark`: before a mark is written.
    """

    def __init__(self, target: FakeReader) -> None:
        self.target = target
        self.kept_from = 0
        self.error: AgentError | None = None
        self.before_each: Callable[[], None] = lambda: None
        self.before_mark: Callable[[], None] = lambda: None
        self.is_silent = False

    async def position(self) -> bytes:
        await asyncio.sleep(0)
        self._answer()
        return _token(len(self.target.database.changes))

    async def after(self, position: bytes) -> AsyncGenerator[Sequence[Operation]]:
        at = int(decode(position)["_data"])
        while True:
            await asyncio.sleep(0)
            self._answer()
            if at < self.kept_from:
                raise OperatorError("the target refused a command", hint="see what it says", code=286)
            self.before_each()
            changes = [] if self.is_silent else self.target.database.changes[at : at + _PAGE]
            yield [_operation(number, *change) for number, change in enumerate(changes, at + 1)]
            at += len(changes)

    async def mark(self, mark_id: str) -> None:
        self.before_mark()
        await self.remove_marks()
        self.target.database.put(_MARKS, raw_id(mark_id), raw_document({"_id": mark_id}))

    async def remove_marks(self) -> None:
        await asyncio.sleep(0)
        self._answer()
        self.target.database.drop(_MARKS)

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error


def _token(number: int) -> bytes:
    return encode({"_data": f"{number}"})


def _operation(
    number: int, kind: str, namespace: Namespace, id_: DocumentId | None, rename_to: Namespace | None = None
) -> Operation:
    """Return the event with its token: a stream that is opened after it goes on with the next one."""
    return Operation(kind, namespace, ClusterTime(1, number), _token(number), id_, None, rename_to, b"")
