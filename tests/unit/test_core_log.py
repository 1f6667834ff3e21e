"""The log: golden bytes, and each fault of a chain by its own name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bson import encode

from d5agent.core.log.chain import (
    ROLLUP_SIZE,
    VERSION,
    VERSION_WITH_RENAMES,
    Commit,
    Link,
    Total,
    WriterIdentity,
    check_link,
    decode_commit,
    decode_rollup,
    digest,
    encode_commit,
    encode_rollup,
    foreign_operations,
    grown,
    is_own,
    is_rollup_due,
    rollup_key,
    token_from_json,
    token_to_json,
)
from d5agent.core.log.naming import commit_key
from d5agent.core.log.operation import ClusterTime, Position
from d5agent.errors import CorruptDataError
from tests.fakes.commits import FIRST, GOLDEN_SEGMENT, MARK, SECONDS, SEGMENT, TOKEN, following, link

DATA = Path(__file__).parents[1] / "data"
WRITER = WriterIdentity(
    run_id="20261102T080000Z-1f3a", agent_id="a-1", host="ip-10-0-0-7", since="2026-11-02T08:00:00.000+00:00"
)
GOLDEN = Commit(
    sequence=0,
    writer=WRITER,
    written_at="2026-11-02T08:00:01.000+00:00",
    previous=None,
    segments=(GOLDEN_SEGMENT,),
    position=Position(cluster_time=ClusterTime(1_793_600_000, 4), token=encode({"_data": "00000004"})),
    total=Total(operations=4, bytes=753, segments=1),
)
GOLDEN_DIGEST = "5661a60fa40fae47c1c61b1b94ddba3f2fd13ffe65ae28ef085b05eae983e1ef"


def test_a_commits_bytes_are_those_of_yesterday() -> None:
    body = (DATA / "commit-1.json").read_bytes()
    assert encode_commit(GOLDEN) == body
    assert decode_commit(body, key=GOLDEN.key) == GOLDEN
    assert digest(body) == GOLDEN_DIGEST


def test_a_commit_with_a_rename_has_the_bytes_of_yesterday() -> None:
    mixed = replace(GOLDEN_SEGMENT, key="replication/.mixed/1793600000-0000000001_1.bson")
    commit = replace(GOLDEN, segments=(mixed,), begins_after=ClusterTime(1_793_599_999, 1), renames_within=True)
    body = (DATA / "commit-2.json").read_bytes()
    assert encode_commit(commit) == body
    assert decode_commit(body, key=commit.key) == commit
    assert digest(body) == "196741146fc28d8bc888fbde79ee3d86318bea5d2f9847bba2132c0513a149a3"


def test_a_commit_names_where_the_log_begins() -> None:
    commit = replace(GOLDEN, begins_after=ClusterTime(1_793_600_000, 3))
    body = encode_commit(commit)
    assert body.endswith(b',"begins_after":[1793600000,3]}\n')
    assert decode_commit(body, key=commit.key) == commit


def test_yesterdays_roll_up_is_read_and_its_chain_holds() -> None:
    body = (DATA / "rollup-1.jsonl").read_bytes()
    lines = list(decode_rollup(body))
    first, second = (Link(commit=decode_commit(line, key="rollup"), digest=digest(line)) for line in lines)
    check_link(None, first)
    check_link(first, second)
    assert encode_rollup(lines) == body
    assert second.commit.position.token is None


def test_a_chain_may_stand_still_in_time() -> None:
    second = following(FIRST)
    assert second.position == FIRST.position
    check_link(None, link(FIRST))
    check_link(link(FIRST), link(second))


@pytest.mark.parametrize(
    ("change", "message", "facts"),
    [
        (
            {"sequence": 2},
            "a commit is missing in the log",
            {"missing": commit_key(1), "found": commit_key(2)},
        ),
        (
            {"sequence": 0},
            "a commit is missing in the log",
            {"missing": commit_key(1), "found": commit_key(0)},
        ),
        ({"previous": "00"}, "the chain of commits is broken", {"key": commit_key(1), "previous": "00"}),
        ({"previous": None}, "the chain of commits is broken", {"key": commit_key(1), "previous": None}),
        ({"total": Total()}, "a commit's totals do not add up", {"key": commit_key(1)}),
        ({"segments": (SEGMENT,)}, "a commit's totals do not add up", {"key": commit_key(1)}),
        (
            {"position": Position(cluster_time=ClusterTime(SECONDS, 1), token=TOKEN)},
            "a commit goes back in time",
            {"key": commit_key(1)},
        ),
    ],
)
def test_each_fault_of_a_chain_has_its_own_message(
    change: dict[str, Any], message: str, facts: dict[str, object]
) -> None:
    with pytest.raises(CorruptDataError) as broken:
        check_link(link(FIRST), link(replace(following(FIRST), **change)))
    assert (broken.value.message, broken.value.facts) == (message, facts)
    assert "d5agent log verify" in broken.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence": 1, "previous": "00"}, "a commit is missing in the log"),
        ({"sequence": 5_000, "previous": "00"}, "a commit is missing in the log"),
        ({"previous": "00"}, "the chain of commits is broken"),
        ({"total": Total(operations=5, bytes=240, segments=2)}, "a commit's totals do not add up"),
    ],
)
def test_a_log_that_does_not_begin_at_its_beginning_is_broken(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptDataError) as broken:
        check_link(None, link(replace(FIRST, **change)))
    assert broken.value.message == message


@pytest.mark.parametrize("sequence", [0, 1, 1_000, 123_456])
def test_a_log_begins_with_the_commit_that_has_none_before_it(sequence: int) -> None:
    first = replace(FIRST, sequence=sequence)
    check_link(None, link(first))
    check_link(link(first), link(following(first)))


@pytest.mark.parametrize("token", [TOKEN, None])
def test_a_commit_comes_out_of_its_line_as_it_went_in(token: bytes | None) -> None:
    commit = replace(FIRST, position=replace(FIRST.position, token=token))
    body = encode_commit(commit)
    assert (body.count(b"\n"), body[-1:]) == (1, b"\n")
    read = decode_commit(body, key=commit.key)
    assert read == commit
    assert encode_commit(read) == body
    assert isinstance(read.segments[0].first, ClusterTime)


@pytest.mark.parametrize(
    "token",
    [
        None,
        encode({}),
        encode({"_data": "82" * 40}),
        encode({"_data": b"\x00\xff", "number": 2**40, "small": 1, "double": 1.0}),
    ],
)
def test_a_token_of_any_kind_keeps_its_bytes(token: bytes | None) -> None:
    assert token_from_json(json.loads(json.dumps(token_to_json(token)))) == token


def test_a_commit_with_a_rename_within_is_refused_by_earlier_versions() -> None:
    renamed = replace(FIRST, renames_within=True)
    body = encode_commit(renamed)
    assert json.loads(body)["version"] == VERSION_WITH_RENAMES
    assert VERSION_WITH_RENAMES > VERSION
    assert decode_commit(body, key="the key") == renamed
    assert json.loads(encode_commit(FIRST))["version"] == VERSION


@pytest.mark.parametrize("version", [VERSION_WITH_RENAMES + 1, 0, "1"])
def test_a_commit_of_another_version_is_refused(version: object) -> None:
    body = json.dumps({**json.loads(encode_commit(FIRST)), "version": version}).encode()
    with pytest.raises(CorruptDataError, match="a commit of another version") as refused:
        decode_commit(body, key="the key")
    assert refused.value.facts == {"key": "the key", "version": version}
    assert "version" in refused.value.hint


@pytest.mark.parametrize("body", [b"", b"no json", b"\xff\xfe", b"[]", b"7", b"{}", b'{"version":1}'])
def test_what_is_no_commit_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(CorruptDataError, match="an object of the log is no commit") as refused:
        decode_commit(body, key="the key")
    assert refused.value.facts == {"key": "the key"}


@pytest.mark.parametrize("name", list(json.loads(encode_commit(FIRST))))
def test_a_commit_that_lacks_a_field_is_none(name: str) -> None:
    fields = json.loads(encode_commit(FIRST))
    del fields[name]
    with pytest.raises(CorruptDataError, match="an object of the log is no commit"):
        decode_commit(json.dumps(fields).encode(), key=FIRST.key)


def test_marks_of_the_agent_count_in_the_total_and_are_not_foreign() -> None:
    assert (is_own(MARK), is_own(SEGMENT)) == (True, False)
    assert foreign_operations(FIRST) == 3
    assert grown(Total(operations=1, bytes=2, segments=3), FIRST.segments) == Total(operations=5, bytes=242, segments=5)


def test_a_roll_up_is_due_with_every_thousandth_commit() -> None:
    assert [sequence for sequence in range(3 * ROLLUP_SIZE) if is_rollup_due(sequence)] == [999, 1999, 2999]
    assert rollup_key(1000) == "replication/.log/rollup/000000001000.jsonl"


def test_a_roll_up_holds_the_commits_bytes_unchanged() -> None:
    bodies = [encode_commit(FIRST), encode_commit(following(FIRST))]
    assert list(decode_rollup(encode_rollup(bodies))) == bodies
