"""What writes at this moment, on a real server that is locked, so that each write stands still: none is overlooked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.drill.child import pause
from tests.integration.agent_rig import Client

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.integration.agent_rig import AgentRig

SLOWLY = {"$expr": {"$function": {"body": "function() { sleep(3000); return true; }", "args": [], "lang": "js"}}}
MERGE = [{"$match": SLOWLY}, {"$merge": {"into": "totals"}}]


async def until_seen(source: ChangeStreamSource, *names: str) -> None:
    """Wait until all of these are among the running writes."""
    async with asyncio.timeout(30):
        while not set(names) <= {found.split()[0] for found in await source.running_writes()}:
            await pause(0.05)


async def test_each_kind_of_running_write_is_seen(rig: AgentRig) -> None:
    uri = rig.source_uri
    async with open_mongo(uri, side="source") as opened, Client(uri) as client, Client(rig.source.uri) as direct:
        source = ChangeStreamSource(opened, uri=uri, flavor="documentdb", clock=SystemClock())
        shop = client["shop"]
        for name in ("orders", "dropped", "renamed"):
            await shop[name].insert_one({"_id": b"\xff", "n": 1})
        writes: dict[str, Coroutine[Any, Any, object]] = {
            "findandmodify": shop.command("findAndModify", "orders", query={"n": 1}, update={"$inc": {"n": 1}}),
            "drop": shop.command("drop", "dropped"),
            "renamecollection": client.admin.command("renameCollection", "shop.renamed", to="shop.other"),
            "insert": shop["orders"].insert_one({"_id": "x" * 10_000}),
        }
        assert list(await source.running_writes()) == []
        await direct.admin.command("fsync", lock=True)
        try:
            async with asyncio.TaskGroup() as group:
                for name, write in writes.items():
                    group.create_task(write, name=name)
                await until_seen(source, *writes)
                await direct.admin.command("fsyncUnlock")
        except BaseException:
            await direct.admin.command("fsyncUnlock")
            raise
        assert list(await source.running_writes()) == []


async def test_a_merge_that_goes_on_through_get_more_is_seen(rig: AgentRig) -> None:
    uri = rig.source_uri
    async with open_mongo(uri, side="source") as opened, Client(uri) as client:
        source = ChangeStreamSource(opened, uri=uri, flavor="documentdb", clock=SystemClock())
        shop = client["shop"]
        await shop["orders"].insert_one({"_id": 1})
        opening: dict[str, Any] = await shop.command("aggregate", "orders", pipeline=MERGE, cursor={"batchSize": 0})
        async with asyncio.TaskGroup() as group:
            group.create_task(shop.command("getMore", opening["cursor"]["id"], collection="orders"))
            await until_seen(source, "aggregate")
        assert await shop["totals"].count_documents({}) == 1
        assert list(await source.running_writes()) == []
