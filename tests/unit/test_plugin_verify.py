"""verify: compares on demand, and writes nothing but its report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from d5agent.core.run.progress import ComparisonProgress
from d5agent.errors import OperatorError
from tests.fakes.cluster import insert
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.stage import ORDERS, Stage


async def restored(stage: Stage) -> Stage:
    await stage.capture(*[insert(ORDERS, {"_id": number, "n": 0}) for number in range(5)])
    await stage.draw_fence()
    await stage.restore().run(stage.coordinator)
    stage.store.objects = {k: v for k, v in stage.store.objects.items() if not k.startswith("reports/")}
    return stage


async def test_equal_sides_are_told_and_reported() -> None:
    stage = await restored(Stage())
    await stage.verify().run(stage.coordinator)
    assert stage.coordinator.progress.verify == ComparisonProgress(compared=5, compared_total=5, different=0)
    page, key = sorted(key for key in stage.store.objects if key.startswith("reports/run/verify-touched-"))
    assert b"Both databases are equal" in stage.store.objects[page]
    assert json.loads(stage.store.objects[key])["equal"] is True


async def test_a_touched_document_that_differs_fails_verify_and_is_left_as_it_is() -> None:
    stage = await restored(Stage())
    stage.target.database.put(ORDERS, raw_id(2), raw_document({"_id": 2, "n": 1}))
    before = stage.target.database.contents()
    with pytest.raises(OperatorError, match="not equal") as failed:
        await stage.verify().run(stage.coordinator)
    assert failed.value.facts["different"] == 1
    assert "reports/run/verify-touched-" in failed.value.hint
    assert stage.target.database.contents() == before


async def test_only_a_full_comparison_finds_what_the_log_did_not_touch() -> None:
    stage = await restored(Stage())
    stage.target.database.put(ORDERS, raw_id("extra"), raw_document({"_id": "extra"}))
    service = stage.verify()
    touched, _ = await service.compare("run", is_full=False, on_progress=lambda _: None)
    assert touched.is_equal
    full, key = await service.compare("run", is_full=True, on_progress=lambda _: None)
    assert [difference.to_json()["id"] for difference in full.differences] == ["extra"]
    assert full.counts == ["shop.orders: 5 documents in the source, 6 in the target"]
    assert key.startswith("reports/run/verify-full-")


async def test_touched_documents_are_not_compared_without_a_log() -> None:
    stage = Stage()
    service = replace(stage.verify(), url_of=lambda key: f"s3://bucket/{key}")
    with pytest.raises(OperatorError, match="no log below s3://bucket/") as refused:
        await service.run(stage.coordinator)
    assert "[store] bucket and prefix" in refused.value.hint
    assert "d5agent verify --full" in refused.value.hint
    assert stage.store.objects == {}
    full, _ = await service.compare("run", is_full=True, on_progress=lambda _: None)
    assert full.is_equal


async def test_a_report_is_named_with_its_bucket() -> None:
    stage = await restored(Stage())
    stage.target.database.put(ORDERS, raw_id(2), raw_document({"_id": 2, "n": 1}))
    with pytest.raises(OperatorError, match="not equal") as failed:
        await replace(stage.verify(), url_of=lambda key: f"s3://bucket/prefix/{key}").run(stage.coordinator)
    assert "s3://bucket/prefix/reports/run/verify-touched-" in failed.value.hint
