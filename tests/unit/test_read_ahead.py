"""Reading ahead: in order, bounded in bytes, and an error only after what came before it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from d5agent.errors import CorruptDataError, TransientError
from d5agent.ports import EventBatch
from d5agent.steps.capture.pipeline import ByteBudget, Inbox, read_ahead
from tests.fakes.events import raw_event
from tests.fakes.held_store import settled, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

ROOMY: Final = 1_000_000


async def test_what_fits_is_let_in_and_what_does_not_waits_until_enough_is_free() -> None:
    room = ByteBudget(max_bytes=10)
    await room.enter(4)
    await room.enter(6)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(room.enter(5))
        await settled()
        assert (waiting.done(), room.held) == (False, 10)
        room.leave(4)
        await settled()
        assert (waiting.done(), room.held) == (False, 6)
        room.leave(6)
        await waiting
    assert room.held == 5


async def test_what_is_larger_than_all_of_the_room_is_let_in_alone() -> None:
    room = ByteBudget(max_bytes=10)
    await room.enter(1)
    async with asyncio.TaskGroup() as group:
        large = group.create_task(room.enter(25))
        await settled()
        assert not large.done()
        room.leave(1)
        await large
        small = group.create_task(room.enter(0))
        await settled()
        assert (small.done(), room.held) == (False, 25)
        room.leave(25)
    assert room.held == 0


async def test_of_several_that_wait_each_is_let_in_as_soon_as_it_fits() -> None:
    room = ByteBudget(max_bytes=10)
    await room.enter(10)
    done: list[int] = []

    async def enter(size: int) -> None:
        await room.enter(size)
        done.append(size)

    async with asyncio.TaskGroup() as group:
        for size in (6, 5, 4):
            group.create_task(enter(size))
        await settled()
        assert not done
        room.leave(10)
        await settled()
        assert (done, room.held) == ([6, 4], 10)
        room.leave(6)
    assert (done, room.held) == ([6, 4, 5], 9)


async def test_who_gives_up_waiting_for_room_takes_none_and_keeps_none_from_the_others() -> None:
    room = ByteBudget(max_bytes=10)
    await room.enter(10)
    async with asyncio.TaskGroup() as group:
        given_up = group.create_task(room.enter(7))
        other = group.create_task(room.enter(10))
        await settled()
        room.leave(10)
        given_up.cancel()  # in the very turn in which there is room
        await other
    assert (given_up.cancelled(), room.held) == (True, 10)


def batch(*increments: int) -> EventBatch:
    return EventBatch(events=[raw_event("insert", increment) for increment in increments], position=None)


SIZE: Final = len(raw_event("insert", 1))


class Stream:
    """Batches as they are asked for, then an error, or nothing more."""

    def __init__(self, batches: Sequence[EventBatch], error: BaseException | None = None) -> None:
        self.asked = 0
        self.is_closed = False
        self._batches = batches
        self._error = error

    async def read(self) -> AsyncGenerator[EventBatch]:
        try:
            for found in self._batches:
                self.asked += 1
                yield found
            self.asked += 1
            if self._error is not None:
                raise self._error
            await asyncio.Event().wait()
        finally:
            self.is_closed = True


@asynccontextmanager
async def ahead(stream: Stream, room: ByteBudget) -> AsyncGenerator[Inbox]:
    """Read a stream ahead; it is closed by whoever opened it."""
    async with aclosing(stream.read()) as batches, read_ahead(batches, room) as inbox:
        yield inbox


async def test_the_next_batch_is_asked_for_while_the_last_one_is_worked_on() -> None:
    stream = Stream([batch(1), batch(2), batch(3)])
    async with ahead(stream, ByteBudget(max_bytes=ROOMY)) as inbox:
        async for found in inbox:
            assert found == batch(1)
            await until(lambda: stream.asked == 4)
            break


async def test_batches_come_in_the_order_of_the_stream() -> None:
    batches = [batch(1), batch(), batch(2, 3), batch(4)]
    stream = Stream(batches)
    async with ahead(stream, ByteBudget(max_bytes=1)) as inbox:
        inbox_iterator = aiter(inbox)
        assert [await anext(inbox_iterator) for _ in batches] == batches
    assert stream.is_closed


@pytest.mark.parametrize("turns", [0, 1, 2, 5], ids=lambda turns: f"{turns} turns")
async def test_a_reader_that_is_ahead_waits_for_room_and_goes_on(turns: int) -> None:
    stream = Stream([batch(number) for number in range(1, 20)])
    room = ByteBudget(max_bytes=3 * SIZE)
    async with ahead(stream, room) as inbox:
        await settled()
        assert (stream.asked, room.held) == (4, 3 * SIZE)  # the fourth waits at the door
        worked_on = 0
        async for _ in inbox:
            for _ in range(turns):
                await asyncio.sleep(0)
            worked_on += 1
            assert stream.asked - worked_on <= 4
            assert room.held <= 3 * SIZE
            if worked_on == 19:
                break
    assert stream.asked == 20


async def test_a_batch_larger_than_all_of_the_room_is_read_alone() -> None:
    stream = Stream([batch(1), batch(*range(2, 12)), batch(12), batch(13)])
    room = ByteBudget(max_bytes=2 * SIZE)
    async with ahead(stream, room) as inbox:
        batches = aiter(inbox)
        sizes = []
        for _ in range(4):
            found = await anext(batches)
            await settled()
            sizes.append((len(found.events), room.held // SIZE))
    assert sizes == [(1, 1), (10, 10), (1, 2), (1, 1)]


async def test_the_streams_error_is_raised_after_what_came_before_it() -> None:
    error = CorruptDataError("the stream is broken")
    stream = Stream([batch(1), batch(2)], error)
    worked_on = []

    async def work() -> None:
        async with ahead(stream, ByteBudget(max_bytes=ROOMY)) as inbox:
            await settled()  # it has happened before the first batch is looked at
            async for found in inbox:
                worked_on.append(found)
                await settled()

    with pytest.raises(CorruptDataError) as raised:
        await work()
    assert raised.value is error
    assert worked_on == [batch(1), batch(2)]


async def test_an_error_that_comes_while_nothing_is_there_wakes_who_waits() -> None:
    stream = Stream([], TransientError("the line is cut"))
    with pytest.raises(TransientError, match="the line is cut"):
        async with ahead(stream, ByteBudget(max_bytes=ROOMY)) as inbox:
            await anext(aiter(inbox))


async def test_a_bug_in_the_stream_ends_the_block_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        async with ahead(Stream([batch(1)], ZeroDivisionError()), ByteBudget(max_bytes=ROOMY)):
            await asyncio.Event().wait()


@pytest.mark.parametrize("max_bytes", [1, ROOMY], ids=["for room", "for the stream"])
async def test_a_block_that_ends_ends_the_reader_wherever_it_waits(max_bytes: int) -> None:
    stream = Stream([batch(1), batch(2), batch(3)])
    async with ahead(stream, ByteBudget(max_bytes=max_bytes)):
        await settled()
    assert stream.is_closed
    assert asyncio.all_tasks() == {asyncio.current_task()}
