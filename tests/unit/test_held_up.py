"""A live restore whose target refuses documents: the cutover waits until somebody has mended that."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from d5agent.core.log.operation import Namespace
from d5agent.core.replay.refusals import Refusals
from d5agent.core.replay.replay import Barrier, Failure, Window, Write
from d5agent.core.run.progress import RestoreProgress
from d5agent.core.run.services import Phase, Service, Status
from d5agent.errors import OperatorError
from d5agent.steps.replay.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from tests.fakes.cluster import delete, drop, insert, rename, update
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.events import ITEMS, at, change
from tests.fakes.indexes import sparse
from tests.fakes.machine import FakeApplication
from tests.fakes.progress import forget_readiness
from tests.fakes.stage import ORDERS, Stage, until
from tests.fakes.store import FakeStateStore

MANIFEST = "dump/run/target/manifest.json"


def failure(id_: object = 1, *, is_conflict: bool = False, namespace: Namespace = ORDERS) -> Failure:
    write = Write(id=raw_id(id_), document=raw_document({"_id": id_}))
    return Failure(namespace=namespace, write=write, reason="it is invalid", is_conflict=is_conflict)


def noted(*failures: Failure) -> Refusals:
    refusals = Refusals()
    refusals.note(failures)
    return refusals


def ids_of(refusals: Refusals) -> dict[Namespace, list[Any]]:
    return dict(refusals.documents())


def test_a_refusal_counts_once_the_sources_version_is_refused() -> None:
    refusals = noted(failure())
    assert refusals.unsettled() == []
    refusals.tried(ORDERS, {raw_id(1): b"now"}, [failure()])
    (left,) = refusals.unsettled()
    assert (left.write.id, left.write.document, left.reason) == (raw_id(1), None, "it is invalid")
    refusals.tried(ORDERS, {raw_id(1): b"now"}, [])
    assert (len(refusals), ids_of(refusals)) == (0, {})


def test_a_conflict_counts_when_it_stays_the_same() -> None:
    refusals, conflict = noted(failure(is_conflict=True)), failure(is_conflict=True)
    for version in (b"a", b"a", b"b", b"b"):
        refusals.tried(ORDERS, {raw_id(1): version}, [conflict])
        assert refusals.unsettled() == []
    refusals.tried(ORDERS, {raw_id(1): b"b"}, [conflict])
    assert len(refusals.unsettled()) == 1


def test_a_document_that_the_source_lacks_waits_for_its_event() -> None:
    refusals = noted(failure())
    refusals.tried(ORDERS, {}, [])
    assert (len(refusals), refusals.unsettled()) == (1, [])


def test_later_events_settle_refusals() -> None:
    refusals = noted(failure(1), failure(2), failure(1, namespace=ITEMS), failure(1, namespace=Namespace("a", "b")))
    window = Window()
    window.add(change("delete", 1))
    window.take(Barrier(kind="dropDatabase", namespace=Namespace("a"), rename_to=None, cluster_time=at(1)))
    window.take(Barrier(kind="drop", namespace=ITEMS, rename_to=None, cluster_time=at(1)))
    refusals.follow(window)
    assert ids_of(refusals) == {ORDERS: [raw_id(2)]}
    refusals.apply_barrier(Barrier(kind="rename", namespace=ORDERS, rename_to=ITEMS, cluster_time=at(2)))
    assert ids_of(refusals) == {ITEMS: [raw_id(2)]}


def test_refusals_survive_a_restart() -> None:
    refusals = noted(failure(1), failure("x", is_conflict=True))
    again = Refusals.from_json(json.loads(json.dumps(refusals.to_json())))
    assert again.to_json() == refusals.to_json()
    assert ids_of(again) == ids_of(refusals)


def test_so_many_refusals_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d5agent.core.replay.refusals._MOST", 2)
    assert len(noted(failure(1), failure(2), failure(3))) == 2


async def test_a_checkpoint_of_an_older_version_has_no_refusals() -> None:
    states = FakeStateStore()
    value = Checkpoint(run_id="run").to_json()
    del value["refusals"]
    await states.save(CHECKPOINT, value)
    assert len((await load_checkpoint(states, "run")).refusals) == 0


async def live_stage() -> Stage:
    stage = Stage()
    stage.store.objects[MANIFEST] = b"{}"
    return stage


async def begin(stage: Stage) -> None:
    await until(stage.clock, lambda: stage.coordinator.state.ready_at)
    stage.coordinator.state = replace(stage.coordinator.state, phase=Phase.RESTORE)
    stage.coordinator.set_status(Service.RESTORE, Status.RUNNING)


@pytest.mark.parametrize("mends", ["validator", "update", "delete", "drop", "rename"])
async def test_a_refused_document_holds_the_cutover_up_until_it_is_mended(mends: str) -> None:
    stage = await live_stage()
    stage.target.is_valid = lambda document: b"bad" not in document
    progress = stage.coordinator.progress
    async with stage.running(stage.replication()):
        await begin(stage)
        for op in (insert(ORDERS, {"_id": 1, "good": 1}), insert(ORDERS, {"_id": 2, "bad": 1})):
            stage.cluster.apply(op)
        async with stage.running(stage.restore(is_live=True)) as restore:
            await until(stage.clock, lambda: progress.restore.refused_documents)
            forget_readiness(progress)
            await until(stage.clock, lambda: progress.restore.can_cutover is not None)
            assert progress.restore.can_cutover is False
            assert progress.restore.refused == ("shop.orders 2: Document failed validation",)
            assert any("somebody to mend what MongoDB refuses" in reason for reason in stage.coordinator.reasons)
            if mends == "validator":
                stage.target.is_valid = lambda _: True
            else:
                made = {
                    "update": update(ORDERS, {"_id": 2, "good": 2}),
                    "delete": delete(ORDERS, 2),
                    "drop": drop(ORDERS),
                    "rename": rename(ORDERS, ITEMS),
                }
                stage.cluster.apply(made[mends])
            if mends == "rename":
                stage.cluster.apply(delete(ITEMS, 2))
            await until(stage.clock, lambda: progress.restore.can_cutover)
            assert progress.restore.refused_documents == 0
            restore.cancel()


async def test_a_stray_holder_of_a_unique_value_holds_the_cutover_up() -> None:
    stage = await live_stage()
    stage.target.database.unique[ORDERS] = sparse("email")
    stage.target.database.put(ORDERS, raw_id("stray"), raw_document({"_id": "stray", "email": "a"}))
    progress = stage.coordinator.progress
    async with stage.running(stage.replication()):
        await begin(stage)
        stage.cluster.apply(insert(ORDERS, {"_id": 1, "email": "a"}))
        async with stage.running(stage.restore(is_live=True)) as restore:
            await until(stage.clock, lambda: progress.restore.refused_documents)
            await until(stage.clock, lambda: progress.restore.can_cutover is False)
            stage.target.database.remove(ORDERS, raw_id("stray"))
            await until(stage.clock, lambda: progress.restore.can_cutover)
            assert stage.target.database.find(ORDERS, raw_id(1)) == stage.database.find(ORDERS, raw_id(1))
            restore.cancel()


async def test_a_cutover_says_what_it_waits_for() -> None:
    stage = await live_stage()
    coordinator, application = stage.coordinator, FakeApplication()
    coordinator.progress.restore = RestoreProgress(can_cutover=False, refused=("shop.orders 2: invalid",))
    coordinator.set_status(Service.RESTORE, Status.RUNNING)
    reasons: list[str] = []

    def fail(reason: str) -> None:
        reasons.append(reason)
        coordinator.set_status(Service.RESTORE, Status.FAILED)

    coordinator.on_wait = fail
    cutover = stage.cutover(application)
    with pytest.raises(OperatorError, match="restore is failed"):
        await cutover.run(coordinator)
    assert reasons == ["somebody to mend what MongoDB refuses, before a cutover can begin: shop.orders 2: invalid"]
    assert not application.told
