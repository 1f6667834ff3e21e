"""backup: a side is backed up when its manifest is there, which comes last; what is stored is not dumped again."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.progress import BackupProgress, SideProgress
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.ports import ToolVersion
from tests.fakes.machine import FakeDumpTool, shop_tool
from tests.fakes.mortal import DiedError
from tests.fakes.stage import Stage
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable


class RecordingStore(FakeObjectStore):
    """Remembers in which order objects came to be, but for what stands before a dump; `on_put` is called at each."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.on_put: Callable[[], object] = lambda: None

    @override
    async def put(self, key: str, body: bytes, *, replacing: bytes | None = None) -> bool:
        if not key.endswith(("/.probe", "/beginning.json")):
            self.order.append(key)
            self.on_put()
        return await super().put(key, body, replacing=replacing)


def manifest_of(stage: Stage, side: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(stage.store.objects[f"dump/run/{side}/manifest.json"])
    return value


async def test_each_side_is_dumped_and_its_manifest_says_what_it_holds() -> None:
    stage = Stage()
    await stage.backup(shop_tool(), shop_tool()).run(stage.coordinator)
    assert stage.store.objects["dump/run/target/shop.archive.gz"] == b"onetwo"
    assert stage.store.objects["dump/run/source/a%2Fb.archive.gz"] == b"three"
    manifest = manifest_of(stage, "target")
    assert (manifest["run_id"], manifest["side"], manifest["mongodump"]) == ("run", "target", "100.11.0")
    assert (manifest["server"], manifest["operation_time"]) == ("6.0.5", list(shop_tool().time))
    by_database = {archive["database"]: archive for archive in manifest["archives"]}
    assert list(by_database) == ["a/b", "shop"]
    shop = by_database["shop"]
    assert (shop["key"], shop["bytes"]) == ("dump/run/target/shop.archive.gz", 6)
    assert (shop["sha256"], shop["documents"]) == (hashlib.sha256(b"onetwo").hexdigest(), {"shop.orders": 7})


async def test_the_journal_says_what_is_not_in_a_backup() -> None:
    stage = Stage()
    await stage.backup(shop_tool(), shop_tool()).run(stage.coordinator)
    told = stage.coordinator.journal.facts_of("backup_stored")
    assert [facts["side"] for facts in told] == ["target", "source"]
    assert all(str(facts["not_included"]).startswith("users and roles") for facts in told)


async def test_the_facts_say_how_far_each_side_is() -> None:
    store = RecordingStore()
    stage = Stage(store=store)
    seen: list[BackupProgress] = []
    store.on_put = lambda: seen.append(stage.coordinator.progress.backup)
    await stage.backup(shop_tool(), shop_tool()).run(stage.coordinator)
    side = SideProgress(databases=2, databases_stored=2, documents=7, bytes=11)
    assert stage.coordinator.progress.backup == BackupProgress(target=side, source=side)
    assert seen[0].target is not None
    assert seen[0].target.databases_stored == 0
    assert seen[0].target.bytes > 0, "what is under way counts"


async def test_a_manifest_comes_after_all_that_it_names() -> None:
    store = RecordingStore()
    stage = Stage(store=store)
    target = shop_tool()
    await stage.backup(target, shop_tool()).run(stage.coordinator)
    for side in ("target", "source"):
        keys = [key for key in store.order if f"/{side}/" in key]
        assert sorted(keys[:-1]) == [f"dump/run/{side}/{name}.archive.json" for name in ("a%2Fb", "shop")]
        assert keys[-1] == f"dump/run/{side}/manifest.json"
    assert sorted(target.ended) == ["a/b", "shop"]


async def test_the_target_is_stored_while_the_source_is_still_being_dumped() -> None:
    store = RecordingStore()
    stage = Stage(store=store)
    await stage.backup(shop_tool(), shop_tool()).run(stage.coordinator)
    assert store.order.index("dump/run/target/manifest.json") < store.order.index("dump/run/source/shop.archive.json")


async def test_a_side_without_databases_has_a_manifest_that_says_so() -> None:
    stage = Stage()
    await stage.backup(shop_tool(), FakeDumpTool()).run(stage.coordinator)
    manifest = manifest_of(stage, "source")
    assert (manifest["archives"], manifest["bytes"], manifest["documents"]) == ([], 0, 0)


async def test_a_failing_dump_leaves_no_manifest_and_no_archive() -> None:
    stage = Stage()
    target = shop_tool()
    target.errors["shop"] = OperatorError("mongodump ended with 1", hint="see its last lines")
    with pytest.raises(OperatorError, match="ended with 1"):
        await stage.backup(target, shop_tool()).run(stage.coordinator)
    assert "dump/run/target/manifest.json" not in stage.store.objects
    assert "dump/run/target/shop.archive.gz" not in stage.store.objects
    assert target.running == []


async def test_a_side_that_has_its_manifest_is_not_dumped_again() -> None:
    stage = Stage()
    target, source = shop_tool(), shop_tool()
    source.errors["shop"] = OperatorError("mongodump ended with 1")
    service = stage.backup(target, source)
    with pytest.raises(OperatorError, match="ended with 1"):
        await service.run(stage.coordinator)
    source.errors.clear()
    dumped = list(target.ended)
    await service.run(stage.coordinator)
    assert target.ended == dumped
    assert sum(key.endswith("manifest.json") for key in stage.store.objects) == 2


async def test_a_database_that_is_stored_is_not_dumped_again() -> None:
    stage = Stage()
    target, source = shop_tool(), shop_tool()
    target.errors["shop"] = OperatorError("mongodump ended with 1")
    service = stage.backup(target, source)
    with pytest.raises(OperatorError, match="ended with 1"):
        await service.run(stage.coordinator)
    assert sorted(target.ended) == ["a/b", "shop"]
    target.errors.clear()
    target.time = ClusterTime(target.time.seconds + 60, 1)
    await service.run(stage.coordinator)
    assert sorted(target.ended) == ["a/b", "shop", "shop"]
    assert manifest_of(stage, "target")["operation_time"] == list(source.time), "the earliest: of what was not repeated"


@pytest.mark.parametrize("damage", [b"thr", None])
async def test_a_database_whose_archive_is_not_as_it_was_is_dumped_again(damage: bytes | None) -> None:
    stage = Stage()
    await stage.backup(shop_tool(), shop_tool()).run(stage.coordinator)
    before = dict(stage.store.objects)
    del stage.store.objects["dump/run/target/manifest.json"]
    del stage.store.objects["dump/run/target/a%2Fb.archive.gz"]
    if damage is not None:
        stage.store.objects["dump/run/target/a%2Fb.archive.gz"] = damage
    target = shop_tool()
    await stage.backup(target, shop_tool()).run(stage.coordinator)
    assert target.ended == ["a/b"]
    assert set(stage.store.objects) == set(before)
    assert stage.store.objects["dump/run/target/a%2Fb.archive.gz"] == b"three"


async def test_a_database_that_has_gone_since_it_was_dumped_stays_in_the_backup() -> None:
    stage = Stage()
    target = shop_tool()
    target.errors["shop"] = OperatorError("mongodump ended with 1")
    with pytest.raises(OperatorError):
        await stage.backup(target, shop_tool()).run(stage.coordinator)
    target.errors.clear()
    del target.archives["a/b"]
    await stage.backup(target, shop_tool()).run(stage.coordinator)
    assert [archive["database"] for archive in manifest_of(stage, "target")["archives"]] == ["a/b", "shop"]


async def test_a_damaged_record_of_an_archive_stops_the_backup_and_is_named() -> None:
    stage = Stage()
    stage.store.objects["dump/run/target/shop.archive.json"] = b"{"
    with pytest.raises(CorruptDataError, match=r"shop\.archive\.json"):
        await stage.backup(shop_tool(), shop_tool()).run(stage.coordinator)


async def test_uploads_that_a_killed_backup_left_half_way_are_aborted_at_the_next_start() -> None:
    stage = Stage()
    target = shop_tool()
    target.errors["shop"] = DiedError()
    with pytest.raises(DiedError):
        await stage.backup(target, shop_tool()).run(stage.coordinator)
    assert "dump/run/target/shop.archive.gz" in stage.store.half_way
    stage.store.half_way.append("dump/another run/target/shop.archive.gz")
    target.errors.clear()
    await stage.backup(target, shop_tool()).run(stage.coordinator)
    assert stage.store.half_way == ["dump/another run/target/shop.archive.gz"]
    assert [facts["why"] for facts in stage.coordinator.journal.facts_of("uploads_aborted")] == ["a dump was killed"]


async def test_an_upload_that_a_lost_answer_left_half_way_is_aborted_at_the_end() -> None:
    store = RecordingStore()
    stage = Stage(store=store)
    store.on_put = lambda: store.half_way.append("dump/run/target/shop.archive.gz")
    await stage.backup(shop_tool(), shop_tool()).run(stage.coordinator)
    assert store.half_way == []
    told = stage.coordinator.journal.facts_of("uploads_aborted")
    assert [facts["why"] for facts in told] == ["the answer to a request was lost"]


async def test_a_tool_that_cannot_be_used_is_found_before_the_first_dump_begins() -> None:
    stage = Stage()
    target, source = shop_tool(), shop_tool()
    source.version_error = OperatorError("mongodump 100.7.1 fails on Amazon DocumentDB")
    with pytest.raises(OperatorError, match="fails on Amazon DocumentDB"):
        await stage.backup(target, source).run(stage.coordinator)
    assert target.ended == []
    assert stage.store.objects == {}


async def test_a_tool_that_aws_does_not_support_is_used_and_warned_of() -> None:
    stage = Stage()
    source = shop_tool(tool_version=ToolVersion(number="100.12.2", advice="AWS supports up to 100.11.0"))
    await stage.backup(shop_tool(), source).run(stage.coordinator)
    assert stage.coordinator.journal.facts_of("mongodump_not_supported") == [
        {"side": "source", "advice": "AWS supports up to 100.11.0"}
    ]
    assert manifest_of(stage, "source")["mongodump"] == "100.12.2"
