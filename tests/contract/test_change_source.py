"""The ChangeSource: in memory, on a real MongoDB server, and before that with DocumentDB's manners."""

from __future__ import annotations

import itertools
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from bson import decode, encode
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.core.log.operation import OWN_DATABASE, Namespace, Position, parse_event
from d5agent.core.log.raw import id_document
from d5agent.drill.gateway.server import Gateway
from d5agent.errors import NotKeptError, OperatorError
from d5agent.ports import ChangeHistory, ChangeSource
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import (
    FakeCluster,
    Op,
    delete,
    drop,
    drop_database,
    insert,
    rename,
    update,
)
from tests.fakes.cluster import (
    replace as replace_op,
)
from tests.fakes.documents import raw_id
from tests.fakes.source import FakeChangeSource

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from pymongo.asynchronous.client_session import AsyncClientSession

    from d5agent.core.log.operation import Operation
    from d5agent.drill.servers import Mongod
    from d5agent.ports import EventBatch

_OLD = " without post-batch tokens"
_KEEPS_A_SHORT_LOG = pytest.mark.parametrize(
    "captured", ["fake", "documentdb", f"fake{_OLD}", f"documentdb{_OLD}"], indirect=True
)
_NAMES_POSITIONS = pytest.mark.parametrize("captured", ["fake", "mongodb", "documentdb"], indirect=True)
_numbers = itertools.count(1)
_RAW = CodecOptions(document_class=RawBSONDocument)


class HistoricSource(ChangeSource, ChangeHistory, Protocol):
    """Both ports of a captured database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A source, and what applications do to its cluster: `apply` makes several operations one transaction."""

    source: HistoricSource
    apply: Callable[..., Awaitable[None]]
    name: str
    # How the cluster forgets what happened so far; and whether it keeps its changes once the stream is closed.
    forget: Callable[[], Awaitable[None]]
    switch: Callable[..., Awaitable[None]]
    keeps_changes: bool

    def collection(self, name: str) -> Namespace:
        return Namespace(self.name, name)

    async def read(self, after: Position | None) -> list[Operation]:
        """Return the operations of this test's database from a position to the mark set now."""
        end = f"end-{next(_numbers)}"
        assert await self.source.mark(end)
        operations: list[Operation] = []
        async with self.source.stream(after) as batches:
            async for batch in batches:
                for event in batch.events:
                    operation = parse_event(event)
                    if operation.is_ours and operation.document_id == raw_id(end):
                        return operations
                    operations += [operation] if operation.namespace.database == self.name else []
        raise AssertionError  # the stream has no end

    async def begin(self) -> Position:
        """Return the position at which the stream stands now; a server's "now" takes in the event at this moment."""
        assert await self.source.mark(f"begin-{next(_numbers)}")
        now = Position(cluster_time=await self.source.now(), token=None)
        async with self.source.stream(now) as batches:
            return (await anext(batches)).position or now


async def _do(client: AsyncMongoClient[dict[str, Any]], op: Op, session: AsyncClientSession | None) -> None:
    database = client[op.namespace.database]
    collection = database.get_collection(op.namespace.collection or "none", codec_options=_RAW)
    which = None if op.id is None else RawBSONDocument(id_document(op.id))
    document = None if op.document is None else RawBSONDocument(op.document)
    match op.kind:
        case "insert" if document is not None:
            await collection.insert_one(document, session=session)
        case "replace" if which is not None and document is not None:
            await collection.replace_one(which, document, session=session)
        case "update" if which is not None and op.document is not None:
            fields = {name: value for name, value in decode(op.document).items() if name != "_id"}
            await collection.update_one(which, {"$set": fields}, session=session)
        case "delete" if which is not None:
            await collection.delete_one(which, session=session)
        case "drop":
            await collection.drop()
        case "rename" if op.rename_to is not None:
            await collection.rename(op.rename_to.collection or "", dropTarget=True)
        case _:
            await client.drop_database(op.namespace.database)


async def _transaction(client: AsyncMongoClient[dict[str, Any]], *ops: Op) -> None:
    if len(ops) == 1:
        await _do(client, ops[0], None)
        return
    async with client.start_session() as session, await session.start_transaction():
        for op in ops:
            await _do(client, op, session)


@asynccontextmanager
async def _fake(name: str, *, names_positions: bool) -> AsyncGenerator[Captured]:
    clock = FakeClock()
    cluster = FakeCluster(clock=clock)

    async def apply(*ops: Op) -> None:
        cluster.apply(*ops)

    async def forget() -> None:
        cluster.kept_from = len(cluster)

    async def switch(*, is_on: bool) -> None:
        source.switch(is_on=is_on)

    source = FakeChangeSource(cluster=cluster, clock=clock, batch_sizes=(1, 3, 1000), names_positions=names_positions)
    yield Captured(source=source, apply=apply, forget=forget, switch=switch, keeps_changes=False, name=name)


@asynccontextmanager
async def _real(mongod: Mongod, uri: str, flavor: str, name: str) -> AsyncGenerator[Captured]:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongod.uri)
    async with client, open_mongo(uri, side="source") as opened:

        async def apply(*ops: Op) -> None:
            await _transaction(client, *ops)

        async def forget() -> None:
            await opened.admin.command({"d5Gateway": 1, "action": "expireLog"})

        async def switch(*, is_on: bool) -> None:
            scope = {"database": "", "collection": ""}
            await opened.admin.command({"modifyChangeStreams": 1, **scope, "enable": is_on})

        source = ChangeStreamSource(opened, uri=uri, flavor=flavor, clock=SystemClock())
        yield Captured(
            source=source, apply=apply, forget=forget, switch=switch, keeps_changes=flavor == "mongodb", name=name
        )
        for database in (name, OWN_DATABASE):
            await client.drop_database(database)


@pytest.fixture(params=["fake", "mongodb", "documentdb", f"fake{_OLD}", f"documentdb{_OLD}"])
async def captured(request: pytest.FixtureRequest, mongod: Mongod, fresh_name: str) -> AsyncIterator[Captured]:
    names_positions = not request.param.endswith(_OLD)
    if request.param.startswith("fake"):
        async with _fake(fresh_name, names_positions=names_positions) as found:
            yield found
        return
    if request.param == "mongodb":
        async with _real(mongod, mongod.uri, "mongodb", fresh_name) as found:
            yield found
        return
    gateway = Gateway(f"127.0.0.1:{mongod.port}", no_post_batch_token=not names_positions)
    await gateway.start()
    uri = f"mongodb://{gateway.address}/?replicaSet=rs0&retryWrites=false"
    try:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
        async with client:
            await client.admin.command({"modifyChangeStreams": 1, "database": "", "collection": "", "enable": True})
        async with _real(mongod, uri, "documentdb", fresh_name) as found:
            yield found
    finally:
        await gateway.stop()


def _told(operations: list[Operation]) -> list[tuple[str, str]]:
    return [(operation.kind, str(operation.namespace)) for operation in operations]


@_NAMES_POSITIONS
async def test_a_stream_begins_with_an_empty_batch_that_tells_its_position(captured: Captured) -> None:
    await captured.apply(insert(captured.collection("orders"), {"_id": 1}))
    async with captured.source.stream(None) as batches:
        first = await anext(batches)
    assert not first.events
    assert first.position is not None
    assert first.position.token is not None


async def test_each_change_is_told_in_order_with_its_document_as_raw_bytes(captured: Captured) -> None:
    orders = captured.collection("orders")
    position = await captured.begin()
    await captured.apply(insert(orders, {"_id": {"z": 1, "a": 2}, "n": 1}))
    await captured.apply(replace_op(orders, {"_id": {"z": 1, "a": 2}, "n": 2, "m": None}))
    await captured.apply(delete(orders, {"z": 1, "a": 2}))
    await captured.apply(insert(orders, {"_id": 2}))
    await captured.apply(update(orders, {"_id": 2, "n": 3}))
    operations = await captured.read(position)
    assert [operation.kind for operation in operations] == ["insert", "replace", "delete", "insert", "update"]
    assert all(operation.namespace == orders for operation in operations)
    assert operations[0].document_id == raw_id({"z": 1, "a": 2})
    assert [operation.document for operation in operations] == [
        encode({"_id": {"z": 1, "a": 2}, "n": 1}),
        encode({"_id": {"z": 1, "a": 2}, "n": 2, "m": None}),
        None,
        encode({"_id": 2}),
        encode({"_id": 2, "n": 3}),
    ]
    times = [operation.cluster_time for operation in operations]
    assert times == sorted(times)
    assert len({operation.token for operation in operations}) == 5


async def test_the_document_of_an_update_is_as_new_as_the_moment_it_is_read(captured: Captured) -> None:
    orders = captured.collection("orders")
    position = await captured.begin()
    await captured.apply(insert(orders, {"_id": 1, "n": 1}))
    await captured.apply(insert(orders, {"_id": 2, "n": 1}))
    await captured.apply(update(orders, {"_id": 1, "n": 2}))
    await captured.apply(update(orders, {"_id": 1, "n": 3}))
    await captured.apply(update(orders, {"_id": 2, "n": 2}))
    await captured.apply(delete(orders, 2))
    operations = await captured.read(position)
    assert [operation.document for operation in operations if operation.kind == "update"] == [
        encode({"_id": 1, "n": 3}),
        encode({"_id": 1, "n": 3}),
        None,
    ]


async def test_an_update_before_a_drop_finds_no_document_and_before_a_rename_perhaps_its_own(
    captured: Captured,
) -> None:
    old, gone = captured.collection("old"), captured.collection("gone")
    for namespace in (old, gone):
        await captured.apply(insert(namespace, {"_id": 1}))
    position = await captured.begin()
    for namespace in (old, gone):
        await captured.apply(update(namespace, {"_id": 1, "n": 2}))
    await captured.apply(rename(old, captured.collection("new")))
    await captured.apply(drop(gone))
    await captured.apply(insert(gone, {"_id": 1, "is": "another"}))
    operations = await captured.read(position)
    assert _told(operations) == [
        ("update", str(old)),
        ("update", str(gone)),
        ("rename", str(old)),
        ("drop", str(gone)),
        ("insert", str(gone)),
    ]
    # MongoDB 6 follows a collection to its new name; another server need not.
    assert operations[0].document in {None, encode({"_id": 1, "n": 2})}
    assert operations[1].document is None
    assert operations[2].rename_to == captured.collection("new")


async def test_a_dropped_database_is_told_by_each_of_its_collections_first(captured: Captured) -> None:
    position = await captured.begin()
    for name in ("a", "b"):
        await captured.apply(insert(captured.collection(name), {"_id": 1}))
    await captured.apply(drop_database(captured.name))
    operations = await captured.read(position)
    assert sorted(_told(operations[2:4])) == [("drop", f"{captured.name}.a"), ("drop", f"{captured.name}.b")]
    assert _told(operations[4:]) == [("dropDatabase", captured.name)]


async def test_the_writes_of_a_transaction_share_their_time(captured: Captured) -> None:
    orders = captured.collection("orders")
    await captured.apply(insert(orders, {"_id": 0}))
    position = await captured.begin()
    await captured.apply(
        *[insert(orders, {"_id": number}) for number in range(1, 4)], update(orders, {"_id": 0, "n": 1})
    )
    await captured.apply(insert(orders, {"_id": 9}))
    operations = await captured.read(position)
    assert len(operations) == 5
    assert len({operation.cluster_time for operation in operations[:4]}) == 1
    assert operations[4].cluster_time > operations[3].cluster_time
    assert len({operation.token for operation in operations}) == 5


async def test_a_stream_goes_on_after_any_event_and_after_any_batch(captured: Captured) -> None:
    orders = captured.collection("orders")
    begin = await captured.begin()
    await captured.apply(*[insert(orders, {"_id": number}) for number in range(3)])
    await captured.apply(insert(orders, {"_id": 3}))
    operations = await captured.read(begin)
    for number, operation in enumerate(operations, start=1):
        after = Position(cluster_time=operation.cluster_time, token=operation.token)
        rest = await captured.read(after)
        assert [o.document_id for o in rest] == [raw_id(n) for n in range(number, 4)]
    positions = await _positions_up_to(captured, begin, 4)
    for position, count in positions:
        assert len(await captured.read(position)) == 4 - count


async def _positions_up_to(captured: Captured, begin: Position, count: int) -> list[tuple[Position, int]]:
    """Return the position after each batch, with how many events of this test came before it."""
    found: list[tuple[Position, int]] = []
    seen = 0
    async with captured.source.stream(begin) as batches:
        while seen < count:
            batch = await anext(batches)
            seen += sum(parse_event(event).namespace.database == captured.name for event in batch.events)
            if batch.position is not None:
                found.append((batch.position, seen))
    return found


async def test_a_position_without_a_token_begins_at_its_time(captured: Captured) -> None:
    orders = captured.collection("orders")
    begin = await captured.begin()
    for number in range(3):
        await captured.apply(insert(orders, {"_id": number}))
    second = (await captured.read(begin))[1]
    at = replace(begin, cluster_time=second.cluster_time, token=None)
    assert [o.document_id for o in await captured.read(at)] == [raw_id(1), raw_id(2)]


async def test_what_happens_after_now_is_told_from_then_on(captured: Captured) -> None:
    orders = captured.collection("orders")
    await captured.apply(insert(orders, {"_id": 0}))
    time = await captured.source.now()
    await captured.apply(insert(orders, {"_id": 1}))
    (*_, last) = await captured.read(Position(cluster_time=time, token=None))
    assert last.document_id == raw_id(1)
    assert last.cluster_time >= time
    assert await captured.source.now() >= last.cluster_time


async def test_an_idle_sources_now_takes_in_its_last_operation(captured: Captured) -> None:
    orders = captured.collection("orders")
    await captured.apply(insert(orders, {"_id": 0}))
    await captured.apply(drop(orders))
    now = await captured.source.now()
    (last,) = await captured.read(Position(cluster_time=now, token=None))
    assert (last.kind, last.cluster_time) == ("drop", now)
    begin = Position(cluster_time=now, token=None)
    async with captured.source.stream(begin) as batches:
        first = await anext(batches)
    assert _told(await captured.read(first.position or begin)) == [("drop", str(orders))]


@_NAMES_POSITIONS
async def test_a_quiet_stream_gives_empty_batches_with_positions(captured: Captured) -> None:
    orders = captured.collection("orders")
    async with captured.source.stream(None) as batches:
        await anext(batches)
        quiet = await _quiet_batch(batches)
        await captured.apply(insert(orders, {"_id": 1}))
        await _quiet_batch(batches)
    assert quiet.position is not None
    assert [o.document_id for o in await captured.read(quiet.position)] == [raw_id(1)]


async def _quiet_batch(batches: AsyncGenerator[EventBatch]) -> EventBatch:
    while (batch := await anext(batches)).events:
        pass
    return batch


async def test_a_stream_may_be_left_at_any_moment(captured: Captured) -> None:
    async with captured.source.stream(None):
        pass
    async with captured.source.stream(None) as batches, aclosing(batches):
        await anext(batches)


async def test_a_mark_comes_out_of_the_stream_as_ours(captured: Captured) -> None:
    begin = await captured.begin()
    assert await captured.source.mark("mark")
    marks: list[Operation] = []
    async with captured.source.stream(begin) as batches:
        while raw_id("mark") not in [operation.document_id for operation in marks]:
            marks += [parse_event(event) for event in (await anext(batches)).events]
    assert all(operation.is_ours and operation.kind == "insert" for operation in marks)


async def test_nobody_writes_when_nobody_writes(captured: Captured) -> None:
    await captured.source.check(before_enabling=None)
    assert list(await captured.source.running_writes()) == []


async def test_closing_removes_the_marks_and_may_be_repeated(captured: Captured) -> None:
    begin = await captured.begin()
    await captured.source.mark("mark")
    if captured.keeps_changes:
        await captured.source.close_stream(switches_off=True)
        assert await captured.read(begin) == []
    await captured.source.close_stream(switches_off=True)
    await captured.source.close_stream(switches_off=True)


@_KEEPS_A_SHORT_LOG
async def test_a_cluster_that_keeps_no_changes_is_refused(captured: Captured) -> None:
    begin = await captured.begin()
    await captured.source.close_stream(switches_off=True)
    with pytest.raises(OperatorError, match="not enabled") as caught:
        await captured.source.check(before_enabling=None)
    assert caught.value.hint
    with pytest.raises(OperatorError):
        await captured.read(begin)


@_KEEPS_A_SHORT_LOG
async def test_a_position_that_the_cluster_has_forgotten_is_never_passed_over(captured: Captured) -> None:
    lost = await captured.begin()
    await captured.apply(insert(captured.collection("orders"), {"_id": 1}))
    await captured.forget()
    with pytest.raises(OperatorError, match="position") as caught:
        await captured.read(lost)
    assert "runbook" in caught.value.hint


async def test_changes_that_are_kept_are_proved_up_to_now(captured: Captured) -> None:
    orders = captured.collection("orders")
    begin = await captured.source.check_kept(None)
    await captured.apply(insert(orders, {"_id": 1}))
    until = await captured.source.check_kept(begin)
    assert until > begin
    (last,) = await captured.read(Position(cluster_time=until, token=None))
    assert last.document_id == raw_id(1)  # nothing after it is proved


@_KEEPS_A_SHORT_LOG
async def test_an_open_stream_passes_over_a_gap_and_the_history_shows_it(captured: Captured) -> None:
    orders = captured.collection("orders")
    told: list[Operation] = []
    before = await captured.source.check_kept(None)
    async with captured.source.stream(await captured.begin()) as batches:
        await anext(batches)
        await captured.switch(is_on=False)
        await captured.apply(insert(orders, {"_id": "untold"}))
        with pytest.raises(NotKeptError, match="not enabled"):
            await captured.source.check_kept(before)
        await captured.switch(is_on=True)
        await captured.apply(insert(orders, {"_id": "told"}))
        while not told:
            operations = [parse_event(event) for event in (await anext(batches)).events]
            told += [operation for operation in operations if operation.namespace == orders]
    assert [operation.document_id for operation in told] == [raw_id("told")]
    for _ in range(2):
        with pytest.raises(NotKeptError, match="position"):
            await captured.source.check_kept(before)
    now = await captured.source.check_kept(None)
    await captured.source.check_kept(now)
