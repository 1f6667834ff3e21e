"""What a restore tells of itself while it replays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from d5agent.core.log.operation import Namespace
from d5agent.core.run.progress import ComparisonProgress
from d5agent.steps.replay.rates import known_rate
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import insert, rename
from tests.fakes.progress import replayed
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeTarget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.core.replay.replay import Failure, WriteBatch
    from d5agent.core.run.progress import ReplayProgress
    from tests.fakes.coordinator import FakeCoordinator

OTHERS = Namespace("shop", "others")


class SlowTarget(FakeTarget):
    """Takes its time for each batch, and keeps what was said meanwhile."""

    def __init__(self, clock: FakeClock, *, seconds: float) -> None:
        super().__init__()
        self.clock = clock
        self.seconds = seconds
        self.coordinator: FakeCoordinator | None = None
        self.seen: list[ReplayProgress] = []

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        await self.clock.sleep(self.seconds)
        if self.coordinator is not None:
            self.seen.append(replayed(self.coordinator.progress))
        return await super().write(batch)


async def restored(*, seconds: float) -> tuple[Stage, SlowTarget]:
    """A restore whose target takes so long for each of 40 documents, in 10 commits and more."""
    clock = FakeClock()
    target = SlowTarget(clock, seconds=seconds)
    stage = Stage(clock=clock, target=target)
    for number in range(0, 40, 4):
        await stage.capture(*[insert(ORDERS, {"_id": number + i, "text": "x" * 100}) for i in range(4)])
    await stage.draw_fence()
    target.coordinator = stage.coordinator
    await stage.restore(lanes=1, window_bytes=1).run(stage.coordinator)
    return stage, target


async def test_the_facts_say_how_far_and_how_fast_while_it_replays() -> None:
    stage, target = await restored(seconds=2)
    last = (await stage.commits())[-1].total
    middle = target.seen[20]
    assert (middle.operations_total, middle.bytes_total) == (last.operations, last.bytes)
    assert 0 < middle.operations_applied < last.operations
    assert 0 < middle.bytes_applied < last.bytes
    assert middle.documents_written == 20
    left = last.operations - middle.operations_applied
    assert middle.operations_per_second is not None
    assert middle.eta_seconds is not None
    expected = left / middle.operations_per_second  # which is rounded to a tenth
    assert abs(middle.eta_seconds - expected) < 0.15 * expected
    end = replayed(stage.coordinator.progress)
    assert (end.operations_applied, end.bytes_applied) == (last.operations, last.bytes)
    assert (end.documents_written, end.eta_seconds) == (40, 0)


def progress_lines(stage: Stage) -> list[Mapping[str, Any]]:
    return [entry.facts for entry in stage.coordinator.journal.entries if entry.event == "restore_progress"]


async def test_a_target_that_stands_still_is_seen_to() -> None:
    _, target = await restored(seconds=25)
    assert {row.operations_per_second for row in target.seen[2:]} == {0}
    assert {row.eta_seconds for row in target.seen[2:]} == {None}


async def test_the_journal_has_a_line_for_every_tenth_and_every_half_minute() -> None:
    stage, _ = await restored(seconds=0.1)
    lines = progress_lines(stage)
    assert [line["percent"] // 10 for line in lines][-1] == 10
    assert 8 <= len(lines) <= 10
    stage, _ = await restored(seconds=60)
    lines = progress_lines(stage)
    assert 78 <= len(lines) <= 90
    assert {"operations_applied", "operations_total", "operations_per_second", "eta_seconds"} <= set(lines[0])


async def test_a_restore_leaves_a_note_of_how_fast_it_wrote_for_the_next_plan() -> None:
    clock = FakeClock()
    stage = Stage(clock=clock, target=SlowTarget(clock, seconds=2))
    await stage.capture(*[insert(ORDERS, {"_id": number}) for number in range(1_000)])
    await stage.draw_fence()
    await stage.restore(lanes=1, window_bytes=1_000_000).run(stage.coordinator)
    rate = await known_rate(stage.store)
    assert rate is not None
    assert 1 <= rate.documents_per_second <= 500
    stage, _ = await restored(seconds=1)  # 40 documents tell nothing
    assert await known_rate(stage.store) is None


async def test_the_lanes_that_write_at_the_same_time_are_counted() -> None:
    clock = FakeClock()
    target = SlowTarget(clock, seconds=20)
    stage = Stage(clock=clock, target=target)
    await stage.capture(*[insert(ORDERS, {"_id": number}) for number in range(750)], rename(ORDERS, OTHERS))
    await stage.draw_fence()
    target.coordinator = stage.coordinator
    await stage.restore(lanes=3, window_bytes=1_000_000).run(stage.coordinator)
    busiest = max(row.lanes or 0 for row in target.seen)
    assert 2.5 < busiest <= 3
    assert replayed(stage.coordinator.progress).lanes_allowed == 3
    assert stage.target.database.contents().keys() == {OTHERS}


async def test_the_comparison_has_its_part_of_a_whole_too() -> None:
    stage, _ = await restored(seconds=0)
    whole = ComparisonProgress(compared=40, compared_total=40, different=0)
    assert stage.coordinator.progress.restore.comparison == whole
    seen: list[dict[str, Any]] = []
    coordinator = stage.new_coordinator()
    coordinator.state = stage.coordinator.state
    service = stage.verify()
    await service.compare("run", is_full=False, on_progress=lambda report: seen.append({"expected": report.expected}))
    await service.compare("run", is_full=True, on_progress=lambda report: seen.append({"expected": report.expected}))
    assert {row["expected"] for row in seen} == {40}
    await service.run(coordinator)
    assert coordinator.progress.verify == whole


async def test_a_restore_that_goes_on_counts_what_was_applied_before() -> None:
    stage, _ = await restored(seconds=0)
    last = (await stage.commits())[-1].total
    stage.forget_proof()  # killed right before it
    coordinator = stage.new_coordinator()
    coordinator.state = stage.coordinator.state
    await stage.restore().run(coordinator)
    found = replayed(coordinator.progress)
    assert (found.operations_applied, found.bytes_applied) == (last.operations, last.bytes)
