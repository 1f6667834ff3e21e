"""Backups: names, manifests, and what mongodump says of itself."""

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


def test_a_dump_stands_under_its_run_side_and_database() -> None:
    assert archive_key("run", "source", "a/b é") == "dump/run/source/a%2Fb%20%C3%A9.archive.gz"
    assert manifest_key("run", "target") == "dump/run/target/manifest.json"


def test_a_manifest_tells_all_that_a_restore_needs() -> None:
    archive = Archive(database="shop", key="key", bytes=7, sha256="ab", documents={"orders": 3})
    body = encode_manifest(
        run_id="run", side="source", operation_time=ClusterTime(5, 6), tool_version="100.11.0", archives=[archive]
    )
    assert body.endswith(b"\n")
    assert json.loads(body) == {
        "version": 1,
        "run_id": "run",
        "side": "source",
        "operation_time": [5, 6],
        "mongodump": "100.11.0",
        "archives": [{"database": "shop", "key": "key", "bytes": 7, "sha256": "ab", "documents": {"orders": 3}}],
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2026-11-02T08:00:00.000+0000\tdone dumping shop.orders (3 documents)", ("shop.orders", 3)),
        ("2026-11-02T08:00:00.000+0000\tdone dumping shop.a (b) (1 document)", ("shop.a (b)", 1)),
        ("2026-11-02T08:00:00.000+0000\twriting shop.orders to archive on stdout", None),
    ],
)
def test_a_collection_that_is_done_is_told_with_its_documents(line: str, told: tuple[str, int] | None) -> None:
    assert parse_progress(line) == told


def test_the_version_is_read_from_what_the_tool_says() -> None:
    assert parse_version("mongodump version: 100.11.0\ngit version: x\n") == "100.11.0"
    with pytest.raises(OperatorError, match="no mongodump"):
        parse_version("command not found")


@pytest.mark.parametrize("version", ["100.7.0", "100.7.3"])
def test_the_versions_that_fail_on_documentdb_are_refused_there(version: str) -> None:
    with pytest.raises(OperatorError, match="fails on Amazon DocumentDB"):
        check_version(version, flavor="documentdb")
    check_version(version, flavor="mongodb")


@pytest.mark.parametrize("version", ["100.6.1", "100.7.4", "100.11.0"])
def test_the_versions_around_them_are_taken(version: str) -> None:
    check_version(version, flavor="documentdb")
