"""Behind a closed gate no database is written: the agent stood still, and another one holds the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pymongo import AsyncMongoClient

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.replay.replay import Barrier, Write, WriteBatch
from d5agent.errors import LogHeldError
from tests.fakes.documents import raw_document, raw_id

if TYPE_CHECKING:
    from d5agent.drill.servers import Mongod

Client = AsyncMongoClient[dict[str, Any]]


class Lost:
    """What another agent holds now."""

    is_fresh = False

    async def confirm(self) -> None:
        raise LogHeldError("another agent holds this log")


async def test_behind_a_closed_fence_no_database_is_changed(mongod: Mongod, fresh_name: str) -> None:
    orders, gate = Namespace(fresh_name, "orders"), WriteGate(Lost())
    async with open_mongo(mongod.uri, side="target", pool_size=2) as opened, Client(mongod.uri) as seeing:
        await seeing[fresh_name]["orders"].insert_one({"_id": 1})
        await seeing["d5agent"]["marks"].insert_one({"_id": fresh_name})
        target = MongoTarget(opened, clock=SystemClock(), gate=gate)
        source = ChangeStreamSource(opened, uri=mongod.uri, flavor="mongodb", clock=SystemClock(), gate=gate)
        write = Write(id=raw_id(1), document=raw_document({"_id": 1, "stale": True}))
        for change in (
            target.write(WriteBatch(namespace=orders, writes=(write,))),
            target.apply(Barrier(kind="drop", namespace=orders, rename_to=None, cluster_time=ClusterTime(1, 1))),
            target.create_collection(Namespace(fresh_name, "new")),
            source.close_stream(switches_off=True),
        ):
            with pytest.raises(LogHeldError):
                await change
        assert [found async for found in seeing[fresh_name]["orders"].find()] == [{"_id": 1}]
        assert await seeing[fresh_name].list_collection_names() == ["orders"]
        assert await seeing["d5agent"]["marks"].count_documents({"_id": fresh_name}) == 1
