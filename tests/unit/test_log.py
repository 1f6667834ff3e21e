"""The log's own rules: what makes a chain, how a commit stands in the store, roll-ups, and who wrote first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from bson import encode
from typing_extensions import override

from d5agent.core.log.chain import (
    ROLLUP_SIZE,
    Link,
    decode_rollup,
    is_rollup_due,
    rollup_key,
)
from d5agent.core.log.naming import commit_key
from d5agent.core.log.operation import ClusterTime, Position
from d5agent.errors import CorruptDataError, LogHeldError, TransientError
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.roll_ups import RollUps
from d5agent.steps.log.writer import LogWriter
from tests.fakes.clock import FakeClock
from tests.fakes.commits import OTHER, SECONDS, WRITER
from tests.fakes.store import DownStore, FakeObjectStore
from tests.fakes.trickle import CountingStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.core.log.chain import WriterIdentity


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


def writer_of(store: FakeObjectStore, *, writer: WriterIdentity = WRITER, last: Link | None = None) -> LogWriter:
    return LogWriter(store=store, clock=FakeClock(), writer=writer, last=last)


def position(increment: int, *, token: str | None = None) -> Position:
    return Position(
        cluster_time=ClusterTime(SECONDS, increment), token=None if token is None else encode({"_data": token})
    )


async def write(writer: LogWriter, numbers: range) -> None:
    for number in numbers:
        await writer.publish((), position(number))
        if is_rollup_due(number):
            await RollUps(store=writer.store).write_missing(number + 1)


@pytest.fixture(scope="module")
def thousands() -> tuple[Mapping[str, bytes], Sequence[Link | None]]:
    """The objects of a log of two thousand commits, rolled up, and what its writer held as the newest after each."""

    async def written() -> tuple[Mapping[str, bytes], Sequence[Link | None]]:
        store = FakeObjectStore()
        writer = writer_of(store)
        newest = [writer.last]
        for number in range(2 * ROLLUP_SIZE):
            await write(writer, range(number, number + 1))
            newest.append(writer.last)
        return store.objects, newest

    return asyncio.run(written())


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
    store = DownStore()
    writer = writer_of(store)
    await write(writer, range(1))
    before, store.error = writer.last, TransientError("the store does not answer")
    with pytest.raises(TransientError):
        await writer.publish((), position(1))
    assert writer.last == before
    store.error = None
    await writer.publish((), position(1))
    assert [found.commit.sequence async for found in LogReader(store=store).links()] == [0, 1]


@pytest.mark.parametrize("commits", [0, 1, ROLLUP_SIZE - 1, ROLLUP_SIZE, ROLLUP_SIZE + 1, 2 * ROLLUP_SIZE])
async def test_the_newest_commit_is_found_with_one_request_on_both_sides_of_a_roll_up(
    thousands: tuple[Mapping[str, bytes], Sequence[Link | None]], commits: int
) -> None:
    objects, newest = thousands
    kept = {*map(commit_key, range(commits)), *map(rollup_key, range(0, commits - ROLLUP_SIZE + 1, ROLLUP_SIZE))}
    store = CountingStore({key: body for key, body in objects.items() if key in kept})
    assert await LogReader(store=store).last() == newest[commits]
    assert store.fetched == [commit_key(number) for number in range(commits)][-1:]


async def test_events_older_than_the_time_of_a_silence_leave_a_log_that_is_whole() -> None:
    store = FakeObjectStore()
    writer = writer_of(store)
    await writer.publish((), position(540, token="silence"))  # ahead of events that were not read yet
    after = await writer.publish((), position(521, token="insert"))
    last = await writer.publish((), position(600, token="later"))
    assert after.position.cluster_time == ClusterTime(SECONDS, 540)
    assert after.position.token == encode({"_data": "insert"}), "the stream goes on where it really is"
    assert last.position.cluster_time == ClusterTime(SECONDS, 600)
    summary = await LogReader(store=store).check()
    assert summary.last is not None
    assert summary.last.commit == last


@pytest.mark.parametrize("first", [1_000, 123_456])
async def test_a_log_that_goes_on_from_the_run_before_is_read_and_rolled_up(first: int) -> None:
    store = CountingStore()
    writer = writer_of(store)
    await writer.begin(position(0), after=ClusterTime(SECONDS, 0), sequence=first)
    last = first + ROLLUP_SIZE + 700
    await write(writer, range(first + 1, last + 1))
    whole = range(-(-first // ROLLUP_SIZE) * ROLLUP_SIZE, last - ROLLUP_SIZE + 2, ROLLUP_SIZE)
    reader = LogReader(store=store)
    assert sorted(await reader.rolled_up()) == list(whole)
    assert await RollUps(store=store).write_missing(last + 1) == 0
    links = [found async for found in reader.links()]
    assert [found.commit.sequence for found in links] == list(range(first, last + 1))
    assert (await reader.first_sequence(), await reader.last_sequence()) == (first, last)
    assert await reader.last() == writer.last == links[-1]
    summary = await reader.check()
    assert (summary.last, summary.commits, summary.orphans) == (writer.last, len(links), ())
    assert [found async for found in reader.links(after=links[700])] == links[701:]
    await store.delete([commit_key(first)])
    if first not in whole:
        with pytest.raises(CorruptDataError, match="a commit is missing in the log") as broken:
            await anext(reader.links())
        assert broken.value.facts["missing"] == commit_key(first)


async def test_an_empty_log_has_neither_a_first_nor_a_last_number() -> None:
    reader = LogReader(store=FakeObjectStore())
    assert (await reader.first_sequence(), await reader.last_sequence()) == (0, -1)
