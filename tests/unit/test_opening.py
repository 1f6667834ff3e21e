"""Where the log begins: after what the source had done before replication, whatever its times look like."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from d5agent.core.log.chain import encode_commit
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.errors import OperatorError, TransientError
from tests.fakes.cluster import FakeCluster, drop, drop_database, insert, rename
from tests.fakes.progress import captured
from tests.fakes.source import FakeChangeSource
from tests.fakes.stage import ORDERS, Stage, until
from tests.fakes.store import FakeStateStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.core.log.operation import Position
    from d5agent.ports import EventBatch
    from tests.fakes.cluster import Op

BEFORE = "operations_before_replication_skipped"


class BreakingSource(FakeChangeSource):
    """Tells its beginning, and then the line is cut."""

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        async with aclosing(super()._batches(after)) as batches:
            yield await anext(batches)
        raise TransientError("the line is cut")


class SilentSource(FakeChangeSource):
    """Names no position beside its batches, as DocumentDB 4.0."""

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        async with aclosing(super()._batches(after)) as batches:
            async for batch in batches:
                yield replace(batch, position=None)


class CoarseCluster(FakeCluster):
    """All that happens within a second has one time."""

    @override
    def _tick(self) -> ClusterTime:
        self._time = ClusterTime(int(self.clock.now().timestamp()), 1)
        return self._time


async def _captured(stage: Stage, source: FakeChangeSource, *ops: Op) -> list[str]:
    """Let replication become ready, then let operations happen; return what the log holds of applications."""
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.cluster.apply(*ops)
        await stage.clock.sleep(5)
    return [operation.kind for operation in await stage.operations()]


@pytest.mark.parametrize(
    "before",
    [
        [drop(ORDERS)],
        [rename(ORDERS, Namespace("shop", "old"))],
        [drop_database("shop")],
        [insert(ORDERS, {"_id": number}) for number in range(2, 7)],  # a transaction, longer than a batch
    ],
    ids=["drop", "rename", "dropDatabase", "transaction"],
)
@pytest.mark.parametrize("kind", [FakeChangeSource, SilentSource])
async def test_operations_before_replication_are_not_captured(
    before: Sequence[Op], kind: type[FakeChangeSource]
) -> None:
    stage = Stage()
    stage.cluster.apply(insert(ORDERS, {"_id": 1}))
    stage.cluster.apply(*before)
    source = kind(cluster=stage.cluster, clock=stage.clock, batch_sizes=(2,))
    assert await _captured(stage, source, insert(Namespace("shop", "new"), {"_id": 1})) == ["insert"]
    skipped = stage.coordinator.journal.facts_of(BEFORE)
    assert sum(int(str(line["count"])) for line in skipped) == len(before)
    assert str(skipped[0]["namespace"]).startswith("shop")
    assert (await stage.stored()) == stage.happened()[-1:]


@pytest.mark.parametrize("kind", [FakeChangeSource, SilentSource])
async def test_the_beginning_is_remembered_by_another_host(kind: type[FakeChangeSource]) -> None:
    stage = Stage()
    stage.cluster.apply(insert(ORDERS, {"_id": 1}))
    stage.cluster.apply(drop(ORDERS))
    with pytest.raises(TransientError):
        await stage.replication(source=BreakingSource(cluster=stage.cluster, clock=stage.clock)).run(stage.coordinator)
    assert len(await stage.commits()) == 1
    stage.states = FakeStateStore()
    service = stage.replication(source=kind(cluster=stage.cluster, clock=stage.clock), agent_id="other", host="other")
    async with stage.running(service):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.cluster.apply(insert(ORDERS, {"_id": 2}))
        await until(stage.clock, lambda: captured(stage.coordinator.progress).operations >= 2)
    assert await stage.stored() == stage.happened()[-1:]
    begins = {commit.begins_after for commit in await stage.commits()}
    assert len(begins) == 1
    assert None not in begins


async def test_a_restart_before_the_first_commit_begins_at_its_own_time() -> None:
    stage = Stage()
    stage.cluster.apply(insert(ORDERS, {"_id": 1}))
    stage.source.is_enabled = False
    with pytest.raises(OperatorError, match="not enabled"):
        await stage.replication().run(stage.coordinator)
    stage.source.is_enabled = True
    stage.cluster.apply(drop(ORDERS))
    assert await _captured(stage, stage.source, insert(ORDERS, {"_id": 2})) == ["insert"]


async def test_nothing_after_ready_is_skipped_while_the_sources_time_is_coarse() -> None:
    stage = Stage()
    stage.cluster = CoarseCluster(clock=stage.clock, database=stage.database)
    stage.cluster.apply(insert(ORDERS, {"_id": 1}))
    source = FakeChangeSource(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.cluster.apply(insert(ORDERS, {"_id": 2}))
        await stage.clock.sleep(5)
    assert await stage.stored() == stage.happened()[-1:]
    skipped = stage.coordinator.journal.facts_of(BEFORE)
    assert [line["namespace"] for line in skipped][:2] == ["shop.orders", "d5agent.marks"]


async def test_a_log_that_names_no_beginning_is_continued() -> None:
    stage = Stage()
    stage.cluster.apply(insert(ORDERS, {"_id": 1}))
    with pytest.raises(TransientError):
        await stage.replication(source=BreakingSource(cluster=stage.cluster, clock=stage.clock)).run(stage.coordinator)
    (first,) = await stage.commits()
    stage.store.objects[first.key] = encode_commit(replace(first, begins_after=None))
    assert await _captured(stage, stage.source, insert(ORDERS, {"_id": 2})) == ["insert", "insert"]
    assert {commit.begins_after for commit in await stage.commits()} == {None}
