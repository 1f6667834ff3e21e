"""What drops, renames and dropDatabases cost a restore: few checkpoints, few mirrors, bounded memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.operation import Namespace, parse_event
from d5agent.core.log.segmenter import Segmenter
from d5agent.core.replay.pace import Pace
from d5agent.core.replay.replay import Barrier, Failure, Unresolved, Window, Write
from d5agent.errors import OperatorError
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.writer import LogWriter
from d5agent.steps.replay.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from d5agent.steps.replay.replayer import Replayer
from tests.fakes.cluster import Op, drop, drop_database, insert, rename
from tests.fakes.commits import WRITER
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.events import ITEMS, ORDERS, at, change
from tests.fakes.machine import FakeJournal
from tests.fakes.one_by_one import OneByOne
from tests.fakes.stage import Stage
from tests.fakes.target import FakeReader, FakeTarget

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

ARCHIVE = Namespace("shop", "archive")
TEMPORARY = 2_000


class CountingTarget(FakeTarget):
    """Notes which barriers it applies."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[Barrier] = []
        self.scanned: list[Namespace] = []

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


async def saved_within(stage: Stage, target: CountingTarget, ops: Sequence[Op]) -> list[dict[str, Any]]:
    """Replay operations that share a commit; return the checkpoints that were saved within it."""
    await logged(stage, ops)
    assert len(await stage.commits()) == 1
    await replayed(stage, target)
    return [dict(value) for name, value in stage.states.history if name == CHECKPOINT and value["within"]]


async def test_a_rename_amid_a_commit_is_not_repeated() -> None:
    stage, target = Stage(), CountingTarget()
    cycle = [(insert(ORDERS, {"_id": n}), insert(ARCHIVE, {"_id": n}), rename(ORDERS, ITEMS)) for n in range(3)]
    saved = await saved_within(stage, target, [*(op for ops in cycle for op in ops), insert(ORDERS, {"_id": "last"})])
    # Each rename has a checkpoint on both sides, but for the last one's first: what comes before it is written then.
    renamed = [value for value in saved if value["sequence"] == -1]
    assert len(renamed) == 6
    for number, value in enumerate(renamed):
        await stage.states.save(CHECKPOINT, value)
        player = replayer(stage, target)
        player.checkpoint = await load_checkpoint(stage.states, "run")
        assert player.checkpoint.within == value["within"]
        target.applied.clear()
        await player.apply_log(player.reader.links())
        assert sum(barrier.kind == "rename" for barrier in target.applied) == 3 - (number + 1) // 2


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
