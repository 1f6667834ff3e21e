"""Backups that are listed, shown and checked: what is there, and what is wrong with what is not as it was stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from d5agent.errors import CorruptDataError, OperatorError
from d5agent.steps.backups import check_backup, is_stored, list_backups, load_manifest, manifests_of, store_manifest
from tests.fakes.machine import shop_tool
from tests.fakes.stage import Stage

if TYPE_CHECKING:
    from tests.fakes.store import FakeObjectStore

KEY = "dump/run/target/shop.archive.gz"


async def backed_up() -> FakeObjectStore:
    stage = Stage()
    await stage.backup(shop_tool(), shop_tool()).run(stage.coordinator)
    return stage.store


async def later_run(store: FakeObjectStore, run_id: str, stored_at: str) -> None:
    manifest = await load_manifest(store, "run", "target")
    assert manifest is not None
    await store_manifest(store, replace(manifest, run_id=run_id, stored_at=stored_at))


async def test_a_side_is_stored_once_its_manifest_is() -> None:
    store = await backed_up()
    assert await is_stored(store, "run", "target")
    del store.objects["dump/run/target/manifest.json"]
    assert not await is_stored(store, "run", "target")
    assert await is_stored(store, "run", "source")


async def test_backups_are_listed_the_oldest_first_and_those_that_are_none_before_them() -> None:
    store = await backed_up()
    await later_run(store, "younger", "2099-01-01T00:00:00+00:00")
    store.objects["dump/broken/source/shop.archive.gz"] = b"x"
    store.objects["dump/somebody's own/file"] = b"x"
    rows = [row.to_json() for row in await list_backups(store)]
    assert [(row["run_id"], row["side"], row["is_stored"]) for row in rows] == [
        ("broken", "source", False),
        ("run", "source", True),
        ("run", "target", True),
        ("younger", "target", True),
    ]
    assert {name: rows[1][name] for name in ("databases", "documents", "bytes")} == {
        "databases": 2,
        "documents": 7,
        "bytes": 11,
    }
    assert "bytes" not in rows[0]


async def test_without_an_id_the_last_run_is_meant() -> None:
    store = await backed_up()
    assert [(m.run_id, m.side) for m in await manifests_of(store, None)] == [("run", "target"), ("run", "source")]
    await later_run(store, "younger", "2099-01-01T00:00:00+00:00")
    assert [(m.run_id, m.side) for m in await manifests_of(store, None)] == [("younger", "target")]
    assert {m.run_id for m in await manifests_of(store, "run")} == {"run"}


async def test_a_backup_that_is_not_there_is_told_with_what_to_type() -> None:
    with pytest.raises(OperatorError, match="there is no backup") as refused:
        await manifests_of(Stage().store, None)
    assert refused.value.hint == "d5agent start backup makes one"
    with pytest.raises(OperatorError, match="no backup of this run") as refused:
        await manifests_of(await backed_up(), "another")
    assert refused.value.hint == "d5agent backups ls lists them"


async def test_a_whole_backup_is_found_whole() -> None:
    store = await backed_up()
    result = await check_backup(store, store, "run")
    assert result["whole"]
    assert [(row["side"], row["database"], row["fault"]) for row in result["archives"]] == [
        ("target", "a/b", ""),
        ("target", "shop", ""),
        ("source", "a/b", ""),
        ("source", "shop", ""),
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "the object is missing"),
        (b"onetw", "it has 5 bytes instead of 6"),
        (b"onetwp", "its content is another one: the sha256 differs"),
    ],
)
async def test_each_fault_of_an_archive_is_named(content: bytes | None, fault: str) -> None:
    store = await backed_up()
    del store.objects[KEY]
    if content is not None:
        store.objects[KEY] = content
    result = await check_backup(store, store, None)
    assert not result["whole"]
    assert [(row["key"], row["fault"]) for row in result["archives"] if row["fault"]] == [(KEY, fault)]


async def test_a_side_without_a_manifest_is_a_fault() -> None:
    store = await backed_up()
    del store.objects["dump/run/source/manifest.json"]
    result = await check_backup(store, store, None)
    assert not result["whole"]
    (row,) = [row for row in result["archives"] if row["fault"]]
    assert (row["side"], "no manifest" in row["fault"]) == ("source", True)


async def test_a_damaged_manifest_is_named() -> None:
    store = await backed_up()
    store.objects["dump/run/target/manifest.json"] = b"{}"
    with pytest.raises(CorruptDataError, match=r"target/manifest\.json"):
        await list_backups(store)
