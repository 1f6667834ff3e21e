"""restore: refuses what it cannot trust, buries what the target refuses, proves what it has done."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from d5agent.core.log.operation import Namespace
from d5agent.core.replay.replay import Failure
from d5agent.core.reports.certificate import check_certificate
from d5agent.core.run.progress import ComparisonProgress
from d5agent.core.run.services import Fence
from d5agent.errors import CorruptDataError, OperatorError, TransientError
from d5agent.steps.log.reader import link_of
from tests.fakes.cluster import insert, rename, update
from tests.fakes.coordinator import SINCE
from tests.fakes.documents import FakeDatabase, raw_document, raw_id
from tests.fakes.indexes import sparse
from tests.fakes.progress import replayed
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.replay.replay import WriteBatch


class StubbornTarget(FakeTarget):
    """Refuses documents as a validator does, or says that it wrote them and did not.

    `refused` and `lost` count, by `_id`, how many times more.
    """

    def __init__(self, database: FakeDatabase | None = None) -> None:
        super().__init__(database)
        self.refused: dict[object, int] = {}
        self.lost: dict[object, int] = {}

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        refused = {raw_id(value): value for value, times in self.refused.items() if times}
        lost = {raw_id(value): value for value, times in self.lost.items() if times}
        failures = []
        kept = []
        for write in batch.writes:
            if write.id in refused and write.document is not None:
                self.refused[refused[write.id]] -= 1
                reason = "Document failed validation"
                failures.append(Failure(namespace=batch.namespace, write=write, reason=reason, is_conflict=False))
            elif write.id in lost and write.document is not None:
                self.lost[lost[write.id]] -= 1
            else:
                kept.append(write)
        return [*failures, *await super().write(replace(batch, writes=tuple(kept)))]


async def captured(stage: Stage, count: int = 4) -> Stage:
    """A stage whose log holds some inserts and an update, drained."""
    await stage.capture(*[insert(ORDERS, {"_id": number}) for number in range(count)], update(ORDERS, {"_id": 0}))
    await stage.draw_fence()
    return stage


def letters(stage: Stage) -> list[dict[str, object]]:
    objects = sorted(stage.store.objects.items())
    return [json.loads(body) for key, body in objects if key.startswith("dead-letter/run/") and key.endswith(".json")]


def reports(stage: Stage) -> list[dict[str, Any]]:
    objects = sorted(stage.store.objects.items())
    return [
        json.loads(body) for key, body in objects if key.startswith("reports/run/verify-") and key.endswith(".json")
    ]


def must_not_write() -> None:
    raise AssertionError("the target was written to")


async def test_a_restore_ends_with_both_sides_equal_and_proves_it() -> None:
    stage = await captured(Stage())
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()
    proof = stage.coordinator.state.verified
    assert proof is not None
    last = (await stage.commits())[-1]
    assert (proof.sequence, proof.operations, proof.compared) == (last.sequence, last.total.operations, 4)
    (report,) = reports(stage)
    assert (report["equal"], report["repaired"]) == (True, [])
    link = await link_of(stage.store, proof.sequence)
    assert (proof.certificate, proof.digest) == ("reports/run/certificate.json", link.digest)
    check_certificate(stage.store.objects[proof.certificate], link)
    fence = stage.coordinator.state.fence
    assert fence is not None
    assert json.loads(stage.store.objects[proof.certificate])["end_of_stream"] == {
        "proof": "marker",
        "marker": fence.marker,
        "commit": f"replication/.log/{fence.sequence:012d}.json",
        "cluster_time": list(fence.cluster_time),
        "at": fence.at,
        "operations_after": 0,
        "kept_since": None,
    }
    assert b"Both databases are equal" in stage.store.objects["reports/run/certificate.html"]
    restore, replay = stage.coordinator.progress.restore, replayed(stage.coordinator.progress)
    assert replay.operations_applied == replay.operations_total == last.total.operations
    assert (restore.comparison, restore.in_doubt) == (
        ComparisonProgress(compared=4, compared_total=4, different=0),
        0,
    )


async def test_a_restore_that_is_repeated_changes_nothing() -> None:
    stage = await captured(Stage())
    await stage.restore().run(stage.coordinator)
    stage.target.before_each = must_not_write
    await stage.restore().run(stage.coordinator)
    stage.forget_proof()
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_a_restore_without_a_fence_is_refused() -> None:
    stage = await captured(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, fence=None)
    stage.target.before_each = must_not_write
    with pytest.raises(OperatorError, match="no fence") as refused:
        await stage.restore().run(stage.coordinator)
    assert "d5agent start restore" in refused.value.hint


async def test_a_fence_without_a_marker_is_refused() -> None:
    stage = await captured(Stage())
    fence = stage.coordinator.state.fence
    assert fence is not None
    stage.coordinator.state = replace(stage.coordinator.state, fence=replace(fence, marker=""))
    stage.target.before_each = must_not_write
    for is_live in (False, True):
        stage.store.objects["dump/run/target/manifest.json"] = b"{}"
        with pytest.raises(OperatorError, match="drawn without a marker") as refused:
            await stage.restore(is_live=is_live).run(stage.coordinator)
        assert "d5agent start restore" in refused.value.hint


async def test_a_fence_that_is_dropped_during_a_restore_leaves_no_certificate() -> None:
    stage = await captured(Stage())

    def drop_fence() -> None:  # what `d5agent start monitor-replication` does meanwhile
        stage.coordinator.state = replace(stage.coordinator.state, fence=None)

    stage.target.before_each = drop_fence
    with pytest.raises(OperatorError, match="restore has no fence"):
        await stage.restore().run(stage.coordinator)
    assert stage.coordinator.state.verified is None
    assert not [key for key in stage.store.objects if "certificate" in key]


async def test_an_empty_log_is_refused() -> None:
    stage = Stage()
    fence = Fence(sequence=0, cluster_time=stage.cluster.now(), at=SINCE, marker="fence-1")
    stage.coordinator.state = replace(stage.coordinator.state, fence=fence)
    with pytest.raises(OperatorError, match="no log below"):
        await stage.restore().run(stage.coordinator)


@pytest.mark.parametrize("fault", ["torn segment", "missing segment", "missing commit"])
async def test_a_broken_log_is_refused_before_the_target_is_written_to(fault: str) -> None:
    stage = Stage()
    for number in range(3):
        await stage.capture(insert(ORDERS, {"_id": number}))
    await stage.draw_fence()
    last = (await stage.commits())[-1]
    segment = [ref.key for commit in await stage.commits() for ref in commit.segments][-1]
    if fault == "torn segment":
        stage.store.objects[segment] = stage.store.objects[segment][:-1]
    elif fault == "missing segment":
        del stage.store.objects[segment]
    else:
        del stage.store.objects[f"replication/.log/{last.sequence - 1:012d}.json"]
    stage.target.before_each = must_not_write
    with pytest.raises(CorruptDataError):
        await stage.restore().run(stage.coordinator)
    assert stage.coordinator.state.verified is None


async def test_a_document_that_the_target_refuses_fails_the_restore_and_lies_in_dead_letter() -> None:
    target = StubbornTarget()
    target.refused = {2: 1000}
    stage = await captured(Stage(target=target))
    with pytest.raises(OperatorError, match="refuses 1 documents") as failed:
        await stage.restore().run(stage.coordinator)
    assert failed.value.facts["refused"] == "shop.orders 2: Document failed validation"
    assert "dead-letter/run/" in failed.value.hint
    (letter,) = letters(stage)
    assert (letter["namespace"], letter["id"]) == ("shop.orders", "2")
    assert stage.coordinator.state.verified is None
    assert len(target.database.collections[ORDERS]) == 3  # all others are there


async def test_dead_letters_are_taken_up_by_the_next_start_and_removed() -> None:
    target = StubbornTarget()
    target.refused = dict.fromkeys(range(10), 1000)
    stage = await captured(Stage(target=target), count=12)
    with pytest.raises(OperatorError, match="refuses 10 documents") as failed:
        await stage.restore().run(stage.coordinator)
    assert str(failed.value.facts["refused"]).count(";") == 2  # three are named, all are stored
    assert len(letters(stage)) == 10
    target.refused = {5: 1000}
    with pytest.raises(OperatorError, match="refuses 1 documents"):
        await stage.restore().run(stage.coordinator)
    assert [letter["id"] for letter in letters(stage)] == ["5"]
    target.refused = {}
    await stage.restore().run(stage.coordinator)
    assert letters(stage) == []
    assert target.database.contents() == stage.foreign_contents()


async def test_a_refusal_that_has_passed_by_the_end_of_the_log_fails_nothing() -> None:
    target = StubbornTarget()
    target.refused = {2: 1}
    stage = await captured(Stage(target=target))
    await stage.restore().run(stage.coordinator)
    assert len(stage.coordinator.journal.facts_of("write_refused")) == 1
    assert target.database.contents() == stage.foreign_contents()


async def test_a_unique_value_that_a_document_of_the_target_alone_holds_is_named() -> None:
    database = FakeDatabase(unique={ORDERS: sparse("email")})
    database.put(ORDERS, raw_id(77), raw_document({"_id": 77, "email": "a"}))
    stage = Stage(target=FakeTarget(database))
    await stage.capture(insert(ORDERS, {"_id": 1, "email": "a"}))
    await stage.draw_fence()
    with pytest.raises(OperatorError, match="refuses 1 documents"):
        await stage.restore().run(stage.coordinator)
    (letter,) = letters(stage)
    assert (letter["id"], letter["index"]) == ("1", "email_1")
    database.remove(ORDERS, raw_id(77))
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_what_a_rename_left_behind_holds_no_unique_value_for_ever() -> None:
    old, new = Namespace("shop", "old"), Namespace("shop", "new")
    database = FakeDatabase(unique={new: sparse("email")})
    database.put(new, raw_id(77), raw_document({"_id": 77, "email": "a"}))
    stage = Stage(target=FakeTarget(database))
    # The target has no such collection, so the rename finds nothing there.
    stage.cluster.database.put(old, raw_id(1), raw_document({"_id": 1}))
    await stage.capture(rename(old, new), insert(new, {"_id": 2, "email": "a"}))
    await stage.draw_fence()
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_a_restore_that_is_tried_again_passes_nothing_over_that_was_only_read() -> None:
    stage = await captured(Stage())
    writes = itertools.count()

    def fail_once() -> None:
        if next(writes) == 1:
            raise TransientError("the target is not reached")

    stage.target.before_each = fail_once
    restore = stage.restore(window_bytes=1)
    with pytest.raises(TransientError):
        await restore.run(stage.coordinator)
    await restore.run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()
    assert not stage.coordinator.journal.facts_of("document_repaired")


async def test_empty_collections_of_the_source_are_created() -> None:
    stage = await captured(Stage())
    empty = Namespace("shop", "empty")
    stage.cluster.database.collections[empty] = {}
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.collections[empty] == {}
    assert stage.coordinator.journal.facts_of("collection_created") == [{"namespace": "shop.empty"}]


async def test_an_operation_that_comes_during_the_restore_is_replayed_and_verified_as_well() -> None:
    stage = await captured(Stage())
    looks: list[int] = []
    late = Namespace("shop", "late")
    target = stage.target

    class LateTarget(FakeTarget):
        @override
        async def collections(self) -> Sequence[Namespace]:
            if not looks:
                looks.append(1)
                await stage.capture(insert(late, {"_id": 1}))
            return await super().collections()

    reader = LateTarget(target.database)
    await stage.restore(target_reader=reader).run(stage.coordinator)
    assert stage.coordinator.journal.facts_of("operations_after_fence") == [{"operations": 1}]
    assert target.database.contents() == stage.foreign_contents()
    assert late in target.database.contents()
    proof = stage.coordinator.state.verified
    assert proof is not None
    assert proof.sequence == (await stage.commits())[-1].sequence


async def test_a_difference_that_the_log_cannot_explain_is_repaired_and_told() -> None:
    target = StubbornTarget()
    target.lost = {3: 1}
    stage = await captured(Stage(target=target))
    await stage.restore().run(stage.coordinator)
    (repaired,) = stage.coordinator.journal.facts_of("document_repaired")
    assert (repaired["id"], repaired["kind"]) == ("3", "missing")
    assert target.database.contents() == stage.foreign_contents()


async def test_a_difference_that_stays_fails_the_restore_and_is_named() -> None:
    target = StubbornTarget()
    target.lost = {3: 1000}
    stage = await captured(Stage(target=target))
    with pytest.raises(OperatorError, match="not equal") as failed:
        await stage.restore().run(stage.coordinator)
    assert failed.value.facts["different"] == 1
    assert stage.coordinator.state.verified is None
    (report,) = reports(stage)
    assert report["equal"] is False
    assert [difference["id"] for difference in report["differences"]] == ["3"]
    assert "reports/run/" in failed.value.hint


async def test_an_update_and_a_rename_leave_no_old_version_behind() -> None:
    stage = Stage()
    old, new = Namespace("shop", "old"), Namespace("shop", "new")
    await stage.capture(insert(old, {"_id": 1, "n": 1}))
    stage.cluster.apply(update(old, {"_id": 1, "n": 2}))
    stage.cluster.apply(rename(old, new))
    await stage.capture()
    await stage.draw_fence()
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()
    (report,) = reports(stage)
    assert report["repaired"] == []


async def test_a_checkpoint_of_a_newer_version_is_refused() -> None:
    stage = await captured(Stage())
    await stage.states.save("restore_checkpoint", {"version": 99, "run_id": "run"})
    stage.target.before_each = must_not_write
    with pytest.raises(OperatorError, match="another version"):
        await stage.restore().run(stage.coordinator)


async def test_a_checkpoint_of_another_run_is_not_taken_up() -> None:
    stage = await captured(Stage())
    await stage.restore().run(stage.coordinator)
    old = dict(json.loads(stage.states.texts["restore_checkpoint"]), run_id="an older run")
    await stage.states.save("restore_checkpoint", old)
    stage.target.database.collections.clear()
    stage.forget_proof()
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()
    assert stage.coordinator.journal.facts_of("document_repaired") == []
