"""How busy a server is, and over how many connections it is written to: on a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from bson import encode
from pymongo import monitoring
from pymongo.errors import OperationFailure
from typing_extensions import override

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import document_id
from d5agent.core.replay.pace import Pace, RateLimit, Tickets
from d5agent.core.replay.replay import Write, WriteBatch
from d5agent.steps.replay.lanes import Lanes
from tests.fakes.machine import FakeJournal

if TYPE_CHECKING:
    from d5agent.adapters.mongo import Client
    from d5agent.drill.servers import Mongod


async def test_a_server_tells_how_many_more_writes_it_would_let_in(mongod: Mongod) -> None:
    async with open_mongo(mongod.uri, side="target") as client:
        tickets = await MongoTarget(client, clock=SystemClock()).tickets()
    assert tickets is not None
    assert 0 < tickets.free <= tickets.total


@pytest.mark.parametrize("status", [{}, {"wiredTiger": {}}])
async def test_a_server_that_tells_no_tickets_counts_by_its_latency(status: dict[str, Any]) -> None:
    assert await MongoTarget(cast("Client", Telling(status)), clock=SystemClock()).tickets() is None


async def test_tickets_of_a_later_server_stand_elsewhere() -> None:
    status = {"queues": {"execution": {"write": {"out": 3, "available": 5, "totalTickets": 8}}}, "wiredTiger": {}}
    client = cast("Client", Telling(status))
    assert await MongoTarget(client, clock=SystemClock()).tickets() == Tickets(free=5, total=8)


class Telling:
    """A server as far as its serverStatus; an empty one: the user may not ask."""

    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    @property
    def admin(self) -> Telling:
        return self

    async def command(self, command: dict[str, Any], **_: object) -> dict[str, Any]:
        assert command["serverStatus"] == 1
        if not self._status:
            raise OperationFailure("not authorized on admin to execute command", 13)
        return self._status


async def test_never_more_connections_write_than_there_are_lanes(mongod: Mongod, fresh_name: str) -> None:
    lanes, namespace = 3, Namespace(fresh_name, "orders")
    documents = [encode({"_id": n, "x": "y" * 1000}) for n in range(4000)]
    batches = [
        WriteBatch(
            namespace=namespace,
            writes=tuple(Write(id=document_id(d), document=d, is_new=True) for d in documents[at : at + 100]),
        )
        for at in range(0, len(documents), 100)
    ]
    connections = Connections(fresh_name)
    monitoring.register(connections)  # there is no way to take it back; it looks at this test's database only
    async with open_mongo(mongod.uri, side="target", pool_size=lanes) as client:
        clock = SystemClock()
        target = MongoTarget(client, clock=clock)
        pace, limit = Pace(lanes=lanes), RateLimit(per_second=None)
        assert not await Lanes(target=target, clock=clock, journal=FakeJournal(), pace=pace, limit=limit).write(batches)
    assert 1 < len(connections.seen) <= lanes


class Connections(monitoring.CommandListener):
    """Notes over which connections the commands to a database go."""

    def __init__(self, database: str) -> None:
        self._database = database
        self.seen: set[int | None] = set()

    @override
    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.database_name == self._database:
            self.seen.add(event.server_connection_id)

    @override
    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Nothing is to be noted."""

    @override
    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Nothing is to be noted."""
