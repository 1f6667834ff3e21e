"""Backups: names, records, manifests, and the sizes of what is uploaded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from d5agent.core.backup import (
    Archive,
    Manifest,
    archive_key,
    decode_archive,
    decode_manifest,
    encode_archive,
    encode_manifest,
    is_record,
    manifest_key,
    part_bytes,
    record_key,
)
from d5agent.core.log.operation import ClusterTime
from d5agent.errors import CorruptDataError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable

ARCHIVE = Archive(
    database="größe",
    key=archive_key("run", "source", "größe"),
    bytes=9,
    sha256="ab",
    documents={"größe.a": 3, "größe.b": 4},
    operation_time=ClusterTime(7, 2),
    stored_at="2026-11-02T08:00:00+00:00",
)
MANIFEST = Manifest(
    run_id="run",
    side="source",
    operation_time=ClusterTime(7, 2),
    stored_at="2026-11-02T08:01:00+00:00",
    mongodump="100.11.0",
    server="6.0.5",
    archives=(ARCHIVE, replace(ARCHIVE, database="shop", bytes=1, documents={})),
)


def test_a_dump_stands_under_its_run_and_side_whatever_the_databases_name() -> None:
    assert archive_key("run", "source", "shop") == "dump/run/source/shop.archive.gz"
    assert archive_key("run", "target", "a/b c%é") == "dump/run/target/a%2Fb%20c%25%C3%A9.archive.gz"
    assert manifest_key("run", "source") == "dump/run/source/manifest.json"


def test_what_is_known_of_an_archive_is_never_taken_for_the_manifest() -> None:
    key = record_key("run", "source", "manifest")
    assert key == "dump/run/source/manifest.archive.json"
    assert is_record(key)
    assert not is_record(manifest_key("run", "source"))
    assert not is_record(archive_key("run", "source", "manifest"))


def test_what_is_known_of_an_archive_comes_back() -> None:
    assert decode_archive(encode_archive(ARCHIVE), "key") == ARCHIVE


def test_a_manifest_says_what_was_dumped_since_when_it_is_true_and_what_is_not_in_it() -> None:
    body = encode_manifest(MANIFEST)
    assert "größe".encode() in body
    assert body.endswith(b"}\n")
    assert decode_manifest(body, "key") == MANIFEST
    value = json.loads(body)
    assert {name: value[name] for name in value if name != "archives"} == {
        "version": 1,
        "run_id": "run",
        "side": "source",
        "operation_time": [7, 2],
        "stored_at": "2026-11-02T08:01:00+00:00",
        "mongodump": "100.11.0",
        "server": "6.0.5",
        "bytes": 10,
        "documents": 7,
        "not_included": ["users and roles", "the databases admin, config, local and d5agent"],
    }
    assert value["archives"][0] == {
        "database": "größe",
        "key": "dump/run/source/gr%C3%B6%C3%9Fe.archive.gz",
        "bytes": 9,
        "sha256": "ab",
        "documents": {"größe.a": 3, "größe.b": 4},
        "operation_time": [7, 2],
        "stored_at": "2026-11-02T08:00:00+00:00",
    }


@pytest.mark.parametrize("decode", [decode_archive, decode_manifest])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"version": 1}', b'{"version": 1, "documents": 1}', b"\xff", b"null"]
)
def test_what_is_damaged_is_refused_and_named(decode: Callable[[bytes, str], object], body: bytes) -> None:
    with pytest.raises(CorruptDataError, match="damaged") as refused:
        decode(body, "dump/run/x")
    assert refused.value.facts["key"] == "dump/run/x"


def test_a_manifest_whose_archives_are_damaged_is_refused() -> None:
    value = json.loads(encode_manifest(MANIFEST))
    value["archives"][0]["documents"] = 3
    with pytest.raises(CorruptDataError, match="damaged"):
        decode_manifest(json.dumps(value).encode(), "key")


def test_another_format_is_refused() -> None:
    with pytest.raises(CorruptDataError, match="another format"):
        decode_manifest(b'{"version": 2}', "key")


def test_parts_grow_and_end_where_s3_takes_no_more() -> None:
    mebibyte = 1024 * 1024
    assert {part_bytes(1), part_bytes(2000)} == {8 * mebibyte}
    assert {part_bytes(2001), part_bytes(10_000)} == {16 * mebibyte}
    with pytest.raises(OperatorError, match="larger than 140 GiB") as refused:
        part_bytes(10_001)
    assert "by hand" in refused.value.hint
