"""The Target and the DocumentReader: in memory, and on a real MongoDB server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp, decode, encode
from bson.datetime_ms import DatetimeMS
from pymongo import AsyncMongoClient

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.core.log.operation import OWN_DATABASE, ClusterTime, Namespace
from d5agent.core.log.raw import document_id
from d5agent.core.replay.replay import Barrier, Write, WriteBatch
from d5agent.core.replay.unique_key import comparable, keys_of, unique_indexes
from d5agent.errors import TooManyBytesError
from tests.fakes.documents import raw_id
from tests.fakes.indexes import UniqueIndex
from tests.fakes.target import FakeTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from d5agent.core.replay.replay import Failure
    from d5agent.drill.servers import Mongod
    from d5agent.ports import DocumentReader, Target

EVERY_TYPE: dict[str, Any] = {
    "_id": {"z": 1, "a": Int64(1)},
    "double": 1.5,
    "negative_zero": -0.0,
    "nan": float("nan"),
    "string": "a\0b é 漢 𝄞",
    "document": {"b": {"z": 1, "a": [{}, [], None]}, "a": 1, "": 0},
    "binary": Binary(b"\x01\x02", 5),
    "vector": Binary(b"\x27\0\0\0\x80\x3f", 9),
    "own_binary": Binary(b"\xff", 200),
    "old_binary": Binary(b"\x01\x02", 2),
    "uuid": Binary(bytes(range(16)), 4),
    "object_id": ObjectId(b"0123456789ab"),
    "boolean": False,
    "date": DatetimeMS(-1),
    "far_date": DatetimeMS(2**62),
    "null": None,
    "regex": Regex("a.b", "im"),
    "code": Code("f()"),
    "code_with_scope": Code("f()", {"x": Int64(1)}),
    "int32": -1,
    "timestamp": Timestamp(7, 8),
    "no_time": Timestamp(0, 0),
    "int64": Int64(1),
    "decimal": Decimal128(Decimal("1.10")),
    "min": MinKey(),
    "max": MaxKey(),
    "a.b": 1,
    "after": "the end",
}
SPARSE = UniqueIndex(("u",), is_sparse=True)
IDS: tuple[object, ...] = (
    *(
        1,
        1.5,
        Int64(2**40),
        Decimal128("7.10"),
        "",
        "x/y~%",
        "507f1f77bcf86cd799439011",
        True,
        None,
        {},
        {"a": 1, "b": 2},
    ),
    *({"b": 2, "a": 1}, ObjectId(b"0123456789ab"), Binary(b"", 0), Binary(b"\x01", 128), DatetimeMS(2**60)),
    *(Timestamp(1, 2), MinKey(), MaxKey(), Code("f"), float("nan"), float("inf"), "x" * 1000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Both sides of one database, and how an application makes a unique index in it."""

    target: Target
    reader: DocumentReader
    make_unique: Callable[[Namespace, UniqueIndex], Awaitable[None]]
    name: str

    def collection(self, name: str) -> Namespace:
        return Namespace(self.name, name)

    async def write(self, namespace: Namespace, *documents: dict[str, Any], is_new: bool = True) -> list[Failure]:
        """Write documents."""
        return list(await self.target.write(_batch(namespace, documents, is_new=is_new)))

    async def read(self, namespace: Namespace) -> list[bytes]:
        """Return all documents of a collection, in the order of a scan."""
        return [document async for page in self.reader.scan(namespace) for document in page]

    async def apply(self, kind: str, namespace: Namespace, *, to: Namespace | None = None) -> None:
        """Apply a barrier."""
        barrier = Barrier(kind=kind, namespace=namespace, rename_to=to, cluster_time=ClusterTime(1, 1))
        await self.target.apply(barrier)

    async def collections(self) -> list[str | None]:
        """Return the names of this database's collections."""
        return [n.collection for n in await self.reader.collections() if n.database == self.name]


def _batch(namespace: Namespace, documents: Iterable[dict[str, Any]], *, is_new: bool = True) -> WriteBatch:
    raw = [encode(document) for document in documents]
    return WriteBatch(
        namespace=namespace, writes=tuple(Write(id=document_id(d), document=d, is_new=is_new) for d in raw)
    )


def _deletes(namespace: Namespace, *ids: object) -> WriteBatch:
    return WriteBatch(namespace=namespace, writes=tuple(Write(id=raw_id(id_), document=None) for id_ in ids))


@pytest.fixture(params=["fake", "mongodb"])
async def database(request: pytest.FixtureRequest, mongod: Mongod, fresh_name: str) -> AsyncIterator[Database]:
    if request.param == "fake":
        fake = FakeTarget()

        async def make_unique_fake(namespace: Namespace, index: UniqueIndex) -> None:
            await fake.create_collection(namespace)
            fake.database.unique[namespace] = frozenset({index})

        yield Database(target=fake, reader=fake, make_unique=make_unique_fake, name=fresh_name)
        return
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongod.uri)
    async with client, open_mongo(mongod.uri, side="target") as opened:

        async def make_unique(namespace: Namespace, index: UniqueIndex) -> None:
            collection = client[namespace.database][namespace.collection or ""]
            await collection.create_index([(field, 1) for field in index.fields], **index.options)

        clock = SystemClock()
        yield Database(
            target=MongoTarget(opened, clock=clock),
            reader=MongoReader(opened, side="target", clock=clock),
            make_unique=make_unique,
            name=fresh_name,
        )
        await client.drop_database(fresh_name)


@pytest.mark.parametrize("is_new", [True, False], ids=["insert", "replacement"])
async def test_every_type_and_the_order_of_fields_come_back_byte_for_byte(database: Database, *, is_new: bool) -> None:
    orders = database.collection("orders")
    backwards = {"_id": "backwards", **dict(reversed(list(EVERY_TYPE.items())[1:]))}
    for _ in range(2):
        assert not await database.write(orders, EVERY_TYPE, backwards, is_new=is_new)
        expected = {document_id(encode(document)): encode(document) for document in (EVERY_TYPE, backwards)}
        assert await database.reader.fetch(orders, list(expected)) == expected
        assert sorted(await database.read(orders)) == sorted(expected.values())


async def test_documents_with_any_id_are_written_found_and_deleted(database: Database) -> None:
    orders = database.collection("orders")
    documents = [{"_id": id_, "n": number} for number, id_ in enumerate(IDS)]
    expected = {raw_id(document["_id"]): encode(document) for document in documents}
    for is_new in (True, False, True):
        assert not await database.write(orders, *documents, is_new=is_new)
        assert await database.reader.fetch(orders, list(expected)) == expected
    assert not await database.target.write(_deletes(orders, *IDS[:-1]))
    assert await database.read(orders) == [encode(documents[-1])]


async def test_a_batch_may_write_and_delete_and_be_repeated(database: Database) -> None:
    orders = database.collection("orders")
    await database.write(orders, {"_id": 1, "old": True}, {"_id": 2})
    batch = WriteBatch(
        namespace=orders,
        writes=(
            *_batch(orders, [{"_id": 1, "new": True}], is_new=False).writes,
            *_batch(orders, [{"_id": 3}]).writes,
            *_deletes(orders, 2, "never there").writes,
        ),
    )
    for _ in range(2):
        assert not await database.target.write(batch)
        assert await database.read(orders) == [encode({"_id": 1, "new": True}), encode({"_id": 3})]


async def test_deletes_in_a_collection_that_is_not_there_do_nothing(database: Database) -> None:
    assert not await database.target.write(_deletes(database.collection("nowhere"), 1))


@pytest.mark.parametrize("fields", [{"n": 2}, {"t": Timestamp(0, 0)}], ids=["plain", "no time"])
async def test_equal_numbers_are_one_id_and_a_replacement_brings_its_own_type(
    database: Database, fields: dict[str, Any]
) -> None:
    orders = database.collection("orders")
    await database.write(orders, {"_id": 1, "n": 1})
    replaced = {"_id": 1.0, **fields}
    assert not await database.write(orders, replaced, is_new=True)
    assert await database.read(orders) == [encode(replaced)]
    assert await database.reader.fetch(orders, [raw_id(Int64(1))]) == {raw_id(1.0): encode(replaced)}
    await database.target.write(_deletes(orders, Decimal128("1.00")))
    assert await database.read(orders) == []


@pytest.mark.parametrize(("before", "after"), [({"a": 1}, {"a": 1.0}), ({"a": [1.0]}, {"a": [Int64(1)]})])
async def test_a_replacement_brings_the_type_of_a_number_inside_its_id(
    database: Database, before: object, after: object
) -> None:
    orders = database.collection("orders")
    await database.write(orders, {"_id": before, "n": 1})
    assert not await database.write(orders, {"_id": after, "n": 2}, is_new=False)
    assert await database.read(orders) == [encode({"_id": after, "n": 2})]


@pytest.mark.parametrize("is_new", [True, False], ids=["insert", "replacement"])
async def test_each_write_that_a_unique_index_forbids_is_told_and_the_others_are_done(
    database: Database, *, is_new: bool
) -> None:
    orders = database.collection("orders")
    await database.make_unique(orders, SPARSE)
    await database.write(orders, {"_id": "holder", "u": 1}, {"_id": "other", "u": 2}, {"_id": "free"})
    wanted = ({"_id": 1, "u": 1}, {"_id": 2, "u": 3}, {"_id": 3, "u": 2}, {"_id": 4}, {"_id": "free", "u": 1})
    failures = await database.write(orders, *wanted, is_new=is_new)
    assert {failure.write.id for failure in failures} == {raw_id(1), raw_id(3), raw_id("free")}
    assert all(failure.is_conflict and failure.index == "u_1" for failure in failures)
    assert all(failure.namespace == orders and "u_1" in failure.reason for failure in failures)
    ids = {document_id(document) for document in await database.read(orders)}
    assert ids == {raw_id(id_) for id_ in ("holder", "other", "free", 2, 4)}


DENSE = UniqueIndex(("u",))
COMPOUND = UniqueIndex(("u", "v"), is_sparse=True)
PARTIAL = UniqueIndex(("u",), partial="p")
MEETINGS: list[tuple[UniqueIndex, dict[str, Any], dict[str, Any], bool]] = [
    (DENSE, {}, {}, True),
    (DENSE, {}, {"u": None}, True),
    (DENSE, {"u": 1}, {"u": 1.0}, True),
    (DENSE, {"u": "1"}, {"u": 1}, False),
    (DENSE, {"u": [1, 2]}, {"u": 2}, True),
    (DENSE, {"u": [1, 2]}, {"u": [3, Int64(1)]}, True),
    (DENSE, {"u": [1, 2]}, {"u": [3]}, False),
    (DENSE, {"u": []}, {"u": []}, True),
    (DENSE, {"u": []}, {"u": None}, False),
    (DENSE, {"u": [1, 1]}, {"u": {"a": 1}}, False),
    (SPARSE, {}, {}, False),
    (SPARSE, {"u": None}, {"u": None}, True),
    (SPARSE, {"u": [[1]]}, {"u": [1]}, False),
    (COMPOUND, {}, {}, False),
    (COMPOUND, {"u": 1}, {"u": 1}, True),
    (COMPOUND, {"u": 1}, {"u": 1, "v": None}, True),
    (COMPOUND, {"u": 1, "v": 1}, {"u": 1, "v": 2}, False),
    (COMPOUND, {"u": [1, 2], "v": 1}, {"v": 1, "u": 2}, True),
    (PARTIAL, {"u": 1}, {"u": 1, "p": 1}, False),
    (PARTIAL, {"p": 1}, {"p": None}, True),
    (PARTIAL, {"u": 1, "p": 1}, {"u": 1, "p": 1}, True),
]


@pytest.mark.parametrize(("index", "first", "second", "do_meet"), MEETINGS)
async def test_which_documents_meet_in_a_unique_index(
    database: Database, index: UniqueIndex, first: dict[str, Any], second: dict[str, Any], *, do_meet: bool
) -> None:
    orders = database.collection("orders")
    await database.make_unique(orders, index)
    assert set((await database.reader.facts(orders)).indexes) == {index.name}
    assert not await database.write(orders, {"_id": 1, **first}, is_new=False)
    failures = await database.write(orders, {"_id": 2, **second}, is_new=False)
    assert [failure.index for failure in failures] == [index.name] * do_meet


async def test_a_document_may_keep_its_own_unique_value(database: Database) -> None:
    orders = database.collection("orders")
    await database.make_unique(orders, SPARSE)
    await database.write(orders, {"_id": 1, "u": 1})
    assert not await database.write(orders, {"_id": 1, "u": 1, "n": 2}, is_new=True)


async def test_more_writes_than_a_command_takes_are_all_done(database: Database) -> None:
    orders = database.collection("orders")
    documents = [{"_id": number, "filling": "x" * 100} for number in range(2500)]
    assert not await database.write(orders, *documents)
    assert await database.read(orders) == [encode(document) for document in documents]
    large = [{"_id": number, "filling": "x" * 6_000_000} for number in range(3)]
    assert not await database.write(orders, *large, is_new=False)
    ids = [raw_id(number) for number in range(3)]
    assert await database.reader.fetch(orders, ids) == {raw_id(d["_id"]): encode(d) for d in large}
    with pytest.raises(TooManyBytesError):
        await database.reader.fetch(orders, ids, most_bytes=12_000_000)
    assert len(await database.reader.fetch(orders, ids, most_bytes=20_000_000)) == len(ids)
    assert len(await database.reader.fetch(orders, ids[:1], most_bytes=1_000)) == 1


async def test_absent_documents_are_left_out(database: Database) -> None:
    orders = database.collection("orders")
    assert await database.reader.fetch(orders, [raw_id(1)]) == {}
    await database.write(orders, {"_id": 1})
    assert await database.reader.fetch(orders, [raw_id(2), raw_id(1)]) == {raw_id(1): encode({"_id": 1})}
    assert await database.reader.fetch(orders, []) == {}


async def test_a_scan_is_in_the_order_of_ids(database: Database) -> None:
    orders = database.collection("orders")
    ids: list[object] = [MaxKey(), "b", "a", 10, 9.5, Int64(-1), Decimal128("9.75"), ObjectId(), None, True]
    await database.write(orders, *[{"_id": id_} for id_ in ids])
    found = [document_id(document) for document in await database.read(orders)]
    numbers = [raw_id(id_) for id_ in (Int64(-1), 9.5, Decimal128("9.75"), 10)]
    assert [id_ for id_ in found if id_ in numbers] == numbers
    assert [id_ for id_ in found if id_ in {raw_id("a"), raw_id("b")}] == [raw_id("a"), raw_id("b")]
    assert set(found) == {raw_id(id_) for id_ in ids}


async def test_two_scans_may_run_beside_each_other_and_be_given_up(database: Database) -> None:
    orders = database.collection("orders")
    await database.write(orders, *[{"_id": number} for number in range(10)])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(database.read(orders)) for _ in range(3)]
    assert all(len(task.result()) == 10 for task in tasks)
    scan = database.reader.scan(orders)
    assert await anext(scan)
    await scan.aclose()
    assert await database.read(database.collection("nowhere")) == []


async def test_facts_are_indexes_and_options_and_counts_stand_apart(database: Database) -> None:
    one, other = database.collection("one"), database.collection("other")
    for namespace in (one, other):
        await database.make_unique(namespace, SPARSE)
    await database.write(one, {"_id": 1}, {"_id": 2})
    facts, others = await database.reader.facts(one), await database.reader.facts(other)
    for exactly in (False, True):
        assert [await database.reader.count(name, exactly=exactly) for name in (one, other)] == [2, 0]
    assert set(facts.indexes) == {"u_1"}
    assert facts.indexes == others.indexes
    assert dict(facts.options) == {}
    assert facts.exists
    nowhere = database.collection("nowhere")
    absent = await database.reader.facts(nowhere)
    assert (dict(absent.indexes), dict(absent.options), absent.exists) == ({}, {}, False)
    assert await database.reader.count(nowhere, exactly=True) == 0


async def test_pages_are_equal_when_all_in_them_is(database: Database) -> None:
    one, same, other = (database.collection(name) for name in ("one", "same", "other"))
    documents: list[dict[str, Any]] = [{"_id": number, "n": 1} for number in range(250)]
    for namespace in (one, same):
        assert not await database.write(namespace, *documents)
    assert not await database.write(other, *documents[:-1], {"_id": 249, "n": 2})
    read = [[page async for page in database.reader.scan(namespace)] for namespace in (one, same, other)]
    assert read[0] == read[1] != read[2]
    assert [sum(map(len, pages)) for pages in read] == [250, 250, 250]
    assert read[0][:-1] == read[2][:-1]
    assert read[0] == [list(page) for page in read[1]]
    ids = [raw_id(number) for number in range(250)]
    found = [await database.reader.fetch(namespace, ids) for namespace in (one, same, other)]
    assert found[0] == found[1] != found[2]
    assert found[2][raw_id(249)] == encode({"_id": 249, "n": 2})
    assert list(found[0]) == ids
    assert len(found[0]) == 250


async def test_the_collections_of_applications_are_listed_and_not_our_own(database: Database) -> None:
    orders, empty = database.collection("orders.a b é"), database.collection("empty")
    for _ in range(2):
        await database.target.create_collection(empty)
    await database.write(orders, {"_id": 1})
    await database.write(Namespace(OWN_DATABASE, "marks"), {"_id": database.name})
    assert await database.collections() == ["empty", "orders.a b é"]
    listed = {namespace.database for namespace in await database.reader.collections()}
    assert not listed & {OWN_DATABASE, "admin", "config", "local"}
    assert (await database.reader.facts(empty)).exists
    assert await database.reader.count(empty, exactly=False) == 0


async def test_a_drop_removes_a_collection_and_may_be_repeated(database: Database) -> None:
    orders = database.collection("orders")
    await database.make_unique(orders, SPARSE)
    await database.write(orders, {"_id": 1, "u": 1})
    for _ in range(2):
        await database.apply("drop", orders)
        assert await database.collections() == []
    assert not await database.write(orders, {"_id": 1, "u": 1}, {"_id": 2, "u": 1})
    assert not (await database.reader.facts(orders)).indexes


async def test_a_rename_takes_documents_and_indexes_along_and_may_be_repeated(database: Database) -> None:
    old, new = database.collection("old"), database.collection("new")
    await database.make_unique(old, SPARSE)
    await database.write(old, {"_id": 1, "u": 1})
    await database.write(new, {"_id": 2})
    for _ in range(2):
        await database.apply("rename", old, to=new)
        assert await database.collections() == ["new"]
        assert await database.read(new) == [encode({"_id": 1, "u": 1})]
    assert [failure.write.id for failure in await database.write(new, {"_id": 3, "u": 1})] == [raw_id(3)]


async def test_a_rename_of_what_is_not_there_changes_nothing(database: Database) -> None:
    new = database.collection("new")
    await database.apply("rename", database.collection("old"), to=new)
    await database.write(new, {"_id": 1})
    await database.apply("rename", database.collection("old"), to=new)
    assert await database.read(new) == [encode({"_id": 1})]


async def test_a_dropped_database_is_gone_and_others_stay(database: Database) -> None:
    beside = Namespace(f"{database.name}-beside", "orders")
    for namespace in (database.collection("a"), database.collection("b"), beside):
        await database.write(namespace, {"_id": 1})
    for _ in range(2):
        await database.apply("dropDatabase", Namespace(database.name))
        assert await database.collections() == []
    assert await database.read(beside) == [encode({"_id": 1})]
    await database.apply("dropDatabase", Namespace(beside.database))


@pytest.mark.parametrize("is_new", [True, False], ids=["insert", "replacement"])
async def test_field_names_with_dollars_and_dots_are_written_as_they_are(database: Database, *, is_new: bool) -> None:
    orders = database.collection("orders")
    documents: list[dict[str, Any]] = [
        {"_id": 1, "a.b": 1, "a": {"$inner": {"$set": 1}, "c.d": "$a"}},
        {"_id": 2, "t": Timestamp(0, 0), "a": {"$inner": "$$NOW", "c.d": 1}},
        {"_id": 3, "$outer": 1},
        {"_id": 4, "$outer": 1, "t": Timestamp(0, 0)},
    ]
    for _ in range(2):
        assert not await database.write(orders, *documents, is_new=is_new)
        assert await database.read(orders) == [encode(document) for document in documents]


@pytest.mark.parametrize(
    ("index", "document", "asked", "expected"),
    [
        (UniqueIndex(("u",)), {"u": 5}, [(5.0,)], True),
        (UniqueIndex(("u",)), {"u": 5}, [(6,), ("5",)], False),
        (UniqueIndex(("u",)), {}, [(None,)], True),
        (UniqueIndex(("u",)), {"u": [1, 2]}, [(9,), (2,)], True),
        (UniqueIndex(("u",)), {"u": []}, [([],)], True),
        (UniqueIndex(("u",)), {"u": {"x": 1}}, [({"x": 1},)], True),
        (UniqueIndex(("u",)), {"u": "abc"}, [(Regex("a"),)], False),
        (UniqueIndex(("u",)), {"u": Regex("a")}, [(Regex("a"),)], True),
        (UniqueIndex(("u", "v")), {"u": 1, "v": 2}, [(1, 2)], True),
        (UniqueIndex(("u", "v")), {"u": 1, "v": 2}, [(2, 1)], False),
        (UniqueIndex(("u",), partial="p"), {"u": 1, "p": 0}, [(1,)], True),
        (UniqueIndex(("u",), partial="p"), {"u": 1}, [(1,)], False),
        (UniqueIndex(("u",), is_sparse=True), {"u": None}, [(None,)], True),
    ],
)
async def test_who_holds_a_value_of_a_unique_index(
    database: Database, index: UniqueIndex, document: dict[str, Any], asked: list[tuple[Any, ...]], *, expected: bool
) -> None:
    namespace = database.collection("c")
    await database.make_unique(namespace, index)
    await database.write(namespace, {"_id": "it", **document}, {"_id": "other", "u": "none", "v": "of these", "p": 1})
    (known,) = unique_indexes((await database.reader.facts(namespace)).indexes)
    keys = [tuple(map(raw_id, key)) for key in asked]
    holders = await database.reader.holders(namespace, known, keys)
    assert [document_id(holder) for holder in holders] == ([raw_id("it")] if expected else [])
    values = {comparable(known, key) for holder in holders for key in keys_of(known, holder, is_in=True)}
    assert bool(values & {comparable(known, key) for key in keys}) is expected


async def test_a_thousand_values_are_asked_for_at_once(database: Database) -> None:
    namespace = database.collection("c")
    await database.make_unique(namespace, UniqueIndex(("u",)))
    await database.write(namespace, *[{"_id": number, "u": number} for number in range(0, 1_000, 2)])
    (known,) = unique_indexes((await database.reader.facts(namespace)).indexes)
    assert len(await database.reader.holders(namespace, known, [(raw_id(number),) for number in range(1_000)])) == 500


@pytest.mark.parametrize("name", ["a..b", "trailing.", "a/b\\c d"])
async def test_a_collection_of_any_name_is_written_read_listed_renamed_and_dropped(
    database: Database, name: str
) -> None:
    odd, other = database.collection(name), database.collection(f"{name}2.")
    await database.target.create_collection(odd)
    await database.target.create_collection(odd)
    await database.write(odd, {"_id": 1})
    facts = await database.reader.facts(odd)
    assert facts.exists
    assert [await database.reader.count(odd, exactly=exactly) for exactly in (True, False)] == [1, 1]
    assert list(await database.reader.fetch(odd, [raw_id(1)])) == [raw_id(1)]
    await database.apply("rename", odd, to=other)
    assert await database.collections() == [other.collection]
    assert await database.read(other) == [encode({"_id": 1})]
    await database.apply("drop", other)
    assert await database.collections() == []


async def test_a_refusal_that_quotes_what_no_decoder_takes_is_told(database: Database) -> None:
    orders = database.collection("orders")
    await database.make_unique(orders, SPARSE)
    value = {"$ref": "c", "$id": {"$numberDecimal": "xx"}, "far": DatetimeMS(2**60)}
    one, two = (encode({"_id": n, "u": value}).replace(b"xx\0", b"\xff\xfe\0") for n in (1, 2))
    for document in (one, two):
        write = Write(id=document_id(document), document=document)
        failures = await database.target.write(WriteBatch(namespace=orders, writes=(write,)))
        assert [failure.is_conflict for failure in failures] == ([] if document is one else [True])
    (index,) = unique_indexes((await database.reader.facts(orders)).indexes)
    holders = await database.reader.holders(orders, index, keys_of(index, two))
    assert [document_id(holder) for holder in holders] == [raw_id(1)]


async def _exchange(database: Database, namespace: Namespace, before: bytes | None, after: bytes | None) -> str:
    id_ = document_id(after or before or b"")
    return await database.target.exchange(namespace, Write(id=id_, document=after), expected=before)


async def test_an_exchange_writes_only_over_what_is_expected(database: Database) -> None:
    namespace = database.collection("orders")
    one, two, others = (encode({"_id": 1, "n": n}) for n in (1, 2, 3))
    changed = "it was changed in the target"
    assert await _exchange(database, namespace, one, two) == changed, "there is none"
    assert await _exchange(database, namespace, one, None) == "", "there is none, as it is to be"
    assert await _exchange(database, namespace, None, one) == ""
    assert await database.read(namespace) == [one]
    assert await _exchange(database, namespace, one, two) == ""
    assert await _exchange(database, namespace, one, two) == "", "again, as after a crash"
    assert await _exchange(database, namespace, one, others) == changed
    assert await _exchange(database, namespace, one, None) == changed
    assert await _exchange(database, namespace, None, others) != ""
    assert await database.read(namespace) == [two]
    assert await _exchange(database, namespace, two, None) == ""
    assert await database.read(namespace) == []


async def test_an_exchange_stores_every_type_as_it_is(database: Database) -> None:
    namespace = database.collection("types")
    document, other = encode(EVERY_TYPE), encode({"_id": EVERY_TYPE["_id"], "before": Timestamp(0, 0)})
    dollar = encode({"_id": EVERY_TYPE["_id"], "$price": 5})
    for before, after in ((None, other), (other, document), (document, dollar), (dollar, other), (other, dollar)):
        assert await _exchange(database, namespace, before, after) == ""
        assert await database.read(namespace) == [after]
    assert await _exchange(database, namespace, None, encode({"_id": 2, "$price": 5})) == ""


async def test_an_exchange_that_a_unique_index_forbids_says_so(database: Database) -> None:
    namespace = database.collection("unique")
    await database.make_unique(namespace, SPARSE)
    await database.write(namespace, {"_id": 1, "u": "a"}, {"_id": 2, "u": "b"})
    two = encode({"_id": 2, "u": "b"})
    assert "unique index" in await _exchange(database, namespace, two, encode({"_id": 2, "u": "a"}))
    assert "unique index" in await _exchange(database, namespace, None, encode({"_id": 3, "u": "a"}))
    assert two in await database.read(namespace)
    assert len(await database.read(namespace)) == 2


async def test_of_exchanges_at_the_same_time_none_overwrites_another(database: Database) -> None:
    namespace = database.collection("counter")
    await database.write(namespace, {"_id": 1, "n": 0})

    async def count(times: int) -> int:
        done = 0
        for _ in range(times):
            (now,) = await database.read(namespace)
            after = encode({"_id": 1, "n": decode(now)["n"] + 1, "by": id(asyncio.current_task())})
            done += await _exchange(database, namespace, now, after) == ""
        return done

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(count(5)) for _ in range(4)]
    (end,) = await database.read(namespace)
    assert decode(end)["n"] == sum(task.result() for task in tasks) > 0


async def test_false_and_zero_attributes_of_indexes_are_named(mongod: Mongod, fresh_name: str) -> None:
    namespace = Namespace(fresh_name, "sessions")
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongod.uri)
    async with client, open_mongo(mongod.uri, side="target") as opened:
        indexes = [
            {"key": {"at": 1}, "name": "at_1", "expireAfterSeconds": 0},
            {"key": {"n": 1}, "name": "n_1", "sparse": False},
            {"key": {"place": "2d"}, "name": "place_2d", "min": 0, "max": 10},
        ]
        await client[fresh_name].command({"createIndexes": "sessions", "indexes": indexes})
        clustered = {"key": {"_id": 1}, "unique": True}
        await client[fresh_name].command({"create": "plain", "validator": {}, "validationLevel": "strict"})
        await client[fresh_name].command({"create": "days", "clusteredIndex": clustered, "expireAfterSeconds": 0})
        reader = MongoReader(opened, side="target", clock=SystemClock())
        facts = await reader.facts(namespace)
        assert facts.indexes == {
            "at_1": '{"at": 1} {"expireAfterSeconds": 0}',
            "n_1": '{"n": 1} {"sparse": false}',
            "place_2d": '{"place": "2d"} {"max": 10, "min": 0}',
        }
        assert unique_indexes(facts.indexes) == []
        assert (await reader.facts(Namespace(fresh_name, "plain"))).options == {}
        assert (await reader.facts(Namespace(fresh_name, "days"))).options["expireAfterSeconds"] == "0"
        await client.drop_database(fresh_name)
