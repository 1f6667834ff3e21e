"""Writing at the pace that the target can take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from typing_extensions import override

from d5agent.core.replay.pace import Pace, RateLimit, Tickets
from d5agent.core.replay.replay import Write, WriteBatch
from d5agent.steps.replay.lanes import Lanes
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import insert
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.machine import FakeJournal
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.replay.replay import Failure


class SlowTarget(FakeTarget):
    """Takes its time for each batch, and counts who writes at the same time."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.seconds = 0.1
        self.looks = 0
        self.most = 0
        self._clock = clock
        self._now = 0

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        self._now += 1
        self.most = max(self.most, self._now)
        await self._clock.sleep(self.seconds)
        self._now -= 1
        return await super().write(batch)

    @override
    async def tickets(self) -> Tickets | None:
        self.looks += 1
        return await super().tickets()


def lanes_of(target: SlowTarget, clock: FakeClock, per_second: float | None = None) -> Lanes:
    limit = RateLimit(per_second=per_second)
    return Lanes(target=target, clock=clock, journal=FakeJournal(), pace=Pace(lanes=4), limit=limit)


def batches(count: int, writes: int = 1) -> list[WriteBatch]:
    """Return batches of different documents."""
    return [
        WriteBatch(
            namespace=ORDERS,
            writes=tuple(Write(id=raw_id(n), document=raw_document({"_id": n})) for n in range(at, at + writes)),
        )
        for at in range(0, count * writes, writes)
    ]


async def test_as_many_batches_as_lanes_are_written_at_the_same_time() -> None:
    clock = FakeClock()
    target = SlowTarget(clock)
    assert not await lanes_of(target, clock).write(batches(10))
    assert target.most == 4
    assert len(target.database.collections[ORDERS]) == 10


async def test_a_target_short_of_tickets_is_written_to_over_fewer_lanes_and_the_journal_says_so() -> None:
    clock = FakeClock()
    target = SlowTarget(clock)
    target.free = Tickets(free=1, total=128)
    lanes = lanes_of(target, clock)
    await lanes.write(batches(10))
    assert target.most == 2
    journal = lanes.journal
    assert isinstance(journal, FakeJournal)
    assert journal.facts_of("lanes_reduced") == [{"lanes": 2, "of": 4, "reason": "tickets"}]


async def test_a_target_that_becomes_slow_is_written_to_over_one_lane_in_the_end() -> None:
    clock = FakeClock()
    target = SlowTarget(clock)
    lanes = lanes_of(target, clock)
    await lanes.write(batches(100))
    target.seconds, target.most = 10.0, 0
    await lanes.write(batches(40))
    assert lanes.pace.allowed == 1
    target.most = 0
    await lanes.write(batches(2))
    assert target.most == 1


async def test_tickets_are_looked_at_once_a_second() -> None:
    clock = FakeClock()
    target = SlowTarget(clock)
    lanes = lanes_of(target, clock)
    for _ in range(15):
        await lanes.write(batches(4))  # 0.1 s each
    assert target.looks == 2


async def test_a_target_that_tells_no_tickets_is_asked_once_and_the_journal_says_it_once() -> None:
    clock = FakeClock()
    target = SlowTarget(clock)
    target.free = None
    lanes = lanes_of(target, clock)
    for _ in range(3):
        await lanes.write(batches(40))
    assert target.looks == 1
    journal = lanes.journal
    assert isinstance(journal, FakeJournal)
    (said,) = journal.facts_of("target_load_not_read")
    assert "clusterMonitor" in str(said["hint"])


async def test_a_limit_of_writes_a_second_is_kept() -> None:
    clock = FakeClock()
    target = SlowTarget(clock)
    target.seconds = 0.0
    began = clock.monotonic()
    await lanes_of(target, clock, per_second=100).write(batches(2, writes=500))
    assert 9 < clock.monotonic() - began < 11
    assert len(target.database.collections[ORDERS]) == 1000


async def test_a_paused_restore_writes_nothing_although_it_has_read_on() -> None:
    stage = Stage()
    await stage.capture(*[insert(ORDERS, {"_id": number, "x": "y" * 500}) for number in range(20)])
    await stage.draw_fence()
    stage.coordinator.state = replace(stage.coordinator.state, is_paused=True)
    seen: list[int] = []

    def look(reason: str) -> None:
        assert "resume restore" in reason
        seen.append(len(stage.target.database.collections.get(ORDERS, {})))
        if len(seen) == 3:
            stage.coordinator.state = replace(stage.coordinator.state, is_paused=False)

    stage.coordinator.on_wait = look
    await stage.restore(window_bytes=3_000).run(stage.coordinator)
    assert seen == [0, 0, 0]
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_a_restore_keeps_the_limit_it_was_given() -> None:
    stage = Stage()
    await stage.capture(*[insert(ORDERS, {"_id": number}) for number in range(30)])
    await stage.draw_fence()
    began = stage.clock.monotonic()
    await stage.restore(max_operations_per_second=10).run(stage.coordinator)
    assert stage.clock.monotonic() - began > 2.5
    assert stage.target.database.contents() == stage.foreign_contents()
