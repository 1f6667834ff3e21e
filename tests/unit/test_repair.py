"""Repair replaces, reports what the target refuses, and is looked at again before anything is certified."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from bson import Decimal128, Int64
from typing_extensions import override

from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.operation import Namespace
from d5agent.errors import OperatorError
from d5agent.steps.compare import repairer, verifier
from d5agent.steps.compare.verifier import Verifier
from tests.fakes.cluster import insert, rename
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.indexes import sparse
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeReader, FakeTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.replay.replay import Failure, WriteBatch

NEW = Namespace("shop", "new")


class WatchedTarget(FakeTarget):
    """Notes what is deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[bytes] = []

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        self.deleted += [write.id for write in batch.writes if write.document is None]
        return await super().write(batch)


def _is_old(document: bytes) -> bool:
    return b"never" not in document


def put(stage: Stage, *documents: dict[str, Any], namespace: Namespace = ORDERS) -> None:
    """Write documents to the target, as somebody else."""
    for document in documents:
        stage.target.database.put(namespace, raw_id(document["_id"]), raw_document(document))


async def repaired(stage: Stage) -> VerifyReport:
    """Compare both sides whole, with repair."""
    subject = Verifier(
        source=FakeReader(stage.cluster),
        target=stage.target,
        repair_into=stage.target,
        clock=stage.clock,
        waiting_bytes=10_000,
        report=VerifyReport(scope="touched", run_id="run"),
    )
    await subject.whole({ORDERS})
    return await subject.settle_repairs()


async def renamed(stage: Stage) -> Stage:
    """Return a stage whose log renames a collection of which it tells no document: only repair can help."""
    stage.database.put(ORDERS, raw_id(1), raw_document({"_id": 1, "n": "never"}))
    await stage.capture(rename(ORDERS, NEW))
    put(stage, {"_id": 1, "n": "old"})
    await stage.draw_fence()
    return stage


def letters(stage: Stage) -> list[dict[str, Any]]:
    objects = sorted(stage.store.objects.items())
    return [json.loads(body) for key, body in objects if key.startswith("dead-letter/run/") and key.endswith(".json")]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(1, 1.0), (1.0, 1), (Int64(7), Decimal128("7.00")), ({"a": 1.0}, {"a": 1})]
)
async def test_a_repair_changes_the_type_of_an_id_without_a_delete(ours: object, theirs: object) -> None:
    stage = Stage(target=WatchedTarget())
    stage.database.put(ORDERS, raw_id(ours), raw_document({"_id": ours, "n": 1}))
    put(stage, {"_id": theirs, "n": 1}, {"_id": "extra"})
    report = await repaired(stage)
    assert report.is_equal
    assert stage.target.database.contents() == stage.database.contents()
    assert isinstance(stage.target, WatchedTarget)
    assert stage.target.deleted == [raw_id("extra")]


async def test_a_repair_that_is_refused_leaves_the_document_and_a_letter() -> None:
    stage = await renamed(Stage(target=FakeTarget(is_valid=_is_old)))
    with pytest.raises(OperatorError, match="the target refuses 1 documents") as failed:
        await stage.restore().run(stage.coordinator)
    assert "Document failed validation" in str(failed.value.facts["refused"])
    assert stage.target.database.contents()[NEW] == {raw_id(1): raw_document({"_id": 1, "n": "old"})}
    (letter,) = letters(stage)
    assert (letter["namespace"], letter["id"], letter["reason"]) == ("shop.new", "1", "Document failed validation")
    assert stage.coordinator.state.verified is None
    stage.target.is_valid = lambda _: True
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()
    assert not letters(stage)


async def test_a_circle_of_unique_values_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_BATCH", 2)  # the circle is larger than what is repaired at a time
    stage, count = Stage(), 7
    stage.target.database.unique[ORDERS] = sparse("u")
    for number in range(count):
        stage.database.put(ORDERS, raw_id(number), raw_document({"_id": number, "u": (number + 1) % count}))
    put(stage, *({"_id": number, "u": number} for number in range(count)))
    report = await repaired(stage)
    assert report.is_equal
    assert stage.target.database.contents() == stage.database.contents()


async def test_a_circle_that_is_refused_is_put_back() -> None:
    stage = Stage(target=FakeTarget(is_valid=_is_old))
    stage.target.database.unique[ORDERS] = sparse("u")
    for number in range(3):
        fields = {"_id": number, "u": (number + 1) % 3, "x": "never"}
        stage.database.put(ORDERS, raw_id(number), raw_document(fields))
    put(stage, *({"_id": number, "u": number} for number in range(3)))
    before = stage.target.database.contents()
    report = await repaired(stage)
    assert (report.different, len(report.refused)) == (3, 3)
    assert stage.target.database.contents() == before


async def test_a_unique_value_that_stays_taken_is_a_letter_with_its_holder() -> None:
    stage = Stage()
    stage.database.put(ORDERS, raw_id(1), raw_document({"_id": 1, "u": "two"}))
    await stage.capture(insert(NEW, {"_id": 2}), rename(NEW, Namespace("shop", "gone")), rename(ORDERS, NEW))
    put(stage, {"_id": "holder", "u": "two"}, {"_id": 1}, namespace=ORDERS)
    stage.target.database.unique[ORDERS] = sparse("u")
    stage.database.put(NEW, raw_id("holder"), raw_document({"_id": "holder", "u": "two", "x": "never"}))
    stage.target.is_valid = _is_old
    await stage.draw_fence()
    with pytest.raises(OperatorError, match="refuses 2 documents"):
        await stage.restore().run(stage.coordinator)
    assert {(letter["id"], letter["index"], *letter["holders"]) for letter in letters(stage)} == {
        ("1", "u_1", "holder"),
        ("holder", ""),
    }


async def test_a_target_that_refuses_every_repair_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairer, "_MOST_REFUSED", 2)
    stage = Stage(target=FakeTarget(is_valid=lambda _: False))
    for number in range(5):
        stage.database.put(ORDERS, raw_id(number), raw_document({"_id": number}))
    with pytest.raises(OperatorError, match="the target refuses repairs") as failed:
        await repaired(stage)
    assert failed.value.facts == {"refused": 5, "namespace": "shop.orders", "reason": "Document failed validation"}
    assert "d5agent start restore" in failed.value.hint


async def test_a_capped_target_that_evicts_for_a_repair_is_never_certified() -> None:
    stage = Stage()
    stage.database.put(ORDERS, raw_id(1), raw_document({"_id": 1, "n": "new"}))
    stage.database.put(ORDERS, raw_id(2), raw_document({"_id": 2, "n": "new"}))
    await stage.capture(rename(ORDERS, NEW), insert(NEW, {"_id": 3}), insert(NEW, {"_id": 4}), insert(NEW, {"_id": 5}))
    stage.target.database.capped[NEW] = 3
    await stage.draw_fence()
    for _ in range(2):
        with pytest.raises(OperatorError, match="equal") as failed:
            await stage.restore().run(stage.coordinator)
        assert "d5agent start restore" in failed.value.hint
        assert stage.coordinator.state.verified is None
        assert "reports/run/certificate.json" not in stage.store.objects


async def test_a_repair_that_undoes_another_document_is_told_as_unstable() -> None:
    stage = Stage()
    stage.database.put(ORDERS, raw_id(9), raw_document({"_id": 9}))
    await stage.capture(insert(NEW, {"_id": 1}), rename(ORDERS, Namespace("shop", "other")))
    await stage.draw_fence()

    class TriggeredTarget(FakeTarget):
        """Loses a document whenever another one is written to another collection, as a capped one does."""

        @override
        async def write(self, batch: WriteBatch) -> Sequence[Failure]:
            failures = await super().write(batch)
            if batch.namespace.collection == "other":
                self.database.remove(NEW, raw_id(1))
            return failures

    stage.target = TriggeredTarget()
    with pytest.raises(OperatorError, match="the target did not stay equal") as failed:
        await stage.restore().run(stage.coordinator)
    assert "capped" in failed.value.hint
    first = failed.value.facts["first"]
    assert isinstance(first, list)
    assert [difference["id"] for difference in first] == ["1"]
    assert stage.coordinator.state.verified is None
