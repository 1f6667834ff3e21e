"""What drops, renames and dropDatabases cost a restore: few checkpoints, few mirrors, bounded memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.operation import Namespace, parse_event
from d5agent.core.log.segmenter import Segmenter
from d5agent.core.replay.collation import Collated
from d5agent.core.replay.pace import Pace
from d5agent.core.replay.replay import Barrier, Failure, Unresolved, Window, Write
from d5agent.core.replay.specification import Specification
from d5agent.errors import OperatorError
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.writer import LogWriter
from d5agent.steps.replay.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from d5agent.steps.replay.keeper import Keeper
from d5agent.steps.replay.replayer import Replayer
from d5agent.steps.replay.windows import KnownNames
from tests.fakes.cluster import Op, drop, drop_database, insert, rename
from tests.fakes.commits import WRITER
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.events import ITEMS, ORDERS, at, change
from tests.fakes.machine import FakeJournal
from tests.fakes.one_by_one import OneByOne
from tests.fakes.stage import Stage
from tests.fakes.target import FakeReader, FakeTarget

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

ARCHIVE = Namespace("shop", "archive")
TEMPORARY = 2_000


class CountingTarget(FakeTarget):
    """Notes which barriers it applies."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[Barrier] = []
        self.scanned: list[Namespace] = []
        self.listed = 0

    @override
    async def collections(self) -> Sequence[Namespace]:
        self.listed += 1
        return await super().collections()

    @override
    async def apply(self, barrier: Barrier) -> None:
        self.applied.append(barrier)
        await super().apply(barrier)

    @override
    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        self.scanned.append(namespace)
        async for page in super().scan(namespace):
            yield page


async def logged(stage: Stage, ops: Sequence[Op]) -> None:
    """Let operations happen, each seen at once, and store them as a log."""
    segmenter = Segmenter(max_bytes=1_000_000, max_age_seconds=60)
    log = OneByOne(LogWriter(store=stage.store, clock=stage.clock, writer=WRITER, last=None))
    for number, op in enumerate(ops):
        stage.cluster.apply(op)
        for cut in segmenter.add(parse_event(stage.cluster.event(number)), now=0.0):
            await log.take(cut)
    segmenter.seal(None)
    last = segmenter.drain()
    assert last is not None
    await log.take(last)


def hold(stage: Stage, target: FakeTarget, namespace: Namespace) -> None:
    """Let both sides have a collection from before the log."""
    for database in (stage.database, target.database):
        database.put(namespace, raw_id("held"), raw_document({"_id": "held"}))


def replayer(stage: Stage, target: FakeTarget) -> Replayer:
    return Replayer(
        reader=LogReader(store=stage.store),
        target=target,
        target_reader=target,
        source=FakeReader(stage.cluster),
        states=stage.states,
        journal=FakeJournal(),
        checkpoint=Checkpoint(run_id="run"),
        clock=stage.clock,
        pace=Pace(lanes=2),
        window_bytes=1_000_000,
    )


async def replayed(stage: Stage, target: FakeTarget) -> Checkpoint:
    """Replay the log; see that the target holds what the source does."""
    player = replayer(stage, target)
    await player.apply_log(player.reader.links())
    assert target.database.contents() == stage.database.contents()
    return player.checkpoint


def saves(stage: Stage) -> int:
    return sum(name == CHECKPOINT for name, _ in stage.states.history)


async def test_many_drops_share_one_checkpoint() -> None:
    stage, target = Stage(), CountingTarget()
    names = [Namespace("shop", f"temporary {number}") for number in range(TEMPORARY)]
    await logged(stage, [op for name in names for op in (insert(name, {"_id": 1}), drop(name))])
    checkpoint = await replayed(stage, target)
    assert checkpoint.operations == 2 * TEMPORARY
    assert saves(stage) <= 5
    assert sorted(barrier.namespace for barrier in target.applied) == sorted(names)
    assert checkpoint.doubts == Unresolved()


async def test_a_collection_dropped_again_and_again_is_dropped_once() -> None:
    stage, target = Stage(), CountingTarget()
    await logged(stage, [op for n in range(300) for op in (insert(ORDERS, {"_id": n}), drop(ORDERS))])
    await replayed(stage, target)
    assert len(target.applied) == 1


async def test_renames_of_new_collections_need_no_mirror_each() -> None:
    stage, target = Stage(), CountingTarget()
    await logged(stage, [op for n in range(300) for op in (insert(ORDERS, {"_id": n}), rename(ORDERS, ITEMS))])
    checkpoint = await replayed(stage, target)
    assert stage.states.mirrored <= 3
    assert checkpoint.doubts.whole == {ITEMS}


def temporaries(count: int) -> list[Op]:
    """Return inserts into collections of their own, each renamed onto one name."""
    names = [Namespace("shop", f"temporary {n}") for n in range(count)]
    return [op for n, name in enumerate(names) for op in (insert(name, {"_id": n}), rename(name, ITEMS))]


async def test_renames_of_what_the_target_lacks_share_one_checkpoint() -> None:
    stage, target = Stage(), CountingTarget()
    target.database.put(ITEMS, raw_id("old"), raw_document({"_id": "old"}))
    await logged(stage, [*temporaries(300), insert(ITEMS, {"_id": "more"})])
    checkpoint = await replayed(stage, target)
    assert saves(stage) <= 3
    assert target.listed == 1
    assert [(barrier.kind, barrier.namespace) for barrier in target.applied] == [("drop", ITEMS)]
    assert checkpoint.doubts.whole == {ITEMS}


async def test_a_name_written_after_its_rename_is_in_the_next_window() -> None:
    stage, target = Stage(), CountingTarget()
    other = Namespace("shop", "other")
    cycle = [insert(ORDERS, {"_id": 1}), rename(ORDERS, ITEMS)]
    await logged(
        stage,
        [*cycle, insert(ORDERS, {"_id": 2}), insert(other, {"_id": 3}), rename(other, ARCHIVE), rename(ORDERS, other)],
    )
    checkpoint = await replayed(stage, target)
    assert [barrier.namespace for barrier in target.applied if barrier.rename_to == other] == [ORDERS]
    assert sum(barrier.rename_to is not None for barrier in target.applied) == 1
    assert checkpoint.doubts.whole == {ITEMS, ARCHIVE, other}
    # The second window begins with what takes the first name again. What takes the other's is for the target.
    assert [v["within"] for name, v in stage.states.history if name == CHECKPOINT and v["within"]] == [2, 5]


async def test_a_collection_in_doubt_is_renamed_by_the_target() -> None:
    stage, target = Stage(), CountingTarget()
    await logged(stage, temporaries(1))
    player = replayer(stage, target)
    player.checkpoint.doubts.add(Namespace("shop", "temporary 0"), raw_id("looked up in vain"))
    await player.apply_log(player.reader.links())
    assert [barrier.rename_to for barrier in target.applied] == [ITEMS]
    assert player.checkpoint.doubts.documents == {ITEMS: {raw_id("looked up in vain")}}


@pytest.mark.parametrize("kept", [ITEMS, Namespace("shop", "temporary 1")])
async def test_a_name_with_kept_indexes_is_renamed_by_the_target(kept: Namespace) -> None:
    stage, target = Stage(), CountingTarget()
    await logged(stage, temporaries(2))
    player = replayer(stage, target)
    specifications = {kept: Specification(options=raw_document({}), indexes=())}
    player.keeper = Keeper(target=target, specifications=specifications, lost=set(), journal=FakeJournal())
    await player.apply_log(player.reader.links())
    renamed = [barrier.namespace.collection for barrier in target.applied if barrier.rename_to is not None]
    assert renamed == (["temporary 0", "temporary 1"] if kept == ITEMS else ["temporary 1"])
    assert target.database.contents() == stage.database.contents()


async def test_beside_a_collation_each_rename_is_performed() -> None:
    stage, target = Stage(), CountingTarget()
    await logged(stage, temporaries(3))
    player = replayer(stage, target)
    player.collated = Collated({ARCHIVE: "en"})
    await player.apply_log(player.reader.links())
    assert [barrier.rename_to for barrier in target.applied] == [ITEMS] * 3
    assert target.listed == 0


async def test_what_windows_write_and_remove_is_known_without_asking_again() -> None:
    asked = 0

    async def list_names() -> set[Namespace]:
        nonlocal asked
        asked += 1
        return {ORDERS}

    known = KnownNames(list_names)
    early, later = Window(), Window()
    early.add(change("insert", 1, namespace=ARCHIVE))
    known.follow(early)  # may not be applied when the target is asked
    assert not await known.lack(ARCHIVE)
    assert not await known.lack(ORDERS)
    assert await known.lack(ITEMS)
    later.add(change("insert", 2, namespace=ITEMS))
    assert later.take(replace(DROP, namespace=ARCHIVE))
    known.follow(later)
    assert [await known.lack(name) for name in (ARCHIVE, ORDERS, ITEMS)] == [True, False, False]
    known.rename(replace(RENAME, namespace=ITEMS, rename_to=ARCHIVE))
    assert [await known.lack(name) for name in (ARCHIVE, ORDERS, ITEMS)] == [False, False, True]
    last = Window()
    assert last.take(DROP_DATABASE)
    known.follow(last)
    assert [await known.lack(name) for name in (ARCHIVE, ORDERS, ITEMS)] == [True, True, True]
    assert asked == 1


async def test_renames_of_dropped_collections_share_one_checkpoint() -> None:
    stage, target = Stage(), CountingTarget()
    target.database.put(ITEMS, raw_id("old"), raw_document({"_id": "old"}))
    cycle = [
        (insert(ORDERS, {"_id": n}), drop(ORDERS), insert(ORDERS, {"_id": -n}), rename(ORDERS, ITEMS))
        for n in range(99)
    ]
    await logged(stage, [op for ops in cycle for op in ops])
    await replayed(stage, target)
    assert saves(stage) <= 3
    assert {(barrier.kind, barrier.namespace) for barrier in target.applied} == {("drop", ORDERS), ("drop", ITEMS)}


async def test_a_large_rename_is_mirrored_on_both_sides() -> None:
    stage, target = Stage(), CountingTarget()
    hold(stage, target, ORDERS)
    await logged(stage, [insert(ORDERS, {"_id": n}) for n in range(1_001)] + [rename(ORDERS, ITEMS)])
    mirrored: list[int] = []
    before = target.apply

    async def apply(barrier: Barrier) -> None:
        mirrored.append(stage.states.mirrored)
        await before(barrier)

    target.apply = apply  # type: ignore[method-assign]
    await replayed(stage, target)
    assert mirrored == [1]
    assert stage.states.mirrored == 2
    stage.states.lose_disk()
    found = await stage.states.load(CHECKPOINT)
    assert found is not None
    assert (found["sequence"], found["within"]) == (0, 0)


async def test_a_restart_after_any_save_or_just_before_it_is_exact() -> None:
    stage, target = Stage(), CountingTarget()
    held = [Namespace("shop", f"held {n}") for n in range(3)]
    for name in held:
        hold(stage, target, name)
    cycles = [(insert(name, {"_id": 1}), insert(ARCHIVE, {"_id": str(name)}), rename(name, ITEMS)) for name in held]
    again = [insert(held[0], {"_id": 2}), rename(held[0], ARCHIVE), insert(held[0], {"_id": 3})]
    await logged(stage, [*(op for cycle in cycles for op in cycle), *again])
    assert len(await stage.commits()) == 1
    save, saved = stage.states.save, [(Checkpoint(run_id="run").to_json(), target.database.copy())]

    async def noted(name: str, value: Mapping[str, Any], *, mirrors: bool = True) -> None:
        saved.append((dict(value), target.database.copy()))
        await save(name, value, mirrors=mirrors)

    stage.states.save = noted  # type: ignore[method-assign]
    await replayed(stage, target)
    stage.states.save = save  # type: ignore[method-assign]
    within = [value["within"] for value, _ in saved if value["sequence"] < 0]
    assert len(within) > 6
    assert within == sorted(within)
    for before, after in pairwise(saved):
        for database in (before[1], after[1]):  # what the checkpoint tells of is applied, or the next portion too
            await stage.states.save(CHECKPOINT, before[0])
            left = FakeTarget(database.copy())
            player = replayer(stage, left)
            player.checkpoint = await load_checkpoint(stage.states, "run")
            assert player.checkpoint.within == before[0]["within"]
            await player.apply_log(player.reader.links())
            assert left.database.contents() == stage.database.contents()


async def test_a_window_cut_within_a_commit_is_not_written_again() -> None:
    stage, target = Stage(), CountingTarget()
    ops = [insert(ORDERS, {"_id": n}) for n in range(2_000)]
    await logged(stage, ops)
    player = replayer(stage, target)
    player.window_bytes = 100_000
    await player.apply_log(player.reader.links())
    saved = [dict(value) for name, value in stage.states.history if name == CHECKPOINT and value["within"]]
    assert len(saved) > 5
    await stage.states.save(CHECKPOINT, saved[-2])
    again = replayer(stage, target)
    again.checkpoint = await load_checkpoint(stage.states, "run")
    await again.apply_log(again.reader.links())
    assert again.checkpoint.written - saved[-2]["written"] == 2_000 - saved[-2]["within"]
    assert target.database.contents() == stage.database.contents()


async def test_an_earlier_versions_checkpoint_counts_whole_commits() -> None:
    stage = Stage()
    older = Checkpoint(run_id="run", sequence=7, within=3).to_json()
    del older["within"]
    await stage.states.save(CHECKPOINT, older)
    found = await load_checkpoint(stage.states, "run")
    assert (found.sequence, found.within) == (7, 0)


async def test_names_gone_on_both_sides_are_neither_scanned_nor_kept() -> None:
    stage, target = Stage(), CountingTarget()
    kept = Namespace("shop", "temporary 7")
    names = [Namespace("shop", f"temporary {number}") for number in range(50)]
    ops = [op for name in names for op in (insert(name, {"_id": 1}), drop(name))]
    await logged(
        stage, [*ops, insert(kept, {"_id": 2}), insert(Namespace("gone", "a"), {"_id": 1}), drop_database("gone")]
    )
    await replayed(stage, target)
    report = VerifyReport(scope="touched")
    verifier = Verifier(
        source=FakeReader(stage.cluster),
        target=target,
        repair_into=None,
        clock=stage.clock,
        waiting_bytes=1_000,
        report=report,
    )
    reader = LogReader(store=stage.store)
    await verifier.touched(reader, reader.links(), ())
    assert target.scanned == [kept]
    assert set(report.namespaces) == {str(kept)}
    assert set(report.known.moved) == {kept}
    assert report.compared == 1
    assert report.is_equal


def window_of(*barriers: Barrier) -> Window:
    window = Window()
    window.add(change("insert", 1))
    assert [window.take(barrier) for barrier in barriers] == [True] * len(barriers)
    return window


DROP = Barrier(kind="drop", namespace=ORDERS, rename_to=None, cluster_time=at(2))
RENAME = Barrier(kind="rename", namespace=ORDERS, rename_to=ITEMS, cluster_time=at(3))
DROP_DATABASE = Barrier(kind="dropDatabase", namespace=Namespace("shop"), rename_to=None, cluster_time=at(4))


def test_a_window_forgets_what_is_dropped() -> None:
    window = window_of(DROP)
    assert window.bytes == 0
    assert window.batches(1) == []
    assert window.removals() == (DROP,)
    assert window.operations == 2


def test_a_window_leaves_alone_what_the_target_must_rename() -> None:
    window = Window()
    window.add(change("insert", 1))
    assert not window.take(RENAME)
    assert window.removals() == ()
    assert len(window.batches(1)) == 1
    assert window.names() == {ORDERS}
    assert not window.absorbed


def test_a_rename_that_the_target_has_performed_is_left_to_it() -> None:
    window = Window()
    window.add(change("insert", 1, namespace=ITEMS))
    assert not window.take(RENAME, is_lacking=True)
    assert window.names() == {ITEMS}
    assert window.removals() == ()


def test_a_window_renames_what_the_target_lacks() -> None:
    window = Window()
    window.add(change("insert", 1))
    assert window.take(RENAME, is_lacking=True)
    (removal,) = window.removals()
    assert (removal.kind, removal.namespace) == ("drop", ITEMS)
    assert window.names() == {ITEMS}
    assert window.absorbed == {ORDERS}


def test_a_window_renames_what_it_knows_whole() -> None:
    window = window_of(DROP)
    window.add(change("insert", 5, "new"))
    window.add(change("insert", 5, "lost", namespace=ITEMS))
    assert window.take(RENAME)
    (batch,) = window.batches(1)
    assert (batch.namespace, [write.id for write in batch.writes]) == (ITEMS, [raw_id("new")])
    assert window.removals() == (DROP, replace(RENAME, kind="drop", namespace=ITEMS, rename_to=None))
    doubts = Unresolved(documents={ITEMS: {raw_id(1)}, ORDERS: {raw_id(2)}})
    window.settle(doubts)
    assert doubts == Unresolved(whole={ITEMS})


def test_a_chain_of_renames_ends_at_the_last_name() -> None:
    window = window_of(DROP)
    window.add(change("insert", 5, "new"))
    assert window.take(RENAME)
    assert window.take(replace(RENAME, namespace=ITEMS, rename_to=ARCHIVE))
    doubts = Unresolved()
    window.settle(doubts)
    assert [batch.namespace for batch in window.batches(1)] == [ARCHIVE]
    assert doubts.whole == {ARCHIVE}


def test_a_dropped_database_covers_its_collections() -> None:
    window = window_of(DROP, DROP_DATABASE, DROP)
    assert window.removals() == (DROP_DATABASE,)
    window.add(change("insert", 6, "new"))
    assert window.take(RENAME)
    assert window.removals() == (DROP_DATABASE,)
    assert [batch.namespace for batch in window.batches(1)] == [ITEMS]


def test_what_waits_for_a_removed_collection_is_not_tried_again() -> None:
    window = window_of(DROP)
    for namespace in (ORDERS, ARCHIVE):
        write = Write(id=raw_id(1), document=raw_document({"_id": 1}))
        window.take_up([Failure(namespace=namespace, write=write, reason="", is_conflict=True)])
    assert [batch.namespace for batch in window.batches(1)] == [ARCHIVE]


async def test_an_unknown_barrier_is_applied_after_nothing() -> None:
    stage, target = Stage(), CountingTarget()
    await logged(stage, [insert(ORDERS, {"_id": 1}), Op(kind="reshard", namespace=ORDERS), insert(ORDERS, {"_id": 2})])
    player = replayer(stage, target)
    with pytest.raises(OperatorError, match="cannot be replayed"):
        await player.apply_log(player.reader.links())
    assert set(target.database.contents()[ORDERS]) == {raw_id(1)}


async def test_a_restart_does_not_read_applied_commits_again() -> None:
    stage = Stage()
    for number in range(12):
        await stage.capture(insert(ORDERS, {"_id": number}))
    await stage.draw_fence()
    await stage.restore().run(stage.coordinator)
    stage.forget_proof()
    commits = await stage.commits()
    read: list[str] = []
    get = stage.store.get

    async def counted(key: str) -> bytes | None:
        read.append(key)
        return await get(key)

    stage.coordinator.state = replace(stage.coordinator.state, verified=None)  # killed before it could say so
    stage.store.get = counted  # type: ignore[method-assign]
    await stage.restore().run(stage.coordinator)
    # To check the chain and to compare; not to replay. Some more at the log's beginning and end.
    counts = [read.count(commit.key) for commit in commits[9:-3]]
    assert counts == [2] * len(counts)
