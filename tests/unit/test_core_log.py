"""The log: golden bytes, and each fault of a chain by its own name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bson import Timestamp, encode

from d5agent.core.log import (
    Commit,
    Link,
    Total,
    Writer,
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
from d5agent.core.operation import OWN_DATABASE, ClusterTime, Namespace, Position
from d5agent.core.segment import SegmentRef, encode_segment
from d5agent.errors import CorruptDataError
from tests.fakes.events import ITEMS, at, operation

DATA = Path(__file__).parents[1] / "data"
WRITER = Writer(
    run_id="20261102T080000Z-1f3a", agent_id="a-1", host="ip-10-0-0-7", since="2026-11-02T08:00:00.000+00:00"
)
GOLDEN_REF = SegmentRef(
    key="replication/shop/orders/1793600000-0000000001_1.bson",
    count=4,
    bytes=753,
    sha256="8ff59a6eb08c2d84b4e2a9d2d92945b53f0ffd91ebbd0d68f9fb69de1d8cde33",
    first=ClusterTime(1_793_600_000, 1),
    last=ClusterTime(1_793_600_000, 4),
)
GOLDEN = Commit(
    sequence=0,
    writer=WRITER,
    written_at="2026-11-02T08:00:01.000+00:00",
    previous=None,
    segments=(GOLDEN_REF,),
    position=Position(cluster_time=ClusterTime(1_793_600_000, 4), token=encode({"_data": "00000004"})),
    total=Total(operations=4, bytes=753, segments=1),
)
GOLDEN_DIGEST = "5661a60fa40fae47c1c61b1b94ddba3f2fd13ffe65ae28ef085b05eae983e1ef"


def _link(commit: Commit) -> Link:
    return Link(commit=commit, digest=digest(encode_commit(commit)))


def _ref(increment: int, *, namespace: Namespace = ITEMS) -> SegmentRef:
    segment = encode_segment([operation("insert", increment, namespace=namespace)])
    return segment.ref(segment.key())


def _next(before: Link, *, increment: int = 5) -> Commit:
    refs = (_ref(increment),)
    return Commit(
        sequence=before.commit.sequence + 1,
        writer=WRITER,
        written_at="2026-11-02T08:00:02.000+00:00",
        previous=before.digest,
        segments=refs,
        position=Position(cluster_time=at(increment), token=None),
        total=grown(before.commit.total, refs),
    )


FIRST = _link(GOLDEN)


def test_a_commits_bytes_are_those_of_yesterday() -> None:
    body = (DATA / "commit-1.json").read_bytes()
    assert encode_commit(GOLDEN) == body
    assert decode_commit(body, key=GOLDEN.key) == GOLDEN
    assert digest(body) == GOLDEN_DIGEST


def test_yesterdays_roll_up_is_read_and_its_chain_holds() -> None:
    body = (DATA / "rollup-1.jsonl").read_bytes()
    lines = list(decode_rollup(body))
    first, second = (Link(commit=decode_commit(line, key="rollup"), digest=digest(line)) for line in lines)
    check_link(None, first)
    check_link(first, second)
    assert encode_rollup(lines) == body
    assert second.commit.position.token is None


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{}", b'{"version":1}', b"\xff", b'{"version":1,"sequence":0}'])
def test_what_is_no_commit_is_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptDataError, match="no commit") as caught:
        decode_commit(body, key="the-key")
    assert caught.value.facts == {"key": "the-key"}


def test_a_commit_of_another_version_says_so() -> None:
    body = encode_commit(GOLDEN).replace(b'"version":1', b'"version":2')
    with pytest.raises(CorruptDataError, match="another version") as caught:
        decode_commit(body, key="the-key")
    assert caught.value.facts["version"] == 2
    assert "newer" in caught.value.hint


@pytest.mark.parametrize(
    "token",
    [
        None,
        encode({"_data": "82"}),
        encode({"_data": b"\x01\x02"}),
        encode({"t": Timestamp(1, 2), "n": 2**40, "d": 1.0}),
    ],
)
def test_a_token_of_any_shape_comes_back_byte_for_byte(token: bytes | None) -> None:
    assert token_from_json(json.loads(json.dumps(token_to_json(token)))) == token


def test_a_chain_begins_with_sequence_zero() -> None:
    check_link(None, FIRST)
    check_link(FIRST, _link(_next(FIRST)))


FOLLOWER = _next(FIRST)


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (_link(replace(FOLLOWER, sequence=2)), "a commit is missing"),
        (_link(replace(FOLLOWER, sequence=0)), "a commit is missing"),
        (_link(replace(FOLLOWER, previous="0" * 64)), "the chain of commits is broken"),
        (_link(replace(FOLLOWER, previous=None)), "the chain of commits is broken"),
        (_link(replace(FOLLOWER, total=Total(operations=6, bytes=0, segments=2))), "totals do not add up"),
        (_link(replace(FOLLOWER, position=Position(cluster_time=at(3), token=None))), "goes back in time"),
    ],
)
def test_each_fault_of_a_chain_has_its_own_name(link: Link, message: str) -> None:
    with pytest.raises(CorruptDataError, match=message) as caught:
        check_link(FIRST, link)
    assert "d5agent log verify" in caught.value.hint


def test_a_missing_commit_is_named_and_the_one_found_instead() -> None:
    with pytest.raises(CorruptDataError) as caught:
        check_link(None, _link(_next(FIRST)))
    assert caught.value.facts == {
        "missing": "replication/.log/000000000000.json",
        "found": "replication/.log/000000000001.json",
    }


def test_a_first_commit_with_a_previous_one_is_a_broken_chain() -> None:
    with pytest.raises(CorruptDataError, match="chain of commits is broken"):
        check_link(None, _link(replace(GOLDEN, previous="0" * 64)))


def test_our_own_marks_are_not_counted_as_operations_of_others() -> None:
    own, foreign = _ref(6, namespace=Namespace(OWN_DATABASE, "marks")), _ref(7)
    assert [is_own(ref) for ref in (own, foreign)] == [True, False]
    assert foreign_operations(replace(GOLDEN, segments=(own, foreign))) == 1


def test_a_roll_up_is_due_with_each_thousandth_commit() -> None:
    assert [is_rollup_due(sequence) for sequence in (998, 999, 1000, 1999)] == [False, True, False, True]
    assert rollup_key(1000) == "replication/.log/rollup/000000001000.jsonl"
