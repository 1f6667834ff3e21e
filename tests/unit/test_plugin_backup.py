"""backup: a side is dumped when its manifest is there, and the manifest comes last."""

from __future__ import annotations

import hashlib
import json

import pytest
from typing_extensions import override

from d5agent.errors import OperatorError
from d5agent.plugins.backup import Backup
from tests.fakes.machine import FakeDumpTool
from tests.fakes.stage import Stage
from tests.fakes.store import FakeObjectStore


class RecordingStore(FakeObjectStore):
    """Remembers the order in which objects came to be."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    @override
    async def put(self, key: str, body: bytes, *, replacing: bytes | None = None) -> bool:
        self.order.append(key)
        return await super().put(key, body, replacing=replacing)


def tool() -> FakeDumpTool:
    return FakeDumpTool(archives={"shop": [b"one", b"two"], "a/b": [b"three"]}, documents={"shop": {"shop.orders": 7}})


async def test_each_side_is_dumped_and_its_manifest_says_what_it_holds() -> None:
    stage = Stage()
    await Backup(tools={"target": tool(), "source": tool()}, store=stage.store).run(stage.coordinator)
    assert stage.store.objects["dump/run/target/shop.archive.gz"] == b"onetwo"
    assert stage.store.objects["dump/run/source/a%2Fb.archive.gz"] == b"three"
    manifest = json.loads(stage.store.objects["dump/run/target/manifest.json"])
    assert (manifest["run_id"], manifest["side"], manifest["mongodump"]) == ("run", "target", "100.12.2")
    by_database = {archive["database"]: archive for archive in manifest["archives"]}
    assert by_database["shop"] == {
        "database": "shop",
        "key": "dump/run/target/shop.archive.gz",
        "bytes": 6,
        "sha256": hashlib.sha256(b"onetwo").hexdigest(),
        "documents": {"shop.orders": 7},
    }
    assert [facts["side"] for facts in stage.coordinator.journal.facts_of("backup_stored")] == ["target", "source"]
    assert stage.coordinator.facts == {"target_bytes": 11, "source_bytes": 11}


async def test_a_manifest_comes_after_the_dumps_that_it_names() -> None:
    store = RecordingStore()
    stage = Stage(store=store)
    target = tool()
    await Backup(tools={"target": target}, store=store).run(stage.coordinator)
    assert store.order == ["dump/run/target/manifest.json"]
    assert list(store.objects)[-1] == "dump/run/target/manifest.json"
    assert sorted(target.ended) == ["a/b", "shop"]


async def test_a_failing_dump_leaves_no_manifest_and_no_archive() -> None:
    stage = Stage()
    target = tool()
    target.errors["shop"] = OperatorError("mongodump ended with 1", hint="see its last lines")
    with pytest.raises(OperatorError, match="ended with 1"):
        await Backup(tools={"target": target, "source": tool()}, store=stage.store).run(stage.coordinator)
    assert not [key for key in stage.store.objects if key.endswith("manifest.json")]
    assert "dump/run/target/shop.archive.gz" not in stage.store.objects
    assert target.running == []


async def test_a_side_that_has_its_manifest_is_not_dumped_again() -> None:
    stage = Stage()
    target, source = tool(), tool()
    source.errors["shop"] = OperatorError("mongodump ended with 1")
    backup = Backup(tools={"target": target, "source": source}, store=stage.store)
    with pytest.raises(OperatorError, match="ended with 1"):
        await backup.run(stage.coordinator)
    source.errors.clear()
    dumped = list(target.ended)
    await backup.run(stage.coordinator)
    assert target.ended == dumped
    assert sum(key.endswith("manifest.json") for key in stage.store.objects) == 2


async def test_a_tool_that_cannot_be_used_is_found_before_the_first_dump_begins() -> None:
    stage = Stage()
    target, source = tool(), tool()
    source.version_error = OperatorError("mongodump 100.7.1 fails on Amazon DocumentDB")
    with pytest.raises(OperatorError, match="fails on Amazon DocumentDB"):
        await Backup(tools={"target": target, "source": source}, store=stage.store).run(stage.coordinator)
    assert target.ended == []
    assert stage.store.objects == {}
