"""Change streams through the gateway: exact events, opaque tokens, exact resumption."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import bson
import pytest
from bson import (
    Binary,
    Code,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from bson.raw_bson import RawBSONDocument

from d5agent.drill.servers import Mongod, ServerOptions
from tests.integration.test_gateway_rig import (
    Batch,
    Client,
    Tail,
    events_of,
    fence_in,
    fresh_name,
    read_to,
    rig_before,
)
from tests.running import running

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pymongo.asynchronous.client_session import AsyncClientSession as Session
    from pymongo.asynchronous.database import AsyncDatabase

    Database = AsyncDatabase[dict[str, Any]]


ABSENT = {"wallTime", "lsid", "txnNumber", "collectionUUID"}


@pytest.fixture(scope="module")
def roomy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A server whose cache holds a transaction of more than 16 MB."""
    folder = tmp_path_factory.mktemp("roomy")
    with running(Mongod(folder, options=ServerOptions(cache_gigabytes=1.0)), folder) as server:
        yield server


def _every_type() -> RawBSONDocument:
    values: dict[str, Any] = {
        "_id": 1,
        "zulu first": 1.5,
        "string": "ü" * 40,
        "document": {"b": 1, "a": {"z": None}},
        "array": [1, [2, {"x": Int64(3)}], "four"],
        "binary": Binary(b"\0\1\2", 5),
        "old binary": Binary(b"old", 2),
        "uuid": Binary.from_uuid(uuid4()),
        "oid": ObjectId(),
        "bool": True,
        "date": datetime(1901, 1, 1, tzinfo=UTC),
        "null": None,
        "regex": Regex("^a.*\\.b$", "imx"),
        "code": Code("f()"),
        "scope": Code("g()", {"wallTime": 1}),
        "int": -1,
        "timestamp": Timestamp(7, 9),
        "long": Int64(1),
        "decimal": Decimal128("-0E+3"),
        "min": MinKey(),
        "max": MaxKey(),
        "lsid": {"wallTime": 1, "_id": 2},
        "": "an empty name",
    }
    body = bson.encode(values)[4:-1]
    body += b"\x06undefined\0"
    body += b"\x0esymbol\0" + struct.pack("<i", 3) + b"ab\0"
    body += b"\x0cpointer\0" + struct.pack("<i", 2) + b"c\0" + b"\1" * 12
    return RawBSONDocument(struct.pack("<i", len(body) + 5) + body + b"\0")


async def _large(database: Database, session: Session) -> None:
    """More than one oplog entry holds."""
    for number in range(3):
        row = {"_id": 1_000 + number, "x": "y" * 6_000_000}
        await database.big.insert_one(row, session=session)


async def _thrice(database: Database, session: Session) -> None:
    """One document, three updates, one clusterTime."""
    for number in range(3):
        await database.a.update_one({"_id": "x"}, {"$set": {"v": number}}, session=session)


async def _many(database: Database, session: Session) -> None:
    """More operations than one byte of a token counts, and a collection made in between."""
    await database.b.insert_many([{"_id": n} for n in range(130)], session=session)
    await database.a.delete_one({"_id": 2}, session=session)


async def _hostile(client: Client, name: str) -> None:
    """Write every kind of event: transactions, long ones, renames, drops."""
    database = client[name]
    await database.a.insert_many([_every_type(), {"_id": "x"}, {"_id": 2, "list": ["z" * 20] * 50}])
    await database.a.update_one({"_id": 2}, [{"$set": {"list": {"$slice": ["$list", 49]}}}])
    async with client.start_session(causal_consistency=False) as session:
        for write in (_large, _thrice, _many):
            await session.with_transaction(partial(write, database))
    await database.a.replace_one({"_id": "x"}, {"w": 1})
    await database.a.update_many({}, {"$set": {"z": 1}, "$unset": {"w": 1}})
    await database.a.create_index("z")
    await database.a.rename("c")
    await database.c.drop()
    await client.drop_database(f"{name}x")
    await client[f"{name}x"].a.insert_one({"_id": 1})
    await client.drop_database(f"{name}x")


def _raw(value: object) -> object:
    return value.raw if isinstance(value, RawBSONDocument) else value


def _fields(document: RawBSONDocument) -> list[tuple[str, object]]:
    """Give a document's fields in order, nested documents as their bytes."""
    return [(key, _raw(value)) for key, value in document.items()]


def _expected(event: RawBSONDocument) -> list[tuple[str, object]]:
    """Give a direct event's fields as DocumentDB would show them, all but the token."""
    fields: list[tuple[str, object]] = []
    for key, value in event.items():
        if key == "updateDescription":
            parts = [each for each in _fields(value) if each[0] != "truncatedArrays"]
            fields.append((key, parts))
        elif key not in ABSENT | {"_id"}:
            fields.append((key, _raw(value)))
    return fields


def _updates(event: RawBSONDocument) -> bool:
    return bool(event["operationType"] == "update")


async def test_events_equal_the_direct_stream_less_what_is_absent(roomy_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(roomy_server) as rig:
        await rig.enable()
        start = await rig.now()
        await _hostile(rig.client, name)
        fence = await fence_in(rig.client, name)
        options: dict[str, Any] = {"startAtOperationTime": start, "fullDocument": "updateLookup"}
        through = events_of(await read_to(rig.client, fence, **options))
        around = events_of(await read_to(rig.direct, fence, **options))
    assert len(through) == len(around) > 140
    assert any("lsid" in event for event in around)
    assert any(e["updateDescription"].get("truncatedArrays") for e in around if _updates(e))
    for one, other in zip(through, around, strict=True):
        shown = [field for field in _fields(one) if field[0] != "_id"]
        assert list(one) == [key for key in other if key not in ABSENT]
        if _updates(one):
            at = [key for key, _ in shown].index("updateDescription")
            shown[at] = "updateDescription", _fields(one["updateDescription"])
        assert shown == _expected(other)
    kinds = {event["operationType"] for event in through}
    assert kinds == {"insert", "update", "replace", "delete", "rename", "drop", "dropDatabase"}


async def test_creations_emit_nothing(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable()
        start = await rig.now()
        await rig.client[name].create_collection("a")
        await rig.client[name].a.create_index("x")
        fence = await fence_in(rig.client, name)
        events = events_of(await read_to(rig.client, fence, startAtOperationTime=start))
    assert [event["documentKey"]["_id"] for event in events] == [fence]


async def test_tokens_have_their_lengths(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable()
        start = await rig.now()
        fence = await fence_in(rig.client, name)
        batches = await read_to(rig.client, fence, startAtOperationTime=start)
    assert [len(event["_id"]["_data"]) for event in events_of(batches)] == [36]
    assert [len((batch.token or {})["_data"]) for batch in batches] == [20] * len(batches)


async def test_resuming_from_every_token_is_exact(roomy_server: Mongod) -> None:
    name = fresh_name()
    only = {"$match": {"ns.db": {"$in": [name, f"{name}x"]}}}
    async with rig_before(roomy_server) as rig:
        await rig.enable()
        start = await rig.now()
        await _hostile(rig.client, name)
        fence = await fence_in(rig.client, name)
        batches = await read_to(rig.client, fence, only, size=3, startAtOperationTime=start)
        expected = [event.raw for event in events_of(batches)]
        assert len(set(expected)) == len(expected)
        for token, rest in _resumptions(batches):
            again = await read_to(rig.client, fence, only, resumeAfter=token)
            assert [event.raw for event in events_of(again)] == expected[rest:]


def _resumptions(batches: list[Batch]) -> Iterable[tuple[dict[str, str], int]]:
    """Pair each token with how many events lie before it; the last ones leave nothing to read."""
    seen = 0
    total = len(events_of(batches))
    for batch in batches:
        for event in batch.events:
            seen += 1
            if seen < total:
                yield dict(event["_id"]), seen
        if batch.token is not None and seen < total:
            yield batch.token, seen


async def test_a_token_resumes_under_another_pipeline(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable()
        await rig.client[name].b.insert_one({"_id": 0})
        start = await rig.now()
        async with (
            rig.client.start_session(causal_consistency=False) as session,
            await session.start_transaction(),
        ):
            for number in range(6):
                row = {"_id": number, "even": number % 2 == 0}
                await rig.client[name].a.insert_one(row, session=session)
        fence = await fence_in(rig.client, name)
        even = {"$match": {"$or": [{"fullDocument.even": True}, {"documentKey._id": fence}]}}
        some = events_of(await read_to(rig.client, fence, even, startAtOperationTime=start))
        assert [e["documentKey"]["_id"] for e in some] == [0, 2, 4, fence]
        rest = events_of(await read_to(rig.client, fence, resumeAfter=some[1]["_id"]))
        assert [e["documentKey"]["_id"] for e in rest] == [3, 4, 5, fence]


async def test_idle_tokens_move_on_and_resume(source_server: Mongod) -> None:
    name = fresh_name()
    async with rig_before(source_server) as rig:
        await rig.enable()
        tail = Tail(rig.client)
        first = await tail.open()
        for database in ("q", "r"):  # each draws a line in the oplog that no event stands for
            await rig.enable(database)
        token = first.token
        while token == first.token:
            batch = await tail.more(wait_ms=100)
            assert not batch.events
            token = batch.token
        await tail.close()
        fence = await fence_in(rig.client, name)
        for each in (first.token, token):
            events = events_of(await read_to(rig.client, fence, resumeAfter=each))
            assert [event["documentKey"]["_id"] for event in events] == [fence]
