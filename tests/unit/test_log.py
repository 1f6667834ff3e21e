"""The log's own rules: what makes a chain, how a commit stands in the store, roll-ups, and who wrote first."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import pytest
from bson import encode
from typing_extensions import override

from d5agent.core.log import (
    ROLLUP_SIZE,
    VERSION,
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
from d5agent.core.naming import commit_key
from d5agent.core.operation import ClusterTime, Position
from d5agent.core.segment import SegmentRef
from d5agent.errors import CorruptDataError, LogHeldError, TransientError
from d5agent.steps.log_reader import LogReader
from d5agent.steps.log_writer import LogWriter
from d5agent.steps.roll_ups import RollUps
from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeObjectStore

SECONDS: Final = 1_793_600_000
TOKEN: Final = encode({"_data": "00ff"})
WRITER: Final = Writer(run_id="run", agent_id="agent", host="host", since="2026-11-02T08:00:00.000+00:00")
OTHER: Final = Writer(run_id="other run", agent_id="other", host="other host", since="2026-11-02T07:00:00.000+00:00")
SEGMENT: Final = SegmentRef(
    key="replication/shop/größe/1793600000-0000000001_1.bson",
    count=3,
    bytes=120,
    sha256="ab" * 32,
    first=ClusterTime(SECONDS, 1),
    last=ClusterTime(SECONDS, 2),
)
MARK: Final = replace(SEGMENT, key="replication/d5agent/marks/1793600000-0000000001_1.bson", count=1)
FIRST: Final = Commit(
    sequence=0,
    writer=WRITER,
    written_at="2026-11-02T08:00:01.000+00:00",
    previous=None,
    segments=(SEGMENT, MARK),
    position=Position(cluster_time=ClusterTime(SECONDS, 2), token=TOKEN),
    total=Total(operations=4, bytes=240, segments=2),
)


class CountingStore(FakeObjectStore):
    """Counts what is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    @override
    async def get(self, key: str) -> bytes | None:
        self.fetched.append(key)
        return await super().get(key)


class ForgetfulStore(FakeObjectStore):
    """Stores what it is given and does not say so: its caller's repetition finds the key taken."""

    @override
    async def put_once(self, key: str, body: bytes) -> bool:
        await super().put_once(key, body)
        return False


class LosingStore(FakeObjectStore):
    """Says that a key is taken, and has nothing under it."""

    @override
    async def put_once(self, key: str, body: bytes) -> bool:
        return False


def link(commit: Commit) -> Link:
    return Link(commit=commit, digest=digest(encode_commit(commit)))


def following(before: Commit) -> Commit:
    return replace(before, sequence=before.sequence + 1, previous=link(before).digest, segments=())


def writer_of(store: FakeObjectStore, *, writer: Writer = WRITER, last: Link | None = None) -> LogWriter:
    return LogWriter(store=store, clock=FakeClock(), writer=writer, last=last)


def position(increment: int) -> Position:
    return Position(cluster_time=ClusterTime(SECONDS, increment), token=None)


async def write(writer: LogWriter, numbers: range) -> None:
    for number in numbers:
        await writer.publish((), position(number))
        if is_rollup_due(number):
            await RollUps(store=writer.store).write_missing(number + 1)


def test_a_chain_that_is_whole_is_accepted() -> None:
    check_link(None, link(FIRST))
    check_link(link(FIRST), link(following(FIRST)))


def test_a_chain_may_stand_still_in_time() -> None:
    second = following(FIRST)
    assert second.position == FIRST.position
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
        ({"sequence": 1}, "a commit is missing in the log"),
        ({"previous": "00"}, "the chain of commits is broken"),
        ({"total": Total(operations=5, bytes=240, segments=2)}, "a commit's totals do not add up"),
    ],
)
def test_a_log_that_does_not_begin_at_its_beginning_is_broken(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptDataError) as broken:
        check_link(None, link(replace(FIRST, **change)))
    assert broken.value.message == message


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


@pytest.mark.parametrize("version", [VERSION + 1, 0, "1"])
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


async def test_a_thousand_commits_are_rolled_up_and_read_with_few_requests() -> None:
    store = CountingStore()
    writer = writer_of(store)
    await write(writer, range(ROLLUP_SIZE - 1))
    assert rollup_key(0) not in store.objects
    await write(writer, range(ROLLUP_SIZE - 1, ROLLUP_SIZE + 3))
    assert list(decode_rollup(store.objects[rollup_key(0)])) == [
        store.objects[commit_key(number)] for number in range(ROLLUP_SIZE)
    ]
    store.fetched.clear()
    links = [found async for found in LogReader(store=store).links()]
    assert [found.commit.sequence for found in links] == list(range(ROLLUP_SIZE + 3))
    assert store.fetched == [rollup_key(0), *(commit_key(ROLLUP_SIZE + number) for number in range(3))]
    assert links[-1] == writer.last


async def test_the_newest_commit_is_found_with_one_request_however_long_the_log() -> None:
    store = CountingStore()
    writer = writer_of(store)
    await write(writer, range(ROLLUP_SIZE + 3))
    store.fetched.clear()
    assert await LogReader(store=store).last() == writer.last
    assert store.fetched == [commit_key(ROLLUP_SIZE + 2)]


async def test_reading_goes_on_in_the_middle_of_a_roll_up() -> None:
    store = CountingStore()
    writer = writer_of(store)
    await write(writer, range(600))
    after = writer.last
    await write(writer, range(600, ROLLUP_SIZE + 1))
    store.fetched.clear()
    sequences = [found.commit.sequence async for found in LogReader(store=store).links(after=after)]
    assert sequences == list(range(600, ROLLUP_SIZE + 1))
    assert store.fetched == [rollup_key(0), commit_key(ROLLUP_SIZE)]


async def test_a_commit_that_is_gone_is_noticed_when_the_log_is_read() -> None:
    store = FakeObjectStore()
    await write(writer_of(store), range(4))
    await store.delete([commit_key(2)])
    with pytest.raises(CorruptDataError, match="a commit is missing in the log") as broken:
        [found async for found in LogReader(store=store).links()]
    assert broken.value.facts == {"missing": commit_key(2), "found": commit_key(3)}


async def test_an_empty_log_has_no_newest_commit() -> None:
    assert await LogReader(store=FakeObjectStore()).last() is None


async def test_a_lost_race_for_a_number_names_who_won_it() -> None:
    store = FakeObjectStore()
    mine = writer_of(store)
    await write(mine, range(2))
    before = mine.last
    await writer_of(store, writer=OTHER, last=before).publish((), position(2))
    theirs = store.objects[commit_key(2)]
    with pytest.raises(LogHeldError, match="another agent writes this log") as lost:
        await mine.publish((), position(2))
    assert lost.value.facts == {
        "host": "other host",
        "run_id": "other run",
        "since": "2026-11-02T07:00:00.000+00:00",
        "sequence": 2,
    }
    assert "stop one of the two agents" in lost.value.hint
    assert store.objects[commit_key(2)] == theirs
    assert mine.last == before


async def test_a_commit_of_our_own_that_arrives_late_is_read_on_from_and_nobody_holds_the_log() -> None:
    store = FakeObjectStore()
    before_the_outage = writer_of(store)
    await write(before_the_outage, range(1))
    again = writer_of(store, last=before_the_outage.last)
    await write(before_the_outage, range(1, 2))  # sent before, and stored only now
    with pytest.raises(TransientError, match="arrived late"):
        await again.publish((), position(2))
    assert await LogReader(store=store).last() == before_the_outage.last


async def test_a_repeated_put_of_our_own_commit_is_no_race() -> None:
    store = ForgetfulStore()
    writer = writer_of(store)
    await write(writer, range(3))
    assert writer.last is not None
    assert writer.last.commit.sequence == 2
    assert [found.commit.sequence async for found in LogReader(store=store).links()] == [0, 1, 2]


async def test_a_commit_that_vanishes_is_no_race_either() -> None:
    with pytest.raises(CorruptDataError, match="a commit has vanished") as vanished:
        await writer_of(LosingStore()).publish((), position(1))
    assert vanished.value.facts == {"key": commit_key(0)}


async def test_a_store_that_fails_leaves_the_writer_where_it_was() -> None:
    class DownStore(FakeObjectStore):
        is_down = False

        @override
        async def put_once(self, key: str, body: bytes) -> bool:
            if self.is_down:
                raise TransientError("the store does not answer")
            return await super().put_once(key, body)

    store = DownStore()
    writer = writer_of(store)
    await write(writer, range(1))
    before, store.is_down = writer.last, True
    with pytest.raises(TransientError):
        await writer.publish((), position(1))
    assert writer.last == before
    store.is_down = False
    await writer.publish((), position(1))
    assert [found.commit.sequence async for found in LogReader(store=store).links()] == [0, 1]


@pytest.mark.parametrize("commits", [0, 1, ROLLUP_SIZE - 1, ROLLUP_SIZE, ROLLUP_SIZE + 1, 2 * ROLLUP_SIZE])
async def test_the_newest_commit_is_found_on_both_sides_of_a_roll_up(commits: int) -> None:
    store = FakeObjectStore()
    writer = writer_of(store)
    await write(writer, range(commits))
    assert await LogReader(store=store).last() == writer.last
