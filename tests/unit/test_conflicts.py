"""Unique values that are handed round: what leaves the target, what stays as it was, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from bson import Int64
from typing_extensions import override

from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import document_id
from d5agent.core.replay.pace import Pace, RateLimit
from d5agent.core.replay.replay import Write, WriteBatch
from d5agent.steps.log.reader import LogReader
from d5agent.steps.replay.checkpoint import load_checkpoint
from d5agent.steps.replay.conflicts import ConflictResolver
from d5agent.steps.replay.lanes import Lanes
from d5agent.steps.replay.replayer import Replayer
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import Op, insert, rename, update
from tests.fakes.documents import FakeDatabase, raw_document, raw_id
from tests.fakes.events import ITEMS
from tests.fakes.indexes import UniqueIndex, sparse
from tests.fakes.machine import FakeJournal
from tests.fakes.mortal import Life
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeReader, FakeTarget
from tests.property.histories import UNIQUE, Recording, shuffled
from tests.property.rehearsal import Manner, Rehearsal

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Failure
    from d5agent.ports import CollectionFacts

USERS = Namespace("shop", "users")


class WatchedTarget(FakeTarget):
    """Notes which documents are deleted."""

    def __init__(self, database: FakeDatabase, *, shuffle: random.Random | None = None) -> None:
        super().__init__(database, shuffle=shuffle)
        self.deleted: list[DocumentId] = []

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        self.deleted += [write.id for write in batch.writes if write.document is None]
        return await super().write(batch)


@dataclass(kw_only=True)
class Case:
    """A target whose users have unique values, and a writer into it."""

    unique: frozenset[UniqueIndex] = sparse("u")
    target: WatchedTarget = field(init=False)
    writer: ConflictResolver = field(init=False)

    def __post_init__(self) -> None:
        self.target = WatchedTarget(FakeDatabase(unique={USERS: self.unique}))
        lanes = Lanes(
            target=self.target,
            clock=FakeClock(),
            journal=FakeJournal(),
            pace=Pace(lanes=2),
            limit=RateLimit(per_second=None),
        )
        self.writer = ConflictResolver(lanes=lanes, target=self.target)

    def put(self, *documents: Mapping[str, object]) -> None:
        """Let the target hold documents."""
        for document in documents:
            assert self.target.database.put(USERS, raw_id(document["_id"]), raw_document(document)) is None

    async def write(self, *documents: Mapping[str, object]) -> list[DocumentId]:
        """Write documents; return the `_id`s of those that are refused."""
        raw = [raw_document(document) for document in documents]
        writes = tuple(Write(id=document_id(document), document=document) for document in raw)
        return _ids(await self.writer.write([WriteBatch(namespace=USERS, writes=writes)]))

    def found(self) -> dict[DocumentId, bytes]:
        """Return what the target holds."""
        return dict(self.target.database.contents().get(USERS, {}))


def _ids(failures: Iterable[Failure]) -> list[DocumentId]:
    return sorted(failure.write.id for failure in failures)


def users(values: Iterable[object]) -> list[dict[str, object]]:
    """Return documents 0, 1, 2 … with these values."""
    return [{"_id": number, "u": value} for number, value in enumerate(values)]


def held(documents: Iterable[Mapping[str, object]]) -> dict[DocumentId, bytes]:
    return {raw_id(document["_id"]): raw_document(document) for document in documents}


async def test_a_circle_of_fifty_is_turned_and_one_document_leaves_for_a_moment() -> None:
    case = Case(unique=frozenset({*sparse("u"), *sparse("own")}))
    case.put(*[{**user, "own": number} for number, user in enumerate(users(range(50)))])
    turned = [{**user, "own": number} for number, user in enumerate(users([*range(1, 50), 0]))]
    assert await case.write(*turned) == []
    assert case.found() == held(turned)
    assert len(case.target.deleted) == 1


async def test_a_chain_is_followed_and_nothing_leaves() -> None:
    case = Case()
    case.put(*users(range(50)))
    moved = users(range(1, 51))
    assert await case.write(*moved) == []
    assert case.found() == held(moved)
    assert case.target.deleted == []


async def test_who_waits_for_a_document_of_a_later_window_stays_as_it_was() -> None:
    case = Case()
    case.put(*users(range(4)))
    before = case.found()
    # 0 and 1 change places; 2 needs what 3 has, and 3 gives it up later.
    refused = await case.write(*users([1, 0, 3]))
    assert refused == [raw_id(2)]
    assert case.found() == {**before, **held(users([1, 0]))}
    assert len(case.target.deleted) == 1


async def test_of_one_conflict_alone_nobody_is_asked() -> None:
    case = Case()
    case.put(*users(range(2)))

    class Silent(FakeTarget):
        """A reader that must not be asked."""

        @override
        async def facts(self, namespace: Namespace) -> CollectionFacts:
            raise AssertionError

    case.writer.target = Silent(case.target.database)
    assert await case.write({"_id": 0, "u": 1}) == [raw_id(0)]


async def test_a_circle_of_which_one_needs_a_value_of_somebody_else_stays_as_it_was() -> None:
    case = Case(unique=frozenset({*sparse("u"), *sparse("v")}))
    case.put(*users(range(3)), {"_id": "other", "v": "taken"})
    before = case.found()
    turned: list[dict[str, object]] = users([1, 2, 0])
    turned[1]["v"] = "taken"
    assert await case.write(*turned) == [raw_id(0), raw_id(1), raw_id(2)]
    assert case.found() == before
    assert case.target.deleted == []


async def test_a_document_that_left_and_is_refused_for_another_reason_comes_back_as_it_was() -> None:
    case = Case()
    case.put(*users(range(2)))
    before = case.found()

    class Blind(FakeTarget):
        """A reader whose server judges otherwise than it does: there is a holder that nobody sees."""

        @override
        async def write(self, batch: WriteBatch) -> Sequence[Failure]:
            raise AssertionError

    hidden = sparse("v")
    case.target.database.unique = {USERS: frozenset({*sparse("u"), *hidden})}
    case.put({"_id": "other", "v": "taken"})
    seen = FakeDatabase(unique={USERS: sparse("u")}, collections=case.target.database.collections)
    case.writer.target = Blind(seen)
    turned: list[dict[str, object]] = users([1, 0])
    turned[0]["v"] = turned[1]["v"] = "taken"
    assert await case.write(*turned) == [raw_id(0), raw_id(1)]
    assert {id_: case.found()[id_] for id_ in before} == before
    assert len(case.target.deleted) == 1


COMPOUND = UniqueIndex(("u", "v"))
PARTIAL = UniqueIndex(("u",), partial="p")


@pytest.mark.parametrize(
    ("index", "before", "after"),
    [
        (COMPOUND, [{"u": 1, "v": 1}, {"u": 1, "v": 2}], [{"u": 1, "v": 2}, {"u": 1, "v": 1}]),
        (COMPOUND, [{"u": 1}, {"v": 1}], [{"v": 1}, {"u": 1}]),
        (PARTIAL, [{"u": 1, "p": 1}, {"u": 2, "p": 1}], [{"u": 2, "p": 1}, {"u": 1, "p": 1}]),
        (UniqueIndex(("u",)), [{"u": [1, 2]}, {"u": [3]}], [{"u": [3, 4]}, {"u": [2]}]),
        (UniqueIndex(("u",)), [{}, {"u": 1}], [{"u": 1}, {}]),
    ],
)
async def test_two_documents_exchange_values_of_any_unique_index(
    index: UniqueIndex, before: list[dict[str, object]], after: list[dict[str, object]]
) -> None:
    case = Case(unique=frozenset({index}))
    case.put(*[{"_id": number, **fields} for number, fields in enumerate(before)])
    changed = [{"_id": number, **fields} for number, fields in enumerate(after)]
    assert await case.write(*changed) == []
    assert case.found() == held(changed)
    assert len(case.target.deleted) == 1


def rounds(documents: int, count: int, *, in_transactions: bool) -> list[list[Op]]:
    """Return how values are handed round: each takes its neighbour's, by way of none; one list at a time."""
    done: list[list[Op]] = []
    values = list(range(documents))
    for number in range(count):
        released = [update(UNIQUE, {"_id": f"d{n}", "n": number}) for n in range(documents)]
        values = [*values[1:], values[0]]
        taken = [update(UNIQUE, {"_id": f"d{n}", "u": f"v{v}", "n": number}) for n, v in enumerate(values)]
        done += [[*released, *taken]] if in_transactions else [[op] for op in (*released, *taken)]
    return done


@pytest.mark.parametrize("in_transactions", [True, False])
@pytest.mark.parametrize(("documents", "count", "window_bytes"), [(40, 20, 4_000), (12, 20, 1)])
async def test_values_handed_round_among_many_documents_end_where_they_are_in_the_source(
    documents: int, count: int, window_bytes: int, *, in_transactions: bool
) -> None:
    recording = Recording(segment_bytes=5_000)
    recording.cluster.apply(*[insert(UNIQUE, {"_id": f"d{n}", "u": f"v{n}"}) for n in range(documents)])
    recording.begin()
    copy = recording.cluster.database.copy()
    for ops in rounds(documents, count, in_transactions=in_transactions):
        recording.cluster.apply(*ops)
        await recording.capture(7)  # some are looked up late: they are newer than their events
    await recording.finish()
    target = WatchedTarget(copy, shuffle=shuffled(1))
    case = Rehearsal(recording=recording, target=target, manner=Manner(4, window_bytes, 1))
    await case.replay(Life(None))
    assert target.database.contents() == recording.cluster.database.contents()


@pytest.mark.parametrize("is_renamed", [False, True])
async def test_who_waits_is_tried_again_with_the_next_window_unless_the_collection_went_away(
    *, is_renamed: bool
) -> None:
    stage = Stage()
    for database in (stage.database, stage.target.database):
        database.unique[ORDERS] = sparse("u")
        for number in (1, 2):
            database.put(ORDERS, raw_id(number), raw_document({"_id": number, "u": number}))
    await stage.capture(update(ORDERS, {"_id": 2}), update(ORDERS, {"_id": 1, "u": 2}))
    *_, first = [link async for link in LogReader(store=stage.store).links()]
    # The target has another holder, which lets go before a later window.
    stage.target.database.remove(ORDERS, raw_id(2))
    stage.target.database.put(ORDERS, raw_id("late"), raw_document({"_id": "late", "u": 2}))
    replayer = await replayer_of(stage)
    await replayer.apply_log(LogReader(store=stage.store).links())
    assert replayer.checkpoint.sequence == first.commit.sequence
    assert stage.target.database.find(ORDERS, raw_id(1)) == raw_document({"_id": 1, "u": 1})  # as it was
    stage.target.database.remove(ORDERS, raw_id("late"))
    if is_renamed:
        await stage.capture(rename(ORDERS, ITEMS), insert(ITEMS, {"_id": 7}))
    else:
        await stage.capture(insert(ITEMS, {"_id": 7}))
    await replayer.apply_log(LogReader(store=stage.store).links())
    written = stage.target.database.find(ORDERS, raw_id(1))
    assert written == (None if is_renamed else raw_document({"_id": 1, "u": 2}))
    assert bool(replayer.checkpoint.doubts.documents) is is_renamed
    assert not await replayer.settle()
    assert stage.target.database.find(ITEMS if is_renamed else ORDERS, raw_id(1)) == raw_document({"_id": 1, "u": 2})


async def replayer_of(stage: Stage) -> Replayer:
    """Return a replayer that begins where the stage's checkpoint is."""
    return Replayer(
        reader=LogReader(store=stage.store),
        target=stage.target,
        target_reader=stage.target,
        source=FakeReader(stage.cluster),
        states=stage.states,
        journal=FakeJournal(),
        checkpoint=await load_checkpoint(stage.states, "run"),
        clock=stage.clock,
        pace=Pace(lanes=2),
        window_bytes=10_000,
    )


async def test_a_circle_larger_than_what_is_read_from_the_source_at_a_time_is_turned_at_the_end() -> None:
    recording = Recording(segment_bytes=5_000)
    count = 120
    recording.cluster.apply(*[insert(UNIQUE, {"_id": f"d{n}", "u": f"v{n}"}) for n in range(count)])
    recording.begin()
    copy = recording.cluster.database.copy()
    (ops,) = rounds(count, 1, in_transactions=True)
    recording.cluster.apply(*ops)
    await recording.finish()
    target = WatchedTarget(copy)
    case = Rehearsal(recording=recording, target=target, manner=Manner(2, 1_000_000, 1))
    case.checkpoint.sequence = recording.sequence  # as after a kill: nothing to read, all in doubt
    case.checkpoint.doubts.documents = {UNIQUE: {raw_id(f"d{n}") for n in range(count)}}
    await case.states.save("restore_checkpoint", case.checkpoint.to_json())
    await case.replay(Life(None))
    assert target.database.contents() == recording.cluster.database.contents()
    assert len(target.deleted) == 1


@pytest.mark.parametrize("held", [Int64(2), 2], ids=["the target has the new type", "the target has the old type"])
async def test_what_is_in_doubt_may_be_in_the_source_under_an_id_of_another_type(held: object) -> None:
    stage = Stage()
    new = raw_document({"_id": Int64(2), "n": 1})
    stage.database.put(ORDERS, raw_id(Int64(2)), new)
    stage.target.database.put(ORDERS, raw_id(held), raw_document({"_id": held, "n": 0}))
    replayer = await replayer_of(stage)
    replayer.checkpoint.doubts.add(ORDERS, raw_id(2))
    assert not await replayer.settle()
    assert stage.target.database.contents() == {ORDERS: {raw_id(Int64(2)): new}}
    assert not replayer.checkpoint.doubts.documents
