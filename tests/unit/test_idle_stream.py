"""An idle stream moves on, whether or not the server names a position beside its empty batches."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from d5agent.errors import TransientError
from d5agent.steps.capture.kept_changes import KEPT
from tests.fakes.cluster import insert
from tests.fakes.progress import captured
from tests.fakes.source import FakeChangeSource
from tests.fakes.stage import ORDERS, Stage, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.core.log.operation import ClusterTime, Position
    from d5agent.ports import EventBatch

HOURS = 3 * 3600
MOST_AGE_SECONDS = 400
NOT_MOVED = "position_not_moved"


class UnmarkableSource(FakeChangeSource):
    """Takes no marker any more once replication is ready."""

    @override
    async def mark(self, mark_id: str) -> bool:
        if mark_id.startswith("idle-"):
            raise TransientError("the source is not reached")
        return await super().mark(mark_id)


def age_of(stage: Stage, time: ClusterTime | list[int]) -> float:
    return stage.clock.now().timestamp() - time[0]


@pytest.mark.parametrize("names_positions", [True, False])
async def test_an_idle_position_never_grows_old(*, names_positions: bool) -> None:
    stage = Stage()
    stage.source.names_positions = names_positions
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        for _ in range(HOURS // 600):
            await stage.clock.sleep(600)
            assert age_of(stage, (await stage.commits())[-1].position.cluster_time) < MOST_AGE_SECONDS
            assert age_of(stage, json.loads(stage.states.texts[KEPT])["cluster_time"]) < MOST_AGE_SECONDS
        # The server forgets what is older than an hour, and the agent is started again.
        stage.cluster.kept_from = stage.cluster.first_at((await stage.commits())[-1].position.cluster_time)
        marks = len(stage.cluster)
    assert HOURS / 600 < marks < HOURS / 200
    await stage.capture(insert(ORDERS, {"_id": 1}))
    assert await stage.stored() == stage.happened()
    assert not stage.coordinator.journal.facts_of(NOT_MOVED)


@pytest.mark.parametrize("names_positions", [True, False])
async def test_a_busy_stream_gets_no_markers(*, names_positions: bool) -> None:
    stage = Stage()
    stage.source.names_positions = names_positions
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        for number in range(20):
            stage.cluster.apply(insert(ORDERS, {"_id": number}))
            await stage.clock.sleep(200)
    assert len(stage.cluster) == 21


@pytest.mark.parametrize("names_positions", [True, False])
async def test_a_position_that_cannot_be_moved_is_reported(*, names_positions: bool) -> None:
    stage = Stage()
    source = UnmarkableSource(cluster=stage.cluster, clock=stage.clock, names_positions=names_positions)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        await stage.clock.sleep(700)
    reported = stage.coordinator.journal.facts_of(NOT_MOVED)
    assert [line["reason"] for line in reported] == ["the source is not reached"] * 2
    assert "insert on the database d5agent" in str(reported[0]["hint"])


async def test_a_position_without_the_right_to_move_it_is_reported() -> None:
    stage = Stage()
    stage.source.may_write = stage.source.names_positions = False
    async with stage.running(stage.replication()):
        await stage.clock.sleep(400)
    (reported,) = stage.coordinator.journal.facts_of(NOT_MOVED)
    assert reported["reason"] == "a privilege is missing"


class StalledSource(FakeChangeSource):
    """Answers nothing any more for a while, as a server with slow look-ups of which each answer is too late."""

    stalls_for = 0.0

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        async with aclosing(super()._batches(after)) as batches:
            async for batch in batches:
                stalls, self.stalls_for = self.stalls_for, 0.0
                await self.clock.sleep(stalls)
                yield batch


async def test_a_stream_that_answers_late_is_life_and_not_caught_up() -> None:
    stage = Stage()
    source = StalledSource(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: stage.coordinator.progress.capture)
        await until(stage.clock, lambda: captured(stage.coordinator.progress).is_caught_up)
        source.stalls_for = 300
        await stage.clock.sleep(20)
        stage.coordinator.progress.capture = None
        await stage.clock.sleep(20)
        assert captured(stage.coordinator.progress).is_caught_up is False
        await until(stage.clock, lambda: captured(stage.coordinator.progress).is_caught_up)
