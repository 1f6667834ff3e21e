"""The microservices during the outage: they write to DocumentDB all that a copy could get wrong.

Seeded: the same seed gives the same operations in the same order for each writer. Only the order
between writers, and what a server refuses, is the world's.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, Any

from pymongo import AsyncMongoClient
from pymongo.errors import ConnectionFailure, PyMongoError

from d5agent.drill import compound_operations as compound
from d5agent.drill import operations as single
from d5agent.drill.child import pause
from d5agent.drill.ledger import Ledger
from d5agent.drill.writer import ACCOUNTS, COUNTERS, HOT_DOCUMENTS, WorkloadWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    Operation = Callable[[WorkloadWriter], Awaitable[None]]

# How often each stands in a pack of cards; a pack is played to its end before the next, so that a
# short run has every kind as well.
KINDS: dict[str, tuple[Operation, int]] = {
    operation.__name__: (operation, weight)
    for operation, weight in (
        (single.insert_one, 30),
        (single.insert_many, 3),
        (single.insert_every_type, 2),
        (single.update_set, 25),
        (single.update_inc, 10),
        (single.update_push, 12),
        (single.update_unset, 5),
        (single.update_nested, 5),
        (single.replace, 10),
        (single.upsert_loaded, 10),
        (single.upsert_single_id, 6),
        (single.update_many, 3),
        (single.find_and_modify, 4),
        (single.delete_one, 8),
        (single.delete_many, 2),
        (single.update_then_delete, 8),
        (single.delete_and_reinsert, 6),
        (single.bulk_mixed, 3),
        (single.odd_names, 8),
        (single.odd_field_names, 2),
        (single.big_document, 1),
        (single.oversized_update, 0),
        (compound.transaction_many, 6),
        (compound.transaction_thrice, 5),
        (compound.transaction_come_and_go, 2),
        (compound.transaction_aborted, 3),
        (compound.unique_handover, 5),
        (compound.unique_handover_in_transaction, 4),
        (compound.unique_exchange, 4),
        (compound.unique_reborn, 3),
        (compound.update_then_rename, 1),
        (compound.rename_over, 1),
        (compound.rename_and_refill, 1),
        (compound.drop, 1),
        (compound.drop_and_recreate, 1),
        (compound.drop_database, 1),
        (compound.create_empty, 1),
    )
}
WEIGHTS: dict[str, int] = {kind: weight for kind, (_, weight) in KINDS.items()}
_AFTER_TROUBLE_SECONDS = 0.05
_NUMBERS_OF_A_WRITER = 10**7
_NUMBERS_OF_A_SEED = 10**9
_SEEDS = 10**6


class Workload:
    """Concurrent writers on one URI; `weights` replaces how often each kind of operation comes.

    A weight of 0 leaves a kind out. `pause_seconds` is what each writer rests between operations.
    """

    def __init__(
        self,
        uri: str,
        seed: int,
        *,
        writers: int = 4,
        weights: Mapping[str, int] | None = None,
        pause_seconds: float = 0.0,
    ) -> None:
        self.ledger = Ledger()
        self._uri = uri
        self._writers = writers
        self._weights = dict(WEIGHTS if weights is None else weights)
        self._pause_seconds = pause_seconds
        self._dice = [random.Random(f"{seed}/{number}") for number in range(writers)]
        first = seed % _SEEDS * _NUMBERS_OF_A_SEED
        self._numbers = [itertools.count(first + (number + 1) * _NUMBERS_OF_A_WRITER) for number in range(writers)]

    async def run(self, *, operations: int | None = None, stop: asyncio.Event | None = None) -> Ledger:
        """Write until so many operations are done, or until the event is set; return the books.

        A writer ends its operation in hand before it stops. Run again, it goes on where it was.
        """
        stop = stop or asyncio.Event()
        async with _client(self._uri) as client:
            crew = [self._hire(client, number) for number in range(self._writers)]
            for writer in crew:
                await _prepare(writer)
            async with asyncio.TaskGroup() as group:
                for writer in crew:
                    share = _share(operations, self._writers, writer.number)
                    name = f"writer-{writer.number}"
                    group.create_task(self._work(writer, share, stop), name=name)
        return self.ledger

    def _hire(self, client: AsyncMongoClient[dict[str, Any]], number: int) -> WorkloadWriter:
        return WorkloadWriter(
            client=client,
            rng=self._dice[number],
            ledger=self.ledger,
            number=number,
            numbers=self._numbers[number],
        )

    async def _work(self, writer: WorkloadWriter, share: int | None, stop: asyncio.Event) -> None:
        for kind in itertools.islice(self._cards(writer.rng), share):
            if stop.is_set():
                return
            if not await _play(writer, kind):
                await pause(_AFTER_TROUBLE_SECONDS)
            await pause(self._pause_seconds)

    def _cards(self, rng: random.Random) -> Iterator[str]:
        # Dice of their own: what an operation needs of its writer's may depend on the server.
        own = random.Random(rng.random())
        pack = [kind for kind, weight in self._weights.items() for _ in range(weight)]
        while True:
            own.shuffle(pack)
            yield from tuple(pack)


async def _play(writer: WorkloadWriter, kind: str) -> bool:
    """Do one operation and book it; False after trouble."""
    ledger = writer.ledger
    ledger.attempted[kind] += 1
    operation, _ = KINDS[kind]
    try:
        await operation(writer)
    except ConnectionFailure:
        ledger.unknown[kind] += 1
        return False
    except PyMongoError as error:
        ledger.refused[kind] += 1
        ledger.refusals[f"{kind}: {getattr(error, 'code', None)}"] += 1
        return False
    ledger.acknowledged[kind] += 1
    return True


async def _prepare(writer: WorkloadWriter) -> None:
    """Make what operations build upon, where it is not there yet."""
    accounts, counters = writer.collection(ACCOUNTS), writer.collection(COUNTERS)
    await accounts.create_index("email", unique=True)
    for number in range(HOT_DOCUMENTS):
        made = await counters.update_one({"_id": number}, {"$setOnInsert": {"n": 0}}, upsert=True)
        writer.ledger.wrote("insert", int(made.upserted_id is not None))
    missing = compound.ACCOUNTS_OF_A_WRITER - await accounts.count_documents({"writer": writer.number})
    for number in itertools.islice(writer.numbers, max(missing, 0)):
        await accounts.insert_one({"_id": number, "writer": writer.number, "email": f"{number}@example.org"})
        writer.ledger.wrote("insert")


def _share(operations: int | None, writers: int, number: int) -> int | None:
    if operations is None:
        return None
    return operations // writers + (number < operations % writers)


def _client(uri: str) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient(
        uri,
        retryWrites=False,  # DocumentDB knows no retryable writes
        serverSelectionTimeoutMS=5_000,
        socketTimeoutMS=20_000,
        connectTimeoutMS=5_000,
    )
