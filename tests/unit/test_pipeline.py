"""Capture's flow: what is read ahead, what is on its way to the store, and the order in which it is published."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest
from typing_extensions import override

from d5agent.core.log.naming import LOG, commit_key, segment_key
from d5agent.core.log.operation import Position
from d5agent.core.log.segment import Segment, encode_segment
from d5agent.core.log.segmenter import Cut, Segmenter
from d5agent.errors import AgentError, CorruptDataError, LogHeldError, OperatorError, TransientError
from d5agent.steps.capture.pipeline import ByteBudget, Pipeline
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.writer import LogWriter
from tests.fakes.clock import FakeClock
from tests.fakes.commits import OTHER, WRITER
from tests.fakes.documents import raw_id
from tests.fakes.events import ITEMS, ORDERS, at, operation
from tests.fakes.held_store import HeldStore, settled, until

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from d5agent.core.log.chain import Commit
    from d5agent.core.log.operation import Operation

ROOMY: Final = 1_000_000


@dataclass(slots=True, kw_only=True)
class Flow:
    """A pipeline over a store whose puts can be held."""

    store: HeldStore = field(default_factory=HeldStore)
    room: ByteBudget = field(default_factory=lambda: ByteBudget(max_bytes=ROOMY))
    committed: list[Commit] = field(default_factory=list)
    writer: LogWriter = field(init=False)
    pipeline: Pipeline = field(init=False)

    def __post_init__(self) -> None:
        self.writer = LogWriter(store=self.store, clock=FakeClock(), writer=WRITER, last=None)
        self.pipeline = Pipeline(writer=self.writer, room=self.room, on_commit=self._note)

    async def _note(self, commit: Commit) -> None:
        self.committed.append(commit)

    @property
    def commits(self) -> list[str]:
        """The commits in the store."""
        return [key for key in self.store.put_keys if key.startswith(LOG)]


async def error_of(work: Coroutine[object, object, None]) -> AgentError | None:
    """Return the error that a work ends with, as itself."""
    try:
        await work
    except AgentError as error:
        return error
    return None


def segment(increment: int, id_: object = 1, *, count: int = 1) -> Segment:
    return encode_segment([operation("insert", increment, id_) for _ in range(count)])


def cut(*segments: Segment) -> Cut:
    """Return a cut that is to be committed after its last segment."""
    return Cut(segments=segments, position=Position(cluster_time=segments[-1].last, token=None))


def position(increment: int) -> Position:
    return Position(cluster_time=at(increment), token=None)


def key(increment: int, id_: object = 1, *, ordinal: int = 1) -> str:
    return segment_key(ORDERS, at(increment), raw_id(id_), ordinal=ordinal)


async def test_commits_follow_in_the_order_of_their_cuts_however_fast_each_is_stored() -> None:
    flow = Flow()
    flow.store.holds = lambda name: name == key(1)
    async with flow.pipeline.open():
        for increment in (1, 2, 3):
            await flow.pipeline.take(cut(segment(increment)))
        await until(lambda: {key(2), key(3)} <= set(flow.store.objects))
        await settled()
        assert not flow.commits
        await flow.store.let_go()
    assert flow.store.put_keys == [key(2), key(3), key(1), commit_key(0), commit_key(1), commit_key(2)]
    assert [commit.segments[0].key for commit in flow.committed] == [key(1), key(2), key(3)]
    assert [commit.position for commit in flow.committed] == [position(1), position(2), position(3)]
    assert flow.room.held == 0


async def test_a_commit_waits_for_all_its_segments_those_of_earlier_cuts_too() -> None:
    flow = Flow()
    flow.store.holds = lambda name: name == key(1, 1)
    async with flow.pipeline.open():
        await flow.pipeline.take(Cut(segments=(segment(1, 1), segment(1, 2)), position=None))
        await flow.pipeline.take(Cut(segments=(segment(1, 3),), position=None))
        await flow.pipeline.take(Cut(segments=(), position=position(1)))
        await until(lambda: key(1, 3) in flow.store.objects)
        await settled()
        assert not flow.commits
        await flow.store.let_go()
    (commit,) = flow.committed
    assert [ref.key for ref in commit.segments] == [key(1, 1), key(1, 2), key(1, 3)]


async def test_a_commit_is_told_of_before_the_next_one_is_written() -> None:
    flow = Flow()
    told = asyncio.Event()

    async def tell(commit: Commit) -> None:
        flow.committed.append(commit)
        await told.wait()

    flow.pipeline.on_commit = tell
    async with flow.pipeline.open():
        await flow.pipeline.take(cut(segment(1)))
        await flow.pipeline.take(cut(segment(2)))
        await until(lambda: flow.committed)
        await settled()
        assert flow.commits == [commit_key(0)]
        told.set()
    assert flow.commits == [commit_key(0), commit_key(1)]


async def test_segments_of_one_name_in_flight_at_once_get_ordinals_and_stand_in_the_order_of_their_cuts() -> None:
    flow = Flow()
    first, second = segment(1, count=2), segment(1, count=3)
    assert first.key() == second.key()
    flow.store.holds = lambda _: True
    async with flow.pipeline.open():
        await flow.pipeline.take(Cut(segments=(first,), position=None))
        await flow.pipeline.take(cut(second))
        await until(lambda: flow.store.waiting[key(1)] == 2)
        await flow.store.let_go()
    (commit,) = flow.committed
    assert {ref.key for ref in commit.segments} == {key(1), key(1, ordinal=2)}
    assert [ref.count for ref in commit.segments] == [2, 3]
    read = [o async for o in LogReader(store=flow.store).operations(commit)]
    assert b"".join(o.raw for o in read) == first.body + second.body


async def test_a_name_that_is_taken_again_and_again_is_an_operators_affair() -> None:
    class TakenStore(HeldStore):
        @override
        async def put_once(self, key: str, body: bytes) -> bool:
            return False

    flow = Flow(store=TakenStore())

    async def work() -> None:
        async with flow.pipeline.open():
            await flow.pipeline.take(cut(segment(1)))

    with pytest.raises(OperatorError, match="taken too often") as caught:
        await work()
    assert caught.value.facts == {"key": key(1)}


async def test_so_many_are_stored_at_once_and_no_more() -> None:
    flow = Flow()
    flow.store.holds = lambda _: True
    async with flow.pipeline.open():
        await flow.pipeline.take(cut(*[segment(1, number) for number in range(40)]))
        await until(lambda: flow.store.waiting.total() == 16)
        await settled()
        assert flow.store.waiting.total() == 16
        await flow.store.let_go()
    assert flow.store.most_waiting == 16
    assert [ref.key for ref in flow.committed[0].segments] == [key(1, number) for number in range(40)]


async def test_bytes_on_their_way_are_bounded_and_who_cuts_more_waits() -> None:
    size = len(segment(1).body)
    flow = Flow(room=ByteBudget(max_bytes=3 * size))
    flow.store.holds = lambda _: True
    async with flow.pipeline.open(), asyncio.TaskGroup() as group:
        taking = group.create_task(flow.pipeline.take(cut(*[segment(1, number) for number in range(8)])))
        await settled()
        assert (flow.store.waiting.total(), flow.room.held, taking.done()) == (3, 3 * size, False)
        await flow.store.let_go(lambda name: name != key(1, 1))
        await settled()
        assert (flow.store.waiting.total(), flow.room.held, taking.done()) == (3, 3 * size, False)
        await flow.store.let_go()
    assert flow.room.held == 0
    assert len(flow.committed[0].segments) == 8


async def test_a_transaction_larger_than_the_room_goes_through_before_its_commit() -> None:
    size = len(segment(1).body)
    flow = Flow(room=ByteBudget(max_bytes=size // 2))  # each segment alone is larger than all of the room
    async with flow.pipeline.open():
        for number in range(100):
            await flow.pipeline.take(Cut(segments=(segment(1, number),), position=None))
        await flow.pipeline.take(Cut(segments=(), position=position(1)))
    assert flow.store.most_waiting == 1
    assert len(flow.committed[0].segments) == 100


async def test_more_commits_than_may_wait_go_through_while_the_first_is_held() -> None:
    flow = Flow()
    flow.store.holds = lambda name: name == key(0)
    async with flow.pipeline.open(), asyncio.TaskGroup() as group:

        async def take_all() -> None:
            for number in range(200):
                await flow.pipeline.take(cut(segment(number)))

        taking = group.create_task(take_all())
        await until(lambda: key(60) in flow.store.objects)
        await settled()
        assert (taking.done(), flow.commits) == (False, [])
        assert len(flow.store.objects) < 70  # commits wait in bounded number, however small
        await flow.store.let_go()
    assert flow.commits == [commit_key(number) for number in range(200)]


async def test_leaving_the_block_waits_for_all_that_was_taken() -> None:
    flow = Flow()
    flow.store.holds = lambda _: True

    async def work() -> None:
        async with flow.pipeline.open():
            await flow.pipeline.take(cut(segment(1)))
            await flow.pipeline.take(Cut(segments=(segment(2),), position=None))

    async with asyncio.TaskGroup() as group:
        working = group.create_task(work())
        await settled()
        assert not working.done()
        await flow.store.let_go(lambda name: name == key(2))
        await until(lambda: flow.committed)
        await settled()
        assert not working.done()
        await flow.store.let_go()
    assert key(2) in flow.store.objects


@pytest.mark.parametrize("is_in_block", [True, False], ids=["in the block", "at its end"])
async def test_an_upload_that_fails_ends_the_block_with_that_error_and_nothing_later_is_committed(
    *, is_in_block: bool
) -> None:
    flow = Flow()
    error = TransientError("the store does not answer")
    flow.store.holds = lambda name: name == key(2)

    async def work() -> None:
        async with flow.pipeline.open():
            for increment in (1, 2, 3):
                await flow.pipeline.take(cut(segment(increment)))
            if is_in_block:
                await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        working = group.create_task(error_of(work()))
        await until(lambda: flow.commits == [commit_key(0)] and key(3) in flow.store.objects)
        await flow.store.fail(key(2), error)
    assert working.result() is error
    await flow.store.let_go()
    await settled()
    assert flow.commits == [commit_key(0)]
    assert [commit.sequence for commit in flow.committed] == [0]


@pytest.mark.parametrize("waits_for", ["room", "the queue of commits"])
async def test_an_upload_that_fails_ends_who_waits_to_hand_in_more(waits_for: str) -> None:
    size = len(segment(1).body)
    flow = Flow(room=ByteBudget(max_bytes=2 * size if waits_for == "room" else ROOMY))
    flow.store.holds = lambda name: name == key(0) or (waits_for == "room" and not name.startswith(LOG))
    error = TransientError("the store does not answer")
    handed_in: list[int] = []

    async def work() -> None:
        async with flow.pipeline.open():
            for number in range(200):
                await flow.pipeline.take(cut(segment(number)))
                handed_in.append(number)

    async with asyncio.TaskGroup() as group:
        working = group.create_task(error_of(work()))
        await until(lambda: len(handed_in) == (2 if waits_for == "room" else 65))
        await settled()
        await flow.store.fail(key(0), error)
    assert working.result() is error
    assert len(handed_in) == (2 if waits_for == "room" else 65)
    assert not flow.commits


async def test_a_lost_race_for_a_commit_ends_the_block() -> None:
    flow = Flow()
    theirs = LogWriter(store=flow.store, clock=FakeClock(), writer=OTHER, last=None)
    await theirs.publish((), position(1))

    async def work() -> None:
        async with flow.pipeline.open():
            await flow.pipeline.take(cut(segment(1)))
            await flow.pipeline.take(cut(segment(2)))
            await asyncio.Event().wait()

    with pytest.raises(LogHeldError) as lost:
        await work()
    assert lost.value.facts["host"] == "other host"
    assert flow.commits == [commit_key(0)]
    assert not flow.committed


async def test_a_commit_that_cannot_be_told_of_ends_the_block() -> None:
    flow = Flow()

    async def tell(_: Commit) -> None:
        raise TransientError("no space left")

    async def work() -> None:
        async with flow.pipeline.open():
            await flow.pipeline.take(cut(segment(1)))
            await flow.pipeline.take(cut(segment(2)))

    flow.pipeline.on_commit = tell
    with pytest.raises(TransientError, match="no space left"):
        await work()
    assert flow.commits == [commit_key(0)]


@pytest.mark.parametrize("held", ["segment", "commit"])
async def test_after_a_cancellation_nothing_is_committed(held: str) -> None:
    flow = Flow()
    flow.store.holds = lambda name: name == (key(2) if held == "segment" else commit_key(1))

    async def work() -> None:
        async with flow.pipeline.open():
            for increment in (1, 2, 3):
                await flow.pipeline.take(cut(segment(increment)))

    async with asyncio.TaskGroup() as group:
        working = group.create_task(work())
        await until(lambda: flow.commits and flow.store.waiting.total())
        await settled()
        working.cancel()
    assert working.cancelled()
    assert flow.store.waiting.total() == 0
    await flow.store.let_go()
    await settled()
    assert flow.commits == [commit_key(0)]


async def test_the_blocks_own_error_is_raised_and_what_was_taken_is_given_up() -> None:
    flow = Flow()
    flow.store.holds = lambda _: True

    async def work() -> None:
        async with flow.pipeline.open():
            await flow.pipeline.take(cut(segment(1)))
            await settled()
            raise CorruptDataError("of the block")

    with pytest.raises(CorruptDataError, match="of the block"):
        await work()
    await flow.store.let_go()
    await settled()
    assert not flow.store.objects


@pytest.mark.parametrize(("collections", "puts"), [(1, 2), (7, 8), (32, 33), (33, 34), (10_000, 34)])
async def test_a_cut_costs_at_most_thirty_four_puts_however_many_collections_are_quiet(
    collections: int, puts: int
) -> None:
    flow = Flow()
    segmenter = Segmenter(max_bytes=8 * 1024 * 1024, max_age_seconds=1)
    names = [ORDERS._replace(collection=f"c{number}") for number in range(collections)]
    async with flow.pipeline.open():
        for second in range(3):
            for number, name in enumerate(names):
                found = operation("insert", collections * second + number, namespace=name)
                assert not segmenter.add(found, now=second)
            segmenter.seal(None)
            due = segmenter.tick(now=second + 1)
            assert due is not None
            await flow.pipeline.take(due)
    assert len(flow.store.put_keys) == 3 * puts
    assert [commit.total.operations for commit in flow.committed] == [collections * n for n in (1, 2, 3)]


async def test_compressed_segments_are_stored_beside_each_other_and_read_back() -> None:
    flow = Flow()
    flow.writer.compresses = True
    async with flow.pipeline.open():
        for increment in range(20):
            await flow.pipeline.take(cut(segment(increment, count=50)))
    assert flow.room.held == 0
    reader = LogReader(store=flow.store)
    assert [c.segments[0].key for c in flow.committed] == [f"{key(n)}.zst" for n in range(20)]
    counts = Counter([link.commit.sequence async for link, o in reader.operations_of(reader.links()) if o is not None])
    assert counts == dict.fromkeys(range(20), 50)


async def test_a_pipeline_can_be_opened_again() -> None:
    flow = Flow()
    for increment in (1, 2):
        async with flow.pipeline.open():
            await flow.pipeline.take(cut(segment(increment), encode_segment([_of_items(increment)])))
    assert flow.commits == [commit_key(0), commit_key(1)]


def _of_items(increment: int) -> Operation:
    return operation("insert", increment, namespace=ITEMS)


async def test_an_upload_that_a_library_cancels_ends_the_block_instead_of_hanging_it() -> None:
    class CancellingStore(HeldStore):
        @override
        async def put_once(self, key: str, body: bytes) -> bool:
            raise asyncio.CancelledError

    flow = Flow(store=CancellingStore())

    async def work() -> None:
        async with flow.pipeline.open():
            await flow.pipeline.take(cut(segment(1)))

    error = await asyncio.wait_for(error_of(work()), 5)
    assert isinstance(error, TransientError)
    assert flow.commits == []


async def test_a_large_segment_is_hashed_as_a_small_one_is() -> None:
    flow = Flow()
    large = encode_segment([operation("insert", 1, 1, fullDocument={"_id": 1, "filling": "x" * 400_000})])
    async with flow.pipeline.open():
        await flow.pipeline.take(cut(large))
    assert flow.committed[0].segments == (large.ref(large.key()),)
