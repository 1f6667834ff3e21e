"""mongodump: which version may dump what, and what its output says."""

from __future__ import annotations

import pytest

from d5agent.core.mongodump import DumpProgress, check_version, parse_version
from d5agent.errors import OperatorError

STAMP = "2026-11-02T08:00:00.000+0000\t"


@pytest.mark.parametrize("version", ["100.7.0", "100.7.1", "100.7.2", "100.7.3", "v100.7.3", "100.7.3-rc0"])
def test_versions_that_ask_for_what_documentdb_has_not_are_refused_there(version: str) -> None:
    with pytest.raises(OperatorError) as refused:
        check_version(version, flavor="documentdb")
    assert refused.value.message == f"mongodump {version} fails on Amazon DocumentDB"
    assert "100.11.0" in refused.value.hint
    assert "mongodb-database-tools" in refused.value.hint


@pytest.mark.parametrize("version", ["100.6.1", "100.7.4", "100.7.10", "100.8.0", "100.11.0", "100.11.3"])
def test_versions_before_and_after_may_dump_documentdb(version: str) -> None:
    assert check_version(version, flavor="documentdb") == ""


@pytest.mark.parametrize("version", ["100.12.0", "100.12.2", "101.7.1", "200.0.0"])
def test_versions_that_aws_does_not_support_are_warned_of(version: str) -> None:
    advice = check_version(version, flavor="documentdb")
    assert advice == f"AWS supports MongoDB Database Tools up to 100.11.0 on DocumentDB; this is {version}"


@pytest.mark.parametrize("version", ["100.7.0", "100.7.3", "100.11.0", "100.12.2"])
def test_mongodb_may_be_dumped_by_any_version(version: str) -> None:
    assert check_version(version, flavor="mongodb") == ""


@pytest.mark.parametrize("version", ["built-without-version-string", "", "unknown"])
def test_a_version_without_numbers_is_not_one_of_those_that_fail(version: str) -> None:
    assert check_version(version, flavor="documentdb") == ""


def test_the_version_is_found_in_what_the_tool_says_of_itself() -> None:
    told = "mongodump version: 100.11.0\ngit version: 21bd2d8\nGo version: go1.23\n   os: linux\n"
    assert parse_version(told) == "100.11.0"


@pytest.mark.parametrize("text", ["", "mongodump version:", "mongorestore version: 100.11.0", "git version: 1"])
def test_what_tells_no_version_is_no_mongodump(text: str) -> None:
    with pytest.raises(OperatorError, match="this is no mongodump") as refused:
        parse_version(text)
    assert "100.11.0" in refused.value.hint


def progress_after(*lines: str) -> DumpProgress:
    progress = DumpProgress()
    for line in lines:
        progress.feed(line)
    return progress


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("done dumping shop.orders (12 documents)", {"shop.orders": 12}),
        ("done dumping shop.orders (1 document)", {"shop.orders": 1}),
        ("done dumping shop.empty (0 documents)", {"shop.empty": 0}),
        ("done dumping shop.with (brackets) (3 documents) (4 documents)", {"shop.with (brackets) (3 documents)": 4}),
    ],
)
def test_a_line_that_a_collection_is_done_tells_how_many_documents(said: str, found: dict[str, int]) -> None:
    progress = progress_after(STAMP + said)
    assert progress.done == found
    assert progress.documents == sum(found.values())


def test_a_name_with_line_breaks_in_it_comes_in_pieces() -> None:
    progress = progress_after(
        f"{STAMP}writing shop.line",
        "break to archive on stdout",
        f"{STAMP}done dumping shop.line",
        "",
        "x (5 documents)",
    )
    assert progress.done == {"shop.line\n\nx": 5}


def test_bars_tell_how_many_documents_so_far() -> None:
    progress = progress_after(
        f"{STAMP}[##......................]       shop.orders  8236/80000  (10.3%)",
        f"{STAMP}[........................]  shop.with space     0/10     (0.0%)",
        "",
        f"{STAMP}[####....................]  shop.orders  16472/80000  (20.6%)",
    )
    assert progress.under_way == {"shop.orders": 16472, "shop.with space": 0}
    assert (progress.documents, progress.done) == (16472, {})
    progress.feed(f"{STAMP}done dumping shop.orders (80001 documents)")
    assert progress.documents == 80001


@pytest.mark.parametrize(
    "said",
    [
        "",
        "writing shop.orders to archive on stdout",
        "done dumping shop.orders",
        "done dumping shop.orders (many documents)",
        "done dumping shop.orders (12 documents) and more",
        "Failed: error connecting to db server",
        "[####....................] and no numbers",
    ],
)
def test_any_other_line_tells_nothing(said: str) -> None:
    assert progress_after(STAMP + said).documents == 0
