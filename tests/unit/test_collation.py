"""A collection of the target with a collation is refused by name where the log touches it by text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bson import Code, Int64, ObjectId, Regex

from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import DocumentId
from d5agent.core.plan.plan import Plan
from d5agent.core.replay.collation import Collated, has_text
from d5agent.errors import OperatorError
from tests.fakes.cluster import delete, insert, rename
from tests.fakes.documents import raw_id
from tests.fakes.stage import ORDERS, Stage, until

if TYPE_CHECKING:
    from tests.fakes.cluster import Op

OTHER = Namespace("shop", "other")


@pytest.mark.parametrize(
    "value", ["A", "", {"a": "x"}, {"a": {"b": ["x"]}}, {"a": [1, {"b": "x"}]}, Code("f", {"a": 1})]
)
def test_an_id_with_text_in_it_is_seen_however_deep(value: object) -> None:
    assert has_text(raw_id(value))


@pytest.mark.parametrize("value", [1, Int64(1), 1.5, None, ObjectId(), {"a": 1, "text": [2]}, Regex("a"), Code("f")])
def test_an_id_without_text_is_told_apart(value: object) -> None:
    assert not has_text(raw_id(value))


def test_a_symbol_and_what_cannot_be_read_count_as_text() -> None:
    assert has_text(DocumentId(b"\x0e\x02\0\0\0A\0"))
    assert has_text(DocumentId(b"\x03\x09\0\0\0\x02"))


async def staged(*ops: Op, locale: Namespace = ORDERS) -> Stage:
    stage = Stage()
    await stage.capture(*ops)
    await stage.draw_fence()
    stage.target_server.locales = {locale: "en"}
    stage.target.before_each = _must_not_write
    return stage


def _must_not_write() -> None:
    raise AssertionError("the target was written to")


@pytest.mark.parametrize("id_", ["A", {"name": "A"}])
async def test_restore_refuses_such_a_collection_before_it_writes(id_: Any) -> None:  # noqa: ANN401 -- any `_id`
    stage = await staged(insert(OTHER, {"_id": 1}), insert(ORDERS, {"_id": id_}), delete(ORDERS, id_))
    with pytest.raises(OperatorError, match="have a collation") as refused:
        await stage.restore().run(stage.coordinator)
    assert refused.value.facts["collections"] == "shop.orders (locale en)"
    assert "nothing was written" in refused.value.hint
    assert stage.coordinator.state.verified is None


async def test_a_renamed_collection_takes_its_collation_along() -> None:
    stage = await staged(insert(OTHER, {"_id": 1}), rename(OTHER, ORDERS), insert(ORDERS, {"_id": "a"}), locale=OTHER)
    with pytest.raises(OperatorError, match="have a collation") as refused:
        await stage.restore().run(stage.coordinator)
    assert refused.value.facts["collections"] == "shop.orders (locale en)"


async def test_ids_without_text_are_restored_into_such_a_collection() -> None:
    stage = await staged(insert(ORDERS, {"_id": 1}), insert(OTHER, {"_id": "A"}))
    stage.target.before_each = lambda: None
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_a_live_restore_refuses_what_comes_later_before_it_writes_it() -> None:
    stage = Stage()
    stage.store.objects["dump/run/target/manifest.json"] = b"{}"
    stage.target_server.locales = {OTHER: "en"}
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.cluster.apply(insert(OTHER, {"_id": 1}))
        await stage.wait_until_captured()
        failed: list[OperatorError] = []

        async def restore() -> None:
            try:
                await stage.restore(is_live=True).run(stage.coordinator)
            except OperatorError as error:
                failed.append(error)

        class _Task:
            drains = False

            async def run(self, _: object) -> None:
                await restore()

        async with stage.running(_Task()):
            await until(stage.clock, lambda: stage.coordinator.progress.restore.can_cutover)
            stage.cluster.apply(rename(OTHER, ORDERS))
            stage.cluster.apply(insert(ORDERS, {"_id": "late"}))
            await until(stage.clock, lambda: failed)
        stage.coordinator.stopping.clear()
    assert failed[0].facts["collections"] == "shop.orders (locale en)"
    assert stage.target.database.find(ORDERS, raw_id("late")) is None


def test_a_plan_names_it_as_an_obstacle() -> None:
    plan = Plan(collated=Collated({ORDERS: "sv"}))
    plan.collated.see(ORDERS, [raw_id(1)])
    assert plan.obstacles == []
    plan.collated.see(ORDERS, [raw_id(2), raw_id("A")])
    plan.collated.see(OTHER, [raw_id("A")])
    assert plan.obstacles == [
        "shop.orders (locale sv): its _id index follows a collation, and the log touches it by an _id with text in it"
    ]
    assert plan.to_json()["go"] is False
