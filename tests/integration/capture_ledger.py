"""What tests of capture share: writers that keep books, and the comparison of the books with the log.

A write whose answer was lost may be in the log or not. Its document is then left alone: whether the server carried the
write out before or after a later one, nobody could tell.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bson import ObjectId, decode
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from d5agent.drill.child import pause
from tests.integration.agent_rig import PATIENCE_SECONDS, Client, said

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence

    from pymongo.asynchronous.collection import AsyncCollection

    from d5agent.core.log.operation import Operation
    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

_WRITERS = 4
_LIVING = 8
_INSERTED_AT_ONCE = 5
_EXACT = {"insert", "replace"}
"""Kinds whose full document is the one that was written; an update's is looked up, and may be newer."""


class Write(NamedTuple):
    """One write of one document: what the change stream calls it, and its running number in the ledger."""

    kind: str
    number: int


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What the writers of one database were told, by document and in order."""

    database: str = field(default_factory=lambda: f"ledger_{ObjectId()}")
    acknowledged: dict[str, list[Write]] = field(default_factory=lambda: defaultdict(list))
    lost: dict[str, Write] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def total(self) -> int:
        """How many writes were acknowledged."""
        return sum(map(len, self.acknowledged.values()))

    async def grown(self, count: int) -> None:
        """Wait until so many more writes are acknowledged: the writers are at work again."""
        wanted = self.total + count
        await until(lambda: self.total >= wanted, what=f"{wanted} acknowledged writes")


@dataclass(slots=True, kw_only=True)
class _Writer:
    """One microservice: it writes documents of its own, one write after another."""

    number: int
    ledger: Ledger
    collection: AsyncCollection[dict[str, Any]]
    rng: random.Random
    living: list[str] = field(default_factory=list)
    running: int = 0
    """The number of the write under way; no two writes of a ledger have the same."""

    async def write_until(self, done: asyncio.Event) -> None:
        while not done.is_set():
            self.running = next(self.ledger.numbers)
            if len(self.living) < _LIVING:
                await self._insert()
            else:
                await self._change(self.rng.choice(self.living))

    async def _insert(self) -> None:
        names = [f"{self.running}-{each}" for each in range(_INSERTED_AT_ONCE)]
        self.living += names
        await self._book("insert", names, self.collection.insert_many([self._document(name) for name in names]))

    async def _change(self, name: str) -> None:
        kind = self.rng.choice(["update", "update", "replace", "delete"])
        if kind == "update":
            await self._book(kind, [name], self.collection.update_one({"_id": name}, {"$set": {"n": self.running}}))
        elif kind == "replace":
            await self._book(kind, [name], self.collection.replace_one({"_id": name}, self._document(name)))
        else:
            await self._book(kind, [name], self.collection.delete_one({"_id": name}))
            with suppress(ValueError):  # its answer was lost: it is left alone already
                self.living.remove(name)

    async def _book(self, kind: str, names: list[str], write: Awaitable[Any]) -> None:
        done = Write(kind, self.running)
        try:
            result = await write
        except PyMongoError:
            self.ledger.lost |= dict.fromkeys(names, done)
            self.living = [name for name in self.living if name not in names]
            await pause(0.02)
            return
        assert _count(result) == len(names), f"an acknowledged document of {names} is gone before its {kind}"
        for name in names:
            self.ledger.acknowledged[name].append(done)

    def _document(self, name: str) -> dict[str, Any]:
        return {"_id": name, "writer": self.number, "n": self.running, "filler": "x" * 200}


def _count(result: Any) -> int:  # noqa: ANN401 - the driver's, one class a verb
    for name in ("modified_count", "deleted_count"):
        if hasattr(result, name):
            return int(getattr(result, name))
    return len(result.inserted_ids)


@asynccontextmanager
async def writers(uri: str, ledger: Ledger, *, seed: int = 7) -> AsyncGenerator[None]:
    """Write in the background while the block runs; every write waits for the majority, as DocumentDB's do."""
    done = asyncio.Event()

    async def write(number: int) -> None:
        # A client each: one whose connection is cut does not clear the others' pools.
        async with Client(uri, retryWrites=False, serverSelectionTimeoutMS=5_000) as client:
            database = client.get_database(ledger.database, write_concern=WriteConcern("majority"))
            collection = database.get_collection(f"writer{number}")
            rng = random.Random(f"{seed}-{number}")
            await _Writer(number=number, ledger=ledger, collection=collection, rng=rng).write_until(done)

    async with asyncio.TaskGroup() as group:
        for number in range(_WRITERS):
            group.create_task(write(number))
        yield
        done.set()


@contextmanager
def paused(agent: Agent) -> Iterator[None]:
    """Stop the daemon's process while the block runs: what is written meanwhile it must read afterwards."""
    pid = agent._daemon.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def captured(rig: AgentRig, agent: Agent, ledger: Ledger, *, uri: str = "") -> None:
    """Wait until the log holds all that was written so far; compare it with the ledger, and check the chain."""
    last = str(ObjectId())
    async with Client(uri or rig.source_uri) as client:  # every write before this one stands before it in the stream
        final = client.get_database(ledger.database, write_concern=WriteConcern("majority")).get_collection("final")
        await final.insert_one({"_id": last, "n": 0})
    ledger.acknowledged[last] = [Write("insert", 0)]
    found: list[Operation] = []

    async def holds_last() -> bool:
        row = (await agent.status())["services"]["replication"]
        assert row["state"] != "failed", row
        found[:] = [each for each in await rig.operations() if each.namespace.database == ledger.database]
        return any(_event(each)["documentKey"]["_id"] == last for each in found)

    await until(holds_last, what=f"the last write is captured: see {agent.log}")
    assert_captured(found, ledger)
    await assert_whole(agent)


def assert_captured(operations: Sequence[Operation], ledger: Ledger) -> None:
    """See that each acknowledged write is there once, in order by document, and nothing else but lost answers."""
    twice = [token for token, count in Counter(each.token for each in operations).items() if count > 1]
    assert not twice, f"{len(twice)} events are stored twice"
    stored: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        stored[_event(operation)["documentKey"]["_id"]].append(operation)
    for name, writes in ledger.acknowledged.items():
        _assert_history(name, stored.pop(name, []), writes, ledger.lost.get(name))
    for name in stored.keys() & ledger.lost.keys():  # lost was its insertion: nothing of it was acknowledged
        _assert_history(name, stored.pop(name), [], ledger.lost[name])
    assert not stored, f"nobody wrote {sorted(stored)}"


def _assert_history(name: str, found: list[Operation], writes: list[Write], lost: Write | None) -> None:
    wanted = [*writes, lost] if lost is not None and len(found) > len(writes) else writes
    kinds = [each.kind for each in found]
    assert kinds == [write.kind for write in wanted], f"{name}: {kinds} is stored, and not {wanted}"
    for operation, write in zip(found, wanted, strict=True):
        document: dict[str, Any] | None = _event(operation).get("fullDocument")
        if write.kind in _EXACT:
            assert document is not None
            assert document["n"] == write.number, f"{name}: {document} is not of {write}"
        elif document is not None:  # an update's, unless it was gone before the look-up
            assert document["n"] >= write.number, f"{name}: {document} is older than {write}"


def _event(operation: Operation) -> dict[str, Any]:
    return decode(operation.raw)


async def assert_whole(agent: Agent) -> None:
    """See that the log's chain is whole, as an operator would."""
    ended = await agent.run("log", "verify")
    assert ended.code == 0, said(ended)


async def until(
    is_so: Callable[[], bool] | Callable[[], Awaitable[bool]], *, what: str, seconds: float = PATIENCE_SECONDS
) -> None:
    """Wait until it is so."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = is_so()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:g} s: {what}"
        await pause(0.02)
