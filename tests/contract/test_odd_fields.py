"""Documents that an insert or a replacement would change or refuse, on a real server, capped collections too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bson import Timestamp, encode
from pymongo import AsyncMongoClient

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.core.log.operation import Namespace
from d5agent.core.replay.replay import Write, WriteBatch
from tests.fakes.documents import raw_id

if TYPE_CHECKING:
    from d5agent.drill.servers import Mongod

ZERO = Timestamp(0, 0)
ODD: dict[str, dict[str, Any]] = {
    "dollar": {"$price": 5, "a": {"$b": 1}},
    "zero": {"n": 1, "t": ZERO},
    "both": {"t": ZERO, "$price": 5},
    "operator": {"$set": {"a": 1}},
}


@pytest.mark.parametrize("is_new", [False, True], ids=["update", "insert"])
@pytest.mark.parametrize("is_capped", [False, True], ids=["plain", "capped"])
@pytest.mark.parametrize("before", [None, {"n": 0}, {"$price": 4, "t": ZERO}], ids=["nothing", "other", "odd"])
async def test_odd_fields_are_stored_as_they_are(
    mongod: Mongod, fresh_name: str, before: dict[str, Any] | None, *, is_capped: bool, is_new: bool
) -> None:
    capped: dict[str, Any] = {"capped": True, "size": 100_000} if is_capped else {}
    async with (
        open_mongo(mongod.uri, side="target") as client,
        AsyncMongoClient[dict[str, Any]](mongod.uri) as direct,
    ):
        await direct[fresh_name].create_collection("odd", **capped)
        if before is not None:
            await direct[fresh_name]["odd"].insert_many([{"_id": name, **before} for name in ODD])
        documents = {raw_id(name): encode({"_id": name, **fields}) for name, fields in ODD.items()}
        writes = tuple(Write(id=id_, document=document, is_new=is_new) for id_, document in documents.items())
        target, namespace = MongoTarget(client, clock=SystemClock()), Namespace(fresh_name, "odd")
        reader = MongoReader(client, side="target", clock=SystemClock())
        for _ in range(2):
            assert not await target.write(WriteBatch(namespace=namespace, writes=writes))
            assert await reader.fetch(namespace, list(documents)) == documents
        await direct.drop_database(fresh_name)


async def test_two_fields_of_one_name_are_refused_in_a_capped_collection(mongod: Mongod, fresh_name: str) -> None:
    twice = encode({"_id": 1, "t": ZERO, "a": 1, "b": 2}).replace(b"b\0", b"a\0")
    async with (
        open_mongo(mongod.uri, side="target") as client,
        AsyncMongoClient[dict[str, Any]](mongod.uri) as direct,
    ):
        await direct[fresh_name].create_collection("odd", capped=True, size=100_000)
        await direct[fresh_name]["odd"].insert_one({"_id": 1, "a": 1, "b": 2})
        target, write = MongoTarget(client, clock=SystemClock()), Write(id=raw_id(1), document=twice)
        (refused,) = await target.write(WriteBatch(namespace=Namespace(fresh_name, "odd"), writes=(write,)))
        assert "two fields of one name" in refused.reason
        assert await direct[fresh_name]["odd"].find_one() == {"_id": 1, "a": 1, "b": 2}
        await direct.drop_database(fresh_name)
