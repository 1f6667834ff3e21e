"""The load: writers that book each write before they ask for it.

A writer has documents of its own, so that it knows their order, and shares a few hot ones, whose order the database
tells. Once an answer is lost, nobody touches the documents concerned again: the write in question may arrive late.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.errors import ConnectionFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from d5agent.drill.child import pause
from tests.soak.ledger import Attempt, Entry, Ledger, Line

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.client_session import AsyncClientSession

    Client = AsyncMongoClient[dict[str, Any]]

DATABASE: Final = "soak"
OWN: Final = "own"
HOT: Final = "hot"
SCRATCH: Final = "scratch"
HOT_DOCUMENTS: Final = 4
_FEWEST_DOCUMENTS: Final = 6
_MOST_DOCUMENTS: Final = 40
_SCRATCH_DOCUMENTS: Final = 5
_LONGEST_PAUSE_SECONDS: Final = 0.02
_AFTER_TROUBLE_SECONDS: Final = 0.1
_MEBIBYTE: Final = 1024 * 1024
_MAJORITY: Final = WriteConcern(w="majority")


def line_of(collection: str, document: object) -> Line:
    """Return the line that a write belongs to: a scratch collection is one as a whole, since it is dropped."""
    namespace = f"{DATABASE}.{collection}"
    return Line(namespace) if collection.startswith(SCRATCH) else Line(namespace, str(document))


class Writer:
    """One client of the database."""

    def __init__(self, client: Client, ledger: Ledger, dice: random.Random, *, number: int) -> None:
        self._client = client
        self._database = client.get_database(DATABASE, write_concern=_MAJORITY)
        self._own = self._database[OWN]
        self._ledger = ledger
        self._dice = dice
        self._number = number
        self._ids = (f"{number}-{count}" for count in itertools.count(1))
        self._known: list[str] = []
        self._scratch_collections = (f"{SCRATCH}-{number}-{count}" for count in itertools.count(1))
        self._scratch = next(self._scratch_collections)

    async def work(self, stop: asyncio.Event) -> None:
        """Write until told to stop; the write in hand is ended."""
        operations: dict[Callable[[], Awaitable[None]], float] = {
            self._insert: 15,
            self._update: 40,
            self._update_hot: 20,
            self._replace: 10,
            self._delete: 6,
            self._delete_and_insert_again: 4,
            self._bulk: 4,
            self._transaction: 8,
            self._give_up_a_transaction: 2,
            self._fill_and_drop: 1,
            self._large: 0.15,
        }
        while not stop.is_set():
            [operation] = self._dice.choices(list(operations), list(operations.values()))
            try:
                await operation()
            except ConnectionFailure:
                await pause(_AFTER_TROUBLE_SECONDS)
            await pause(self._dice.uniform(0, _LONGEST_PAUSE_SECONDS))

    async def make_hot_documents(self) -> None:
        """Insert what all writers then share."""
        attempt = self._ledger.attempt(self._number, [(line_of(HOT, n), "insert") for n in range(HOT_DOCUMENTS)])
        documents = [self._document(str(n), entry) for n, entry in enumerate(attempt.entries)]
        await self._await_answer(attempt, self._database[HOT].insert_many(documents))

    async def insert_last(self, collection: str) -> None:
        """Write what comes after everything else."""
        attempt = self._ledger.attempt(self._number, [(line_of(collection, "last"), "insert")])
        document = self._document("last", attempt.entries[0])
        await self._await_answer(attempt, self._database[collection].insert_one(document))

    async def _insert(self) -> None:
        if len(self._known) < _MOST_DOCUMENTS:
            await self._write(next(self._ids), "insert")
        else:
            await self._update()

    async def _update(self) -> None:
        await self._write(await self._pick(), "update")

    async def _replace(self) -> None:
        await self._write(await self._pick(), "replace")

    async def _delete(self) -> None:
        await self._write(await self._pick(), "delete")

    async def _delete_and_insert_again(self) -> None:
        document = await self._pick()
        await self._write(document, "delete")
        await self._write(document, "insert")

    async def _large(self) -> None:
        document = next(self._ids)
        await self._write(document, "insert", size=self._dice.randrange(_MEBIBYTE, 4 * _MEBIBYTE))
        for kind in ("update", "update", "delete"):
            await self._write(document, kind)

    async def _update_hot(self) -> None:
        document = self._dice.randrange(HOT_DOCUMENTS)
        attempt = self._ledger.attempt(self._number, [(line_of(HOT, document), "update")])
        updated = self._database[HOT].update_one({"_id": str(document)}, _update(attempt.entries[0]))
        assert (await self._await_answer(attempt, updated)).modified_count == 1

    async def _bulk(self) -> None:
        """Insert, update twice, replace, update and delete in one ordered bulk write."""
        old, new = await self._pick(), next(self._ids)
        kinds = [(new, "insert"), (old, "update"), (old, "update"), (new, "replace"), (new, "update"), (old, "delete")]
        attempt = self._attempt(kinds)
        written = self._own.bulk_write([self._request(entry) for entry in attempt.entries], ordered=True)
        result = await self._await_answer(attempt, written)
        assert (result.inserted_count, result.modified_count, result.deleted_count) == (1, 4, 1)
        self._remember(attempt.entries)

    async def _transaction(self) -> None:
        """Update one document three times in a transaction, together with others."""
        old, other, new = await self._pick(), await self._pick(), next(self._ids)
        kinds = [
            (old, "update"),
            (old, "update"),
            (other, "replace"),
            (new, "insert"),
            (old, "update"),
            (new, "update"),
        ]
        attempt = self._attempt(kinds, is_atomic=True)
        async with self._client.start_session(causal_consistency=False) as session:
            if await self._fill(attempt, session):
                try:
                    await session.commit_transaction()
                except PyMongoError:  # committed or not, whatever the reason: nobody knows
                    self._forget(attempt)
                else:
                    attempt.acknowledge()
                    self._remember(attempt.entries)

    async def _give_up_a_transaction(self) -> None:
        old, new = await self._pick(), next(self._ids)
        attempt = self._attempt([(new, "insert"), (old, "update"), (old, "update")], is_atomic=True)
        async with self._client.start_session(causal_consistency=False) as session:
            if await self._fill(attempt, session):
                await session.abort_transaction()
                attempt.refuse()

    async def _fill(self, attempt: Attempt, session: AsyncClientSession) -> bool:
        """Begin a transaction and write all that belongs into it; False: it ends here, and nothing was written."""
        await session.start_transaction(write_concern=_MAJORITY)
        try:
            for entry in attempt.entries:
                await self._carry_out(entry, session)
        except PyMongoError:
            attempt.refuse()
            self._forget(attempt)  # until the server notices, the transaction holds these documents
            return False
        return True

    async def _fill_and_drop(self) -> None:
        """Insert into a scratch collection, as a bulk, and drop it; the next one bears the same name."""
        collection = self._database[self._scratch]
        line = line_of(self._scratch, None)
        filled = self._ledger.attempt(self._number, [(line, "insert")] * _SCRATCH_DOCUMENTS)
        documents = [self._document(str(entry.number), entry) for entry in filled.entries]
        await self._await_answer(filled, collection.insert_many(documents))
        await self._await_answer(self._ledger.attempt(self._number, [(line, "drop")]), collection.drop())

    def _attempt(self, kinds: Sequence[tuple[str, str]], *, is_atomic: bool = False) -> Attempt:
        writes = [(line_of(OWN, document), kind) for document, kind in kinds]
        return self._ledger.attempt(self._number, writes, is_atomic=is_atomic)

    async def _write(self, document: str, kind: str, *, size: int | None = None) -> None:
        attempt = self._attempt([(document, kind)])
        [entry] = attempt.entries
        await self._await_answer(attempt, self._carry_out(entry, None, size=size))
        self._remember(attempt.entries)

    async def _await_answer(self, attempt: Attempt, answer: Awaitable[Any]) -> Any:  # noqa: ANN401 -- the driver's
        try:
            result = await answer
        except ConnectionFailure:
            self._forget(attempt)
            raise
        attempt.acknowledge()
        return result

    async def _carry_out(self, entry: Entry, session: AsyncClientSession | None, *, size: int | None = None) -> None:
        which, own = {"_id": entry.line.document}, self._own
        match entry.kind:
            case "insert":
                await own.insert_one(self._document(entry.line.document, entry, size=size), session=session)
            case "update":
                assert (await own.update_one(which, _update(entry), session=session)).modified_count == 1
            case "replace":
                document = self._document(entry.line.document, entry)
                assert (await own.replace_one(which, document, session=session)).modified_count == 1
            case _:
                assert (await own.delete_one(which, session=session)).deleted_count == 1

    def _request(self, entry: Entry) -> Any:  # noqa: ANN401 -- the driver's requests have no common type
        which = {"_id": entry.line.document}
        match entry.kind:
            case "insert":
                return InsertOne(self._document(entry.line.document, entry))
            case "update":
                return UpdateOne(which, _update(entry))
            case "replace":
                return ReplaceOne(which, self._document(entry.line.document, entry))
            case _:
                return DeleteOne(which)

    def _document(self, document_id: str, entry: Entry, *, size: int | None = None) -> dict[str, Any]:
        filler = self._dice.randbytes(self._dice.randrange(400) if size is None else size)
        return {"_id": document_id, "n": entry.number, "v": 0, "filler": filler}

    async def _pick(self) -> str:
        while len(self._known) < _FEWEST_DOCUMENTS:
            await self._write(next(self._ids), "insert")
        return self._dice.choice(self._known)

    def _remember(self, entries: Sequence[Entry]) -> None:
        """Follow what the acknowledged writes made of the documents."""
        for entry in entries:
            if entry.kind == "insert":
                self._known.append(entry.line.document)
            elif entry.kind == "delete":
                self._known.remove(entry.line.document)

    def _forget(self, attempt: Attempt) -> None:
        lines = {entry.line for entry in attempt.entries}
        self._known = [document for document in self._known if line_of(OWN, document) not in lines]
        if line_of(self._scratch, None) in lines:
            self._scratch = next(self._scratch_collections)


def _update(entry: Entry) -> dict[str, Any]:
    return {"$set": {"n": entry.number}, "$inc": {"v": 1}}
