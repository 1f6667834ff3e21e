"""Backups: which mongodump may dump what, what its output says, and where a dump stands."""

from __future__ import annotations

import json

import pytest

from d5agent.core.backup import (
    Archive,
    archive_key,
    check_version,
    encode_manifest,
    manifest_key,
    parse_progress,
    parse_version,
)
from d5agent.core.operation import ClusterTime
from d5agent.errors import OperatorError


@pytest.mark.parametrize("version", ["100.7.0", "100.7.1", "100.7.2", "100.7.3", "v100.7.3", "100.7.3-rc0"])
def test_versions_that_ask_for_what_documentdb_has_not_are_refused_there(version: str) -> None:
    with pytest.raises(OperatorError) as refused:
        check_version(version, flavor="documentdb")
    assert refused.value.message == f"mongodump {version} fails on Amazon DocumentDB"
    assert "100.11.0" in refused.value.hint


@pytest.mark.parametrize("version", ["100.6.1", "100.7.4", "100.7.10", "100.8.0", "100.11.0", "100.12.2", "101.7.1"])
def test_versions_before_and_after_may_dump_documentdb(version: str) -> None:
    check_version(version, flavor="documentdb")


@pytest.mark.parametrize("version", ["100.7.0", "100.7.3", "100.11.0"])
def test_mongodb_may_be_dumped_by_any_version(version: str) -> None:
    check_version(version, flavor="mongodb")


@pytest.mark.parametrize("version", ["built-without-version-string", "", "unknown"])
def test_a_version_without_numbers_is_not_one_of_those_that_fail(version: str) -> None:
    check_version(version, flavor="documentdb")


def test_the_version_is_found_in_what_the_tool_says_of_itself() -> None:
    told = "mongodump version: 100.11.0\ngit version: 21bd2d8\nGo version: go1.23\n   os: linux\n"
    assert parse_version(told) == "100.11.0"


@pytest.mark.parametrize("text", ["", "mongodump version:", "mongorestore version: 100.11.0", "git version: 1"])
def test_what_tells_no_version_is_no_mongodump(text: str) -> None:
    with pytest.raises(OperatorError, match="this is no mongodump") as refused:
        parse_version(text)
    assert "100.11.0" in refused.value.hint


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("2026-11-02T08:00:00.000+0000\tdone dumping shop.orders (12 documents)", ("shop.orders", 12)),
        ("2026-11-02T08:00:00.000+0000\tdone dumping shop.orders (1 document)", ("shop.orders", 1)),
        ("done dumping shop.empty (0 documents)", ("shop.empty", 0)),
        ("done dumping shop.with (brackets) (3 documents) (4 documents)", ("shop.with (brackets) (3 documents)", 4)),
    ],
)
def test_a_line_that_a_collection_is_done_tells_how_many_documents(line: str, found: tuple[str, int]) -> None:
    assert parse_progress(line) == found


@pytest.mark.parametrize(
    "line",
    [
        "",
        "writing shop.orders to archive on stdout",
        "done dumping shop.orders",
        "done dumping shop.orders (many documents)",
        "done dumping shop.orders (12 documents) and more",
        "Failed: error connecting to db server",
    ],
)
def test_any_other_line_tells_nothing(line: str) -> None:
    assert parse_progress(line) is None


def test_a_dump_stands_under_its_run_and_side_whatever_the_databases_name() -> None:
    assert archive_key("run", "source", "shop") == "dump/run/source/shop.archive.gz"
    assert archive_key("run", "target", "a/b c%") == "dump/run/target/a%2Fb%20c%25.archive.gz"
    assert manifest_key("run", "source") == "dump/run/source/manifest.json"


def test_a_manifest_says_what_was_dumped_and_since_when_it_is_true() -> None:
    key = archive_key("run", "source", "größe")
    archive = Archive(database="größe", key=key, bytes=9, sha256="ab", documents={"größe.a": 3})
    body = encode_manifest(
        run_id="run", side="source", operation_time=ClusterTime(7, 2), tool_version="100.11.0", archives=[archive]
    )
    assert "größe".encode() in body
    assert body.endswith(b"}\n")
    assert json.loads(body) == {
        "version": 1,
        "run_id": "run",
        "side": "source",
        "operation_time": [7, 2],
        "mongodump": "100.11.0",
        "archives": [
            {"database": "größe", "key": key, "bytes": 9, "sha256": "ab", "documents": {"größe.a": 3}},
        ],
    }
