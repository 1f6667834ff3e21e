"""Packs and roll-ups: what they hold, that a reader needs few requests with them, and nothing at all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pytest
from bson import decode_all, encode

from d5agent.core.log.chain import ROLLUP_SIZE, Total, decode_rollup, foreign_operations, rollup_key
from d5agent.core.log.naming import LOG, MIXED, SEGMENTS, commit_key
from d5agent.core.log.operation import ClusterTime
from d5agent.core.log.pack import decode_pack, encode_pack, pack_key, to_packs
from d5agent.core.log.segment import SegmentRef, decode_segment, encode_segment
from d5agent.errors import CorruptDataError
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.roll_ups import RollUps
from tests.fakes.events import ITEMS, ORDERS, operation
from tests.fakes.mortal import DiedError, Life, mortal
from tests.fakes.trickle import MARKS, CountingStore, operations_in, small, varied, write_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from d5agent.core.log.chain import Commit, Link
    from d5agent.core.log.segment import Segment

KIB: Final = 1024
MIB: Final = 1024 * KIB
KEY: Final = pack_key(1000)


# --- the pack itself


def commit_of(*sizes: int) -> Commit:
    """Return a commit whose segments have these sizes."""
    time = ClusterTime(1, 1)
    refs = tuple(
        SegmentRef(key=f"segment {n} of {size}", count=1, bytes=size, sha256="", first=time, last=time)
        for n, size in enumerate(sizes)
    )
    return replace(_COMMIT, segments=refs)


def _commit() -> Commit:
    store = CountingStore()
    return asyncio.run(write_log(store, [()])).commit


_COMMIT: Final = _commit()


def test_small_segments_are_packed_and_larger_ones_are_not() -> None:
    commits = [commit_of(0, 1, 16 * KIB), commit_of(), commit_of(16 * KIB + 1, MIB, 100)]
    assert [[ref.bytes for ref in part] for part in to_packs(commits)] == [[0, 1, 16 * KIB, 100]]
    assert to_packs([commit_of(16 * KIB + 1)]) == to_packs([]) == [[]]


def test_a_part_of_a_pack_ends_at_sixteen_mebibytes_and_the_next_goes_on() -> None:
    commits = [commit_of(*[16 * KIB] * 4) for _ in range(600)]
    parts = to_packs(commits)
    assert [len(part) for part in parts] == [1024, 1024, 352]
    assert [sum(ref.bytes for ref in part) for part in parts[:2]] == [16 * MIB] * 2
    assert [ref for part in parts for ref in part] == [ref for commit in commits for ref in commit.segments]


def test_a_pack_stands_beside_its_roll_up() -> None:
    assert pack_key(1000) == "replication/.log/rollup/000000001000.bson"
    assert pack_key(1000, 2) == "replication/.log/rollup/000000001000_2.bson"


def test_a_pack_is_documents_of_key_and_body_in_order() -> None:
    segments = [("replication/shop/größe/1", b"one"), ("replication/a/b/2", b""), ("replication/a/a/3", b"\0\xff")]
    pack = encode_pack(segments)
    assert decode_all(pack) == [{"key": key, "body": body} for key, body in segments]
    assert list(decode_pack(pack, key=KEY).items()) == segments
    assert decode_pack(b"", key=KEY) == {}


@pytest.mark.parametrize(
    "pack",
    [
        encode_pack([("a", b"a")])[:-1],
        encode_pack([("a", b"a")]) + b"\0",
        encode({"key": "a"}),
        encode({"body": b"a"}),
        encode({"key": 1, "body": b"a"}),
        encode({"key": {}, "body": b"a"}),
        encode({"key": "a", "body": "a"}),
        encode({"key": "a", "body": 7}),
        b"\x06\0\0\0\x99\0",
        b"no pack at all",
    ],
    ids=["cut", "longer", "no body", "no key", "number key", "document key", "text", "number", "no BSON", "none"],
)
def test_a_damaged_pack_is_named_and_may_be_deleted(pack: bytes) -> None:
    with pytest.raises(CorruptDataError, match="a pack of segments is damaged") as caught:
        decode_pack(pack, key=KEY)
    assert caught.value.facts == {"key": KEY}
    assert "delete it" in caught.value.hint


# --- a log of five thousand operations that came one by one

COMMITS: Final = 5_200


@dataclass(frozen=True, slots=True)
class Written:
    """A log that nobody changes: tests damage copies of its objects.

    `operations` and `links` were read from commits and segments alone, without roll-ups and packs, once for all tests.
    """

    objects: Mapping[str, bytes]
    operations: Sequence[tuple[int, bytes]]
    links: Sequence[Link]
    fetched: int


async def written(commits: Sequence[tuple[Segment, ...]]) -> Written:
    """Write a log, and roll up its thousands."""
    store = CountingStore()
    await write_log(store, commits)
    assert await RollUps(store=store).write_missing(len(commits)) == len(commits) // ROLLUP_SIZE
    plain = without_copies(store.objects)
    links = [link async for link in LogReader(store=plain).links()]
    plain.fetched.clear()
    operations = await operations_in(plain)
    return Written(objects=store.objects, operations=operations, links=links, fetched=len(plain.fetched))


@pytest.fixture(scope="module")
def trickle() -> Written:
    """A log of single operations whose thousands are rolled up."""
    return asyncio.run(written([small(number) for number in range(COMMITS)]))


@pytest.fixture(scope="module")
def lively() -> Written:
    """A log of commits of all kinds, whose thousands are rolled up."""
    return asyncio.run(written([varied(number) for number in range(3_100)]))


@pytest.fixture(scope="module")
def idle() -> Mapping[str, bytes]:
    """The objects of a log of empty commits, of which nothing is rolled up."""
    store = CountingStore()
    asyncio.run(write_log(store, [()] * 3_100))
    return store.objects


def without(objects: Mapping[str, bytes], *gone: str) -> CountingStore:
    """Return a store that lacks some objects."""
    return CountingStore({key: body for key, body in objects.items() if key not in gone})


def without_copies(objects: Mapping[str, bytes]) -> CountingStore:
    """Return a store with commits and segments alone."""
    return CountingStore({key: body for key, body in objects.items() if not key.startswith(f"{LOG}rollup/")})


async def test_a_trickle_is_read_with_two_requests_a_thousand(trickle: Written) -> None:
    store = CountingStore(trickle.objects)
    assert await operations_in(store) == trickle.operations
    assert len(trickle.operations) == COMMITS
    copies = [key for key in store.fetched if key.startswith(f"{LOG}rollup/")]
    assert sorted(copies) == sorted([*map(rollup_key, range(0, 5_000, 1_000)), *map(pack_key, range(0, 5_000, 1_000))])
    assert len(store.fetched) - len(copies) == 2 * 200  # what is not rolled up yet: a commit and its segment each
    assert store.listed < 20


async def test_larger_segments_do_not_make_a_pack_be_fetched_again() -> None:
    store = CountingStore()
    filling = {"filling": "x" * 15_000}
    commits = [[operation("insert", number + 1, number, fullDocument=filling)] for number in range(3_000)]
    await write_log(store, [(encode_segment(operations),) for operations in commits])
    await RollUps(store=store).write_missing(3_000)
    store.fetched.clear()
    assert len(await operations_in(store)) == 3_000
    assert len(store.fetched) == 6


async def test_operations_are_the_same_with_packs_and_without(lively: Written) -> None:
    assert lively.fetched >= sum(key.startswith(SEGMENTS) for key in without_copies(lively.objects).objects)
    assert await operations_in(CountingStore(lively.objects)) == lively.operations


async def test_a_lively_log_is_read_with_the_packs_and_its_large_segments(lively: Written) -> None:
    store = CountingStore(lively.objects)
    await operations_in(store)
    segments = [key for key in store.fetched if not key.startswith(LOG)]
    rolled_up = [o for link in lively.links if link.commit.sequence < 3_000 for o in link.commit.segments]
    large = {ref.key for ref in rolled_up if ref.bytes > 16 * KIB}
    assert large <= set(segments)
    assert {ref.key for ref in rolled_up} & set(segments) == large
    assert len(segments) == len(set(segments))


@pytest.mark.parametrize(
    "gone",
    [
        [pack_key(1000)],
        [rollup_key(1000)],
        [rollup_key(0)],
        [rollup_key(2000)],
        [pack_key(0), rollup_key(1000), pack_key(2000)],
        [rollup_key(1000), rollup_key(2000)],
    ],
    ids=lambda gone: " ".join(key.rpartition("/")[2] for key in gone),
)
async def test_a_reader_does_without_what_is_missing(lively: Written, gone: list[str]) -> None:
    store = without(lively.objects, *gone)
    assert await operations_in(store) == lively.operations
    assert [key for key in store.fetched if key in gone and key.endswith(".jsonl")] == []
    rolled_up = set(map(commit_key, range(3_000)))
    singly = sum(key in rolled_up for key in store.fetched) / ROLLUP_SIZE
    assert round(singly, 1) == sum(key.endswith(".jsonl") for key in gone)


@pytest.mark.parametrize("sequence", [0, 599, 998, 999, 1000, 2_500, 2_999, 3_098])
async def test_reading_goes_on_anywhere(lively: Written, sequence: int) -> None:
    store = CountingStore(lively.objects)
    rest = await operations_in(store, after=lively.links[sequence])
    assert rest == [found for found in lively.operations if found[0] > sequence]
    assert len([key for key in store.fetched if key.startswith(f"{LOG}rollup/")]) <= 6


async def test_roll_ups_that_are_written_while_a_reader_reads_change_nothing(lively: Written) -> None:
    store = without_copies(lively.objects)
    reader = LogReader(store=store)
    read = []
    async for link, found in reader.operations_of(reader.links()):
        if found is not None:
            read.append((link.commit.sequence, found.raw))
            if len(read) == 10:
                assert await RollUps(store=store).write_missing(3_100) == 3
    assert read == lively.operations


async def test_a_log_of_plain_and_compressed_segments_is_read() -> None:
    store = CountingStore()
    middle = await write_log(store, [varied(number) for number in range(600)])
    after = await write_log(store, [varied(number) for number in range(600, 1_300)], last=middle, compresses=True)
    await write_log(store, [varied(number) for number in range(1_300, 1_400)], last=after)
    expected = [
        (number, found.raw)
        for number in range(1_400)
        for segment in varied(number)
        for found in decode_segment(segment.ref("key"), segment.body)
    ]
    assert await operations_in(store) == expected
    await RollUps(store=store).write_missing(1_400)
    store.fetched.clear()
    assert await operations_in(store) == expected
    assert any(key.endswith(".bson.zst") for key in decode_pack(store.objects[pack_key(0)], key=""))
    assert (await LogReader(store=store).check()).orphans == ()


@pytest.fixture
def parts(lively: Written, monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    """The lively log, with packs of several parts."""
    store = without_copies(lively.objects)
    monkeypatch.setattr("d5agent.core.log.pack._MOST_BYTES", 64 * KIB)
    asyncio.run(RollUps(store=store).write_missing(3_100))
    assert pack_key(0, 3) in store.objects
    store.fetched.clear()
    return store


def test_a_pack_of_several_parts_is_read_once(parts: CountingStore, lively: Written) -> None:
    assert asyncio.run(operations_in(parts)) == lively.operations
    packs = [key for key in parts.fetched if key.endswith(".bson") and key.startswith(LOG)]
    assert set(packs) >= {key for key in parts.objects if key.endswith(".bson") and key.startswith(LOG)}
    assert len(packs) == len(set(packs))
    rolled_up = {o.key for link in lively.links if link.commit.sequence < 3_000 for o in link.commit.segments}
    large = {key for key in rolled_up if len(lively.objects[key]) > 16 * KIB}
    assert rolled_up & set(parts.fetched) == large


@pytest.mark.parametrize("sequence", [0, 400, 1_700, 2_999])
def test_reading_begins_in_the_middle_of_a_part(parts: CountingStore, lively: Written, sequence: int) -> None:
    rest = asyncio.run(operations_in(parts, after=lively.links[sequence]))
    assert rest == [found for found in lively.operations if found[0] > sequence]


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_part_that_is_gone_is_done_without(parts: CountingStore, lively: Written, part: int) -> None:
    del parts.objects[pack_key(0, part)]
    assert asyncio.run(operations_in(parts)) == lively.operations


def test_a_damaged_part_is_named(parts: CountingStore) -> None:
    key = pack_key(0, 2)
    bodies = decode_pack(parts.objects[key], key=key)
    parts.objects[key] = encode_pack((name, body + b"x") for name, body in bodies.items())
    with pytest.raises(CorruptDataError, match="a pack of segments is damaged") as caught:
        asyncio.run(operations_in(parts))
    assert caught.value.facts == {"key": key}


# --- what is damaged or gone


def cut_off(pack: bytes) -> bytes:
    return pack[:-7]


def flipped_in_a_body(pack: bytes) -> bytes:
    at = pack.index(b"fullDocument", len(pack) // 2) + 3
    return pack[:at] + bytes([pack[at] ^ 1]) + pack[at + 1 :]


def other_bodies(pack: bytes) -> bytes:
    return encode_pack((key, b"") for key in decode_pack(pack, key=KEY))


@pytest.mark.parametrize("damaged", [cut_off, flipped_in_a_body, other_bodies])
async def test_a_damaged_pack_is_refused_and_once_it_is_deleted_the_log_is_read(
    lively: Written, damaged: Callable[[bytes], bytes]
) -> None:
    store = CountingStore({**lively.objects, KEY: damaged(lively.objects[KEY])})
    with pytest.raises(CorruptDataError, match="a pack of segments is damaged") as caught:
        await LogReader(store=store).check()
    assert caught.value.facts["key"] == KEY
    assert "delete it" in caught.value.hint
    await store.delete([str(caught.value.facts["key"])])
    assert await operations_in(store) == lively.operations
    assert (await LogReader(store=store).check()).orphans == ()


def first_line_gone(rollup: bytes) -> bytes:
    return rollup[rollup.index(b"\n") + 1 :]


def last_lines_gone(rollup: bytes) -> bytes:
    return b"".join(list(decode_rollup(rollup))[:-3])


def flipped_in_the_last_line(rollup: bytes) -> bytes:
    return rollup[:-20] + rollup[-20:].replace(b"1", b"2")


def other_line_in_the_middle(rollup: bytes) -> bytes:
    lines = list(decode_rollup(rollup))
    return b"".join([*lines[:500], lines[500].replace(b'"host"', b'"h0st"'), *lines[501:]])


@pytest.mark.parametrize(
    "damaged", [cut_off, first_line_gone, last_lines_gone, flipped_in_the_last_line, other_line_in_the_middle]
)
async def test_a_damaged_roll_up_is_named_and_once_it_is_deleted_the_log_is_read(
    lively: Written, damaged: Callable[[bytes], bytes]
) -> None:
    rollup = damaged(lively.objects[rollup_key(1000)])
    assert rollup != lively.objects[rollup_key(1000)]
    store = CountingStore({**lively.objects, rollup_key(1000): rollup})
    with pytest.raises(CorruptDataError, match="a roll-up of the log is damaged") as caught:
        await LogReader(store=store).check()
    assert caught.value.facts["key"] == rollup_key(1000)
    assert "delete it" in caught.value.hint
    await store.delete([str(caught.value.facts["key"])])
    assert await operations_in(store) == lively.operations


@pytest.mark.parametrize("sequence", [0, 999, 1000, 1500, 3_050])
async def test_a_chain_that_is_broken_itself_is_not_blamed_on_a_roll_up(
    idle: Mapping[str, bytes], sequence: int
) -> None:
    store = CountingStore(idle)
    store.objects[commit_key(sequence)] = store.objects[commit_key(sequence)].replace(
        b'"host":"host"', b'"host":"hist"'
    )
    await RollUps(store=store).write_missing(3_100)
    with pytest.raises(CorruptDataError, match="the chain of commits is broken") as caught:
        await LogReader(store=store).check()
    assert caught.value.facts["key"] == commit_key(sequence + 1)


async def test_a_pack_that_lacks_segments_is_no_fault(lively: Written) -> None:
    half = encode_pack(list(decode_pack(lively.objects[KEY], key=KEY).items())[::2])
    store = CountingStore({**lively.objects, KEY: half})
    assert await operations_in(store) == lively.operations


async def test_a_segment_that_is_gone_is_reported_although_a_pack_has_it(lively: Written) -> None:
    gone = next(iter(decode_pack(lively.objects[KEY], key=KEY)))
    store = without(lively.objects, gone)
    assert await operations_in(store) == lively.operations
    with pytest.raises(CorruptDataError, match="an object of the log is missing") as caught:
        await LogReader(store=store).check()
    assert caught.value.facts["key"] == gone


@pytest.mark.parametrize("number", [38, 3_048])
async def test_a_segment_that_is_gone_and_in_no_pack_is_missed_by_whoever_reads(lively: Written, number: int) -> None:
    link = lively.links[number]
    large = next(ref.key for ref in link.commit.segments if ref.bytes > 16 * KIB)
    with pytest.raises(CorruptDataError, match="an object of the log is missing") as caught:
        await operations_in(without(lively.objects, large))
    assert caught.value.facts["key"] == large


async def test_what_no_commit_names_is_an_orphan_and_packs_are_none(lively: Written) -> None:
    orphan = "replication/shop/orders/1793600000-0000000001_x_7.bson"
    summary = await LogReader(store=CountingStore({**lively.objects, orphan: b"x"})).check()
    assert summary.orphans == (orphan,)
    assert summary.last is not None
    after = await LogReader(store=CountingStore({**lively.objects, orphan: b"x"})).check(after=summary.last)
    assert (after.last, after.orphans) == (summary.last, ())


# --- mixed segments


async def test_a_mixed_segment_is_read_back_with_all_its_collections_and_counts_whole() -> None:
    store = CountingStore()
    link = await write_log(store, [varied(2)])
    mixed, marks = link.commit.segments
    assert mixed.key.startswith(f"{SEGMENTS}{MIXED}/")
    reader = LogReader(store=store)
    namespaces = [found.namespace async for found in reader.operations(link.commit)]
    assert namespaces == [ORDERS, ORDERS, ORDERS, ITEMS, MARKS]
    assert [found.namespace async for found in reader.segment(mixed)] == namespaces[:4]
    assert foreign_operations(link.commit) == 4
    assert link.commit.total == Total(operations=5, bytes=mixed.bytes + marks.bytes, segments=2)


async def test_who_looks_for_a_mark_fetches_no_mixed_segment() -> None:
    store = CountingStore()
    link = await write_log(store, [varied(2)])
    assert [o.namespace async for o in LogReader(store=store).operations(link.commit, only_own=True)] == [MARKS]
    assert store.fetched == [link.commit.segments[1].key]


# --- writing them


async def test_roll_ups_are_written_once_and_what_is_missing_follows() -> None:
    store = CountingStore()
    link = await write_log(store, [varied(number) for number in range(999)])
    roll_ups = RollUps(store=store)
    assert await roll_ups.write_missing(999) == 0
    await write_log(store, [varied(number) for number in range(999, 3_001)], last=link)
    assert await roll_ups.write_missing(3_001) == 3
    written = dict(store.objects)
    store.fetched.clear()
    assert await roll_ups.write_missing(3_001) == 0
    assert (store.objects, store.fetched) == (written, [])
    await store.delete([rollup_key(0), rollup_key(1000), pack_key(1000), rollup_key(2000)])
    assert await roll_ups.write_missing(3_001) == 3
    assert store.objects == written


async def test_a_roll_up_and_its_pack_hold_the_commits_and_their_small_segments(lively: Written) -> None:
    for first in (0, 1000, 2000):
        numbers = range(first, first + ROLLUP_SIZE)
        assert list(decode_rollup(lively.objects[rollup_key(first)])) == [
            lively.objects[commit_key(number)] for number in numbers
        ]
        refs = [ref for link in lively.links[first : first + ROLLUP_SIZE] for ref in link.commit.segments]
        small_ones = {ref.key: lively.objects[ref.key] for ref in refs if ref.bytes <= 16 * KIB}
        assert decode_pack(lively.objects[pack_key(first)], key="") == small_ones
        assert 0 < len(small_ones) < len(refs)


async def test_an_idle_thousand_has_an_empty_pack(idle: Mapping[str, bytes]) -> None:
    store = CountingStore(idle)
    await RollUps(store=store).write_missing(3_100)
    assert store.objects[pack_key(0)] == b""
    assert (await LogReader(store=store).check()).orphans == ()


async def test_a_roll_up_that_dies_at_any_call_is_completed_later() -> None:
    whole = CountingStore()
    await write_log(whole, [varied(number) if number % 50 == 2 else () for number in range(1_010)])
    objects = dict(whole.objects)
    life = Life(None)
    await RollUps(store=mortal(whole, life)).write_missing(1_010)
    expected = await operations_in(whole)
    for halves in [*range(0, life.spent - 12, 397), *range(life.spent - 12, life.spent)]:
        store = CountingStore(objects)
        with pytest.raises(DiedError):
            await RollUps(store=mortal(store, Life(halves))).write_missing(1_010)
        assert await operations_in(store) == expected
        await RollUps(store=store).write_missing(1_010)
        assert store.objects == whole.objects


@pytest.mark.parametrize("kind", ["commit", "segment"])
async def test_a_roll_up_of_a_log_that_lacks_something_is_not_written(kind: str) -> None:
    store = CountingStore()
    await write_log(store, [small(number) for number in range(1_000)])
    gone = commit_key(7) if kind == "commit" else small(7)[0].key()
    await store.delete([gone])
    before = dict(store.objects)
    with pytest.raises(CorruptDataError, match="an object of the log has vanished") as caught:
        await RollUps(store=store).write_missing(1_000)
    assert caught.value.facts["key"] == gone
    assert store.objects == before
