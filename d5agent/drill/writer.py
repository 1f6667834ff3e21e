"""One microservice of the drill: its connection, its dice, its books and the documents it knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from d5agent.drill.child import pause
from d5agent.drill.values import any_fields, any_id

if TYPE_CHECKING:
    import itertools
    import random
    from collections.abc import Awaitable, Callable

    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.database import AsyncDatabase

    from d5agent.drill.ledger import Ledger

SHOP = "shop"
ORDERS = "orders"
COUNTERS = "counters"
ACCOUNTS = "accounts"
HOT_DOCUMENTS = 8
_KNOWN = 500
_TRANSACTION_TRIES = 20
_WRITE_CONFLICT = 112


@dataclass(slots=True)
class WorkloadWriter:
    """What an operation is given."""

    client: AsyncMongoClient[dict[str, Any]]
    rng: random.Random
    ledger: Ledger
    number: int
    # Numbers of one workload never come twice, so that ids made of them are new.
    numbers: itertools.count[int]
    known: list[Any] = field(default_factory=list)

    def database(self, name: str = SHOP) -> AsyncDatabase[dict[str, Any]]:
        """Return a database; every write to it waits for the majority, as DocumentDB's do."""
        return self.client.get_database(name, write_concern=WriteConcern(w="majority"))

    def collection(self, name: str, database: str = SHOP) -> AsyncCollection[dict[str, Any]]:
        """Return a collection."""
        return self.database(database).get_collection(name)

    @property
    def orders(self) -> AsyncCollection[dict[str, Any]]:
        """The collection that most operations go to."""
        return self.collection(ORDERS)

    def new_document(self) -> dict[str, Any]:
        """Return a document with an `_id` of any kind."""
        number = next(self.numbers)
        return {"_id": any_id(self.rng, number), "writer": self.number, "n": 0} | any_fields(self.rng)

    def own_name(self, what: str) -> str:
        """Return a name that no other operation uses."""
        return f"{what} {next(self.numbers)}"

    async def insert(self) -> Any:  # noqa: ANN401 - an _id is any BSON value
        """Insert a new order, remember and return its `_id`."""
        document = self.new_document()
        await self.orders.insert_one(document)
        self.ledger.wrote("insert")
        self.remember(document["_id"])
        return document["_id"]

    def remember(self, document_id: Any) -> None:  # noqa: ANN401 - an _id is any BSON value
        """Keep an `_id` for later operations, a bounded number of them."""
        self.known.append(document_id)
        if len(self.known) > _KNOWN:
            self.known.pop(self.rng.randrange(len(self.known)))

    async def pick(self) -> Any:  # noqa: ANN401 - an _id is any BSON value
        """Return the `_id` of an order of this writer."""
        return self.rng.choice(self.known) if self.known else await self.insert()

    async def take(self) -> Any:  # noqa: ANN401 - an _id is any BSON value
        """Return the `_id` of an order of this writer and forget it: it is about to go."""
        if not self.known:
            await self.insert()
        return self.known.pop(self.rng.randrange(len(self.known)))

    async def in_transaction(self, body: Callable[[AsyncClientSession], Awaitable[None]]) -> None:
        """Run a body in a transaction and commit it; conflicts with other writers are tried again.

        The driver's own `with_transaction` goes on for two minutes, too long for a drill.
        """
        for attempt in range(_TRANSACTION_TRIES):
            # DocumentDB knows no causal consistency.
            async with self.client.start_session(causal_consistency=False) as session:
                try:
                    async with await session.start_transaction(write_concern=WriteConcern(w="majority")):
                        await body(session)
                except PyMongoError as error:
                    is_conflict = getattr(error, "code", None) == _WRITE_CONFLICT
                    if not is_conflict or attempt == _TRANSACTION_TRIES - 1:
                        raise
                else:
                    return
            # Not the dice: how often we wait depends on the others, what we do next must not.
            await pause(0.001 * (self.number + 1) * (attempt + 1))
