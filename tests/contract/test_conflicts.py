"""Circles of unique values on a real server: it judges by its collation, its filters, each element of an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bson import encode
from pymongo import AsyncMongoClient

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import document_id
from d5agent.core.replay.pace import Pace, RateLimit
from d5agent.core.replay.replay import Write, WriteBatch
from d5agent.steps.replay.conflicts import ConflictResolver
from d5agent.steps.replay.lanes import Lanes
from tests.fakes.machine import FakeJournal

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

    from d5agent.core.replay.replay import Failure
    from d5agent.drill.servers import Mongod

Documents = list[dict[str, Any]]
SWEDISH = {"locale": "sv", "strength": 1}


async def write(mongod: Mongod, namespace: Namespace, documents: Documents) -> list[Failure]:
    """Write documents as a restore does."""
    async with open_mongo(mongod.uri, side="target", pool_size=2) as client:
        clock = SystemClock()
        target = MongoTarget(client, clock=clock)
        pace, limit = Pace(lanes=2), RateLimit(per_second=None)
        lanes = Lanes(target=target, clock=clock, journal=FakeJournal(), pace=pace, limit=limit)
        raw = [encode(document) for document in documents]
        writes = tuple(Write(id=document_id(document), document=document) for document in raw)
        writer = ConflictResolver(lanes=lanes, target=MongoReader(client, side="target", clock=clock))
        return await writer.write([WriteBatch(namespace=namespace, writes=writes)])


async def refused_and_found(
    mongod: Mongod, name: str, index: dict[str, Any], before: Documents, after: Documents
) -> tuple[list[Failure], Documents]:
    """Let a server hold documents, write others; return what is refused, and what the server holds then."""
    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient(mongod.uri) as client:
        users: AsyncCollection[dict[str, Any]] = client[name]["users"]
        await users.create_index(unique=True, **index)
        await users.create_index("expires", expireAfterSeconds=10_000)
        await users.create_index([("_id", "hashed")])
        await users.insert_many(before)
        refused = await write(mongod, Namespace(name, "users"), after)
        return refused, await users.find(sort={"_id": 1}).to_list()


@pytest.mark.parametrize(
    ("index", "before", "after"),
    [
        ({"keys": "u"}, [{"u": 1}, {"u": 2}], [{"u": 2.0}, {"u": 1.0}]),
        ({"keys": "u"}, [{"u": [1, 2]}, {"u": [3]}], [{"u": [3, 4]}, {"u": [2]}]),
        ({"keys": "u", "collation": SWEDISH}, [{"u": "Åsa"}, {"u": "Eva"}], [{"u": "EVA"}, {"u": "åsa"}]),
        ({"keys": "u", "collation": SWEDISH}, [{"u": "wera"}, {"u": "Eva"}], [{"u": "eva"}, {"u": "Véra"}]),
        ({"keys": ["u", "v.w"]}, [{"u": 1, "v": {"w": 1}}, {"u": 1}], [{"u": 1}, {"u": 1, "v": [{"w": 1}]}]),
        (
            {"keys": "u", "partialFilterExpression": {"n": {"$gt": 5}}},
            [{"u": 1, "n": 6}, {"u": 2, "n": 7}, {"u": 1, "n": 0}],
            [{"u": 2, "n": 8}, {"u": 1, "n": 9}, {"u": 2, "n": 1}],
        ),
        ({"keys": "u", "sparse": True}, [{"u": None}, {"u": 1}, {}], [{"u": 1}, {"u": None}, {"x": 1}]),
        ({"keys": "u"}, [{"u": "a" * 500}, {"u": {"b": [1]}}], [{"u": {"b": [1]}}, {"u": "a" * 500}]),
    ],
)
async def test_two_documents_exchange_values_of_any_unique_index(
    mongod: Mongod, fresh_name: str, index: dict[str, Any], before: Documents, after: Documents
) -> None:
    numbered = [[{"_id": n, **fields} for n, fields in enumerate(some)] for some in (before, after)]
    refused, found = await refused_and_found(mongod, fresh_name, index, *numbered)
    assert refused == []
    assert found == numbered[1]


async def test_an_index_that_is_stricter_than_its_collection_has_no_other_holders(
    mongod: Mongod, fresh_name: str
) -> None:
    before = [{"_id": 0, "u": "a"}, {"_id": 1, "u": "b"}, {"_id": 2, "u": "A"}]
    after = [{"_id": 0, "u": "b"}, {"_id": 1, "u": "a"}]
    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient(mongod.uri) as client:
        await client[fresh_name].create_collection("users", collation=SWEDISH)
    index = {"keys": "u", "collation": {"locale": "simple"}}
    refused, found = await refused_and_found(mongod, fresh_name, index, before, after)
    assert refused == []
    assert found == [*after, before[2]]


async def test_a_circle_of_fifty_is_turned(mongod: Mongod, fresh_name: str) -> None:
    before = [{"_id": n, "u": n} for n in range(50)]
    after = [{"_id": n, "u": (n + 1) % 50} for n in range(50)]
    refused, found = await refused_and_found(mongod, fresh_name, {"keys": "u"}, before, after)
    assert refused == []
    assert found == after


async def test_a_conflict_hides_none_of_a_thousand_others(mongod: Mongod, fresh_name: str) -> None:
    after: Documents = [{"_id": n, "u": "held" if n in {0, 500} else n} for n in range(1000)]
    before: Documents = [{"_id": "holder", "u": "held"}, *[{"_id": n, "u": f"old {n}"} for n in range(0, 1000, 3)]]
    refused, found = await refused_and_found(mongod, fresh_name, {"keys": "u"}, before, after)
    assert sorted(failure.write.id for failure in refused) == sorted(document_id(encode(after[n])) for n in (0, 500))
    assert {failure.index for failure in refused} == {"u_1"}
    assert '"held"' in refused[0].reason
    assert found[0] == {"_id": 0, "u": "old 0"}  # it stays as it was
    assert [d for d in found if d["_id"] not in {0, 500, "holder"}] == [d for d in after if d["u"] != "held"]
