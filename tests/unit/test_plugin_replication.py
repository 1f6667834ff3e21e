"""replication: ready when it is proved, one writer, nothing lost in silence or after the fence."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from d5agent.core.log.operation import Namespace
from d5agent.core.run.services import Fence
from d5agent.errors import CorruptDataError, LogHeldError, OperatorError, TransientError
from d5agent.steps.capture.fence import draw_fence
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.roll_ups import RollUps
from tests.fakes.cluster import delete, drop, insert, rename, update
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import captured
from tests.fakes.source import FakeChangeSource
from tests.fakes.stage import ORDERS, Stage, until
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from d5agent.core.log.operation import Position
    from d5agent.errors import AgentError
    from d5agent.plugins.replication import Replication
    from d5agent.ports import EventBatch
    from tests.fakes.coordinator import FakeCoordinator


class HeldSource(FakeChangeSource):
    """Tells its beginning, and then nothing until it flows."""

    flows = False

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        async with aclosing(super()._batches(after)) as batches:
            async for batch in batches:
                yield batch
                while not self.flows:
                    await self.clock.sleep(0.1)


class EndlessSource(FakeChangeSource):
    """Somebody writes as fast as it is read: no batch is ever empty."""

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        async with aclosing(super()._batches(after)) as batches:
            async for batch in batches:
                yield batch
                await self.clock.sleep(0.01)
                self.cluster.apply(insert(ORDERS, {"_id": len(self.cluster)}))


class LostAnswers(FakeObjectStore):
    """Stores commits, but the answer is lost, and the repeated request finds the key taken."""

    @override
    async def put_once(self, key: str, body: bytes) -> bool:
        return await super().put_once(key, body) and not key.endswith(".json")


async def test_replication_is_ready_only_after_its_mark_came_out_of_the_stream() -> None:
    stage = Stage()
    source = HeldSource(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: len(stage.cluster) == 1)
        await stage.clock.sleep(30)
        assert stage.coordinator.state.ready_at == ""
        source.flows = True
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
    assert stage.coordinator.journal.facts_of("replication_ready") == [{"sequence": 0}]
    assert not stage.coordinator.journal.facts_of("marker_not_written")


async def test_replication_has_noted_where_it_begins_before_it_writes_its_mark() -> None:
    stage = Stage()
    source = HeldSource(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: len(stage.cluster) == 1)
        assert [commit.segments for commit in await stage.commits()] == [()]
        source.flows = True


async def test_without_the_right_to_write_replication_is_ready_with_a_warning() -> None:
    stage = Stage()
    stage.source.may_write = False
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
    (warning,) = stage.coordinator.journal.facts_of("marker_not_written")
    assert "restore, cutover and clean are refused" in str(warning["hint"])


async def test_replication_that_was_ready_before_stays_ready_since_then() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    ready_at = stage.coordinator.state.ready_at
    await stage.clock.sleep(100)
    await stage.capture(insert(ORDERS, {"_id": 2}))
    assert stage.coordinator.state.ready_at == ready_at != ""


async def test_the_log_of_another_run_is_refused_and_left_as_it_is() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    objects = dict(stage.store.objects)
    other = Stage(store=stage.store)
    other.coordinator.state = replace(other.coordinator.state, run_id="a new run")
    with pytest.raises(OperatorError, match="the log of another run") as refused:
        await other.replication().run(other.coordinator)
    assert refused.value.facts["run_id"] == "run"
    assert refused.value.facts["host"] == "host"
    assert "choose another [store] prefix" in refused.value.hint
    assert "d5agent start clean --force run" in refused.value.hint, "it names the run that would be deleted"
    assert stage.store.objects == objects
    assert len(other.cluster) == 0


async def test_changes_that_are_not_kept_are_refused_before_anything_is_written() -> None:
    stage = Stage()
    stage.source.is_enabled = False
    with pytest.raises(OperatorError, match="not enabled"):
        await stage.replication().run(stage.coordinator)
    assert stage.store.objects == {}


async def test_a_lost_position_is_refused_and_never_replaced_by_now() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    commits = await stage.commits()
    stage.cluster.apply(insert(ORDERS, {"_id": 2}))
    stage.cluster.kept_from = len(stage.cluster)
    with pytest.raises(OperatorError, match="the position is lost"):
        await stage.replication().run(stage.coordinator)
    assert await stage.commits() == commits


async def _end_of(service: Replication, coordinator: FakeCoordinator) -> OperatorError | None:
    try:
        await service.run(coordinator)
    except OperatorError as error:
        return error
    return None


async def test_of_two_agents_on_one_log_one_stops_and_names_the_other() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 0}))
    coordinators = [stage.new_coordinator(), stage.new_coordinator()]
    async with asyncio.TaskGroup() as group:
        ends = [
            group.create_task(_end_of(stage.replication(agent_id=name, host=f"host of {name}"), coordinator))
            for name, coordinator in zip(("one", "two"), coordinators, strict=True)
        ]
        for number in range(1, 6):
            stage.cluster.apply(insert(ORDERS, {"_id": number}))
            await stage.clock.sleep(0.7)
        await until(stage.clock, lambda: any(end.done() for end in ends))
        await stage.wait_until_captured()
        for coordinator in coordinators:
            coordinator.stopping.set()
    (error,) = [found for end in ends if (found := end.result()) is not None]
    winner = (await stage.commits())[-1].writer
    assert isinstance(error, LogHeldError)
    assert error.message == "another agent writes this log"
    assert error.facts["host"] == winner.host
    assert error.facts["run_id"] == winner.run_id == "run"
    assert error.facts["since"] == winner.since
    assert error.exit_code == 78
    await LogReader(store=stage.store).check()
    assert await stage.stored() == stage.happened()


async def test_a_commit_that_was_stored_although_its_answer_was_lost_is_our_own() -> None:
    stage = Stage(store=LostAnswers())
    await stage.capture(insert(ORDERS, {"_id": 1}))
    assert await stage.stored() == stage.happened()


async def test_the_position_moves_on_an_idle_stream_once_a_minute() -> None:
    stage = Stage()
    stage.cluster.moves_while_idle = True
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        await stage.clock.sleep(2)
        before = await stage.commits()
        await stage.clock.sleep(55)
        assert await stage.commits() == before
        await stage.clock.sleep(10)
        after = await stage.commits()
    assert len(after) == len(before) + 1
    assert after[-1].segments == ()
    assert after[-1].position.cluster_time > before[-1].position.cluster_time
    assert stage.states.texts["data_resume_token"]


async def test_operations_after_the_fence_are_captured_and_reported_at_once_but_not_one_by_one() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": -1}))
    await stage.draw_fence()
    async with stage.running(stage.replication()):
        stage.cluster.apply(*[insert(ORDERS, {"_id": number}) for number in range(1001)])
        await stage.wait_until_captured()
        assert captured(stage.coordinator.progress).operations_after_fence == 1001
    warnings = stage.coordinator.journal.facts_of("operation_after_fence")
    assert [(warning["count"], warning["namespace"]) for warning in warnings] == [
        (1, "shop.orders"),
        (1001, "shop.orders"),
    ]


async def drawn(stage: Stage) -> Fence:
    """Write a marker, with three operations behind it in its own commit and three in a later one; not published yet."""

    def write_behind(_: str) -> None:
        if len(stage.happened()) < 5:
            stage.cluster.apply(insert(ORDERS, {"_id": len(stage.cluster)}))

    stage.coordinator.on_wait = write_behind
    reader = LogReader(store=stage.store)
    marker = await draw_fence(
        stage.coordinator, source=stage.source, reader=reader, clock=stage.clock, timeout_seconds=60, again=""
    )
    stage.coordinator.on_wait = lambda _: None
    assert sum(ref.count for ref in marker.link.commit.segments) == 4
    for number in range(3):
        stage.cluster.apply(insert(ORDERS, {"_id": -number}))
    await stage.wait_until_captured()
    return Fence(sequence=marker.link.commit.sequence, cluster_time=marker.cluster_time, at=SINCE, marker=marker.id)


@pytest.mark.parametrize("restarts", [False, True])
async def test_writes_before_the_fence_is_published_are_reported(*, restarts: bool) -> None:
    stage = Stage()
    coordinator = stage.coordinator
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: coordinator.state.ready_at)
        stage.cluster.apply(insert(ORDERS, {"_id": "before"}))
        await stage.wait_until_captured()
        stage.cluster.apply(delete(ORDERS, "before"))
        await stage.wait_until_captured()
        await stage.clock.sleep(2)
        before = len(stage.happened())
        assert before == 2
        fence = await drawn(stage)
        if not restarts:
            coordinator.state = replace(coordinator.state, fence=fence)
            await until(stage.clock, lambda: captured(coordinator.progress).operations_after_fence)
            assert captured(coordinator.progress).operations_after_fence == 6
    if restarts:
        async with stage.running(stage.replication()):
            await stage.clock.sleep(2)
            assert captured(coordinator.progress).operations_after_fence == 0
            coordinator.state = replace(coordinator.state, fence=fence)
            stage.cluster.apply(insert(ORDERS, {"_id": "later"}))
            await stage.wait_until_captured()
            assert captured(coordinator.progress).operations_after_fence == 7
    assert coordinator.journal.facts_of("operation_after_fence")[0]["count"] == 6


async def test_a_fence_whose_commit_is_gone_stops_no_capture() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    fence = Fence(sequence=100, cluster_time=stage.cluster.now(), at=SINCE, marker="fence-gone")
    stage.coordinator.state = replace(stage.coordinator.state, fence=fence)
    await stage.capture(insert(ORDERS, {"_id": 2}))
    assert captured(stage.coordinator.progress).operations_after_fence == 1
    (warning,) = stage.coordinator.journal.facts_of("operations_after_fence_not_counted")
    assert "a commit is missing" in str(warning["error"])


async def test_a_stopped_replication_commits_what_is_in_its_hand() -> None:
    stage = Stage()
    async with stage.running(stage.replication(max_segment_seconds=1_000, max_segment_bytes=100_000)):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.cluster.apply(insert(ORDERS, {"_id": 1}), update(ORDERS, {"_id": 1, "n": 2}))
        await stage.clock.sleep(2)
        assert await stage.stored() == []
    assert await stage.stored() == stage.happened()


async def test_a_stop_in_the_middle_of_a_busy_stream_leaves_the_rest_to_the_next_start() -> None:
    stage = Stage()
    busy = EndlessSource(cluster=stage.cluster, clock=stage.clock, batch_sizes=(1,))
    async with stage.running(stage.replication(source=busy, max_segment_bytes=1000)):
        await until(stage.clock, lambda: len(stage.cluster) > 100)
    assert 0 < len(await stage.stored()) < len(stage.happened())
    await stage.capture()
    assert await stage.stored() == stage.happened()


class BurstSource(FakeChangeSource):
    """Sends an empty batch first, and events right behind it: both are read before either is worked on."""

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        async with aclosing(super()._batches(after)) as batches:
            async for batch in batches:
                if batch.events:
                    yield replace(batch, events=[], position=None)
                yield batch


async def test_a_stop_leaves_nothing_in_the_inbox() -> None:
    stage = Stage()
    source = BurstSource(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.cluster.apply(insert(ORDERS, {"_id": 1}))
        stage.coordinator.stopping.set()
    assert await stage.stored() == stage.happened()
    assert captured(stage.coordinator.progress).is_drained is True


async def test_a_stop_inside_a_transaction_is_not_drained() -> None:
    stage = Stage()
    slow = HeldSource(cluster=stage.cluster, clock=stage.clock, batch_sizes=(1,))
    slow.flows = True
    async with stage.running(stage.replication(source=slow)) as service:
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.cluster.apply(*[insert(ORDERS, {"_id": number}) for number in range(12)])
        stage.coordinator.stopping.set()
        await until(stage.clock, service.done)
    assert captured(stage.coordinator.progress).is_drained is False
    await stage.capture()
    assert await stage.stored() == stage.happened()


async def test_drops_and_renames_share_a_commit_with_others() -> None:
    stage = Stage()
    other = Namespace("a", "b")
    await stage.capture(
        insert(ORDERS, {"_id": 1}),
        drop(ORDERS),
        insert(ORDERS, {"_id": 2}),
        insert(other, {"_id": 1}),
        rename(ORDERS, Namespace("shop", "renamed")),
        insert(ORDERS, {"_id": 3}),
    )
    reader = LogReader(store=stage.store)
    found = [
        (commit.renames_within, [o.kind async for o in reader.operations(commit) if not o.is_ours])
        for commit in await stage.commits()
    ]
    joined = ["insert", "drop", "insert", "rename", "insert"]
    assert [row for row in found if row[1]] == [(True, ["insert", *joined])]


async def test_replication_says_how_much_it_has_captured_and_whether_it_has_caught_up() -> None:
    stage = Stage()
    source = HeldSource(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: len(stage.cluster) == 1)
        stage.cluster.apply(insert(ORDERS, {"_id": 1}))
        await stage.clock.sleep(30)
        before = captured(stage.coordinator.progress).last_cluster_time
        source.flows = True
        await until(stage.clock, lambda: not captured(stage.coordinator.progress).is_caught_up)
        await until(stage.clock, lambda: captured(stage.coordinator.progress).operations == 2)
        await until(stage.clock, lambda: captured(stage.coordinator.progress).is_caught_up)
        assert captured(stage.coordinator.progress).segments == 2
        assert captured(stage.coordinator.progress).bytes > 0
        assert captured(stage.coordinator.progress).last_cluster_time > before
        assert captured(stage.coordinator.progress).queue_bytes == 0


async def test_a_stream_that_is_switched_off_under_way_is_noticed_although_it_stays_silent() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as group:
        end = group.create_task(_end_of(stage.replication(), stage.coordinator))
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.source.is_enabled = False
        await until(stage.clock, end.done)
    assert "not enabled" in str(end.result())
    commits, stage.source.is_enabled = await stage.commits(), True
    with pytest.raises(OperatorError, match="the stream has a gap") as refused:
        await stage.replication().run(stage.coordinator)
    assert refused.value.facts["found"] == "change streams are not enabled"
    assert "'the position is lost'" in refused.value.hint
    assert await stage.commits() == commits


async def test_change_streams_are_enabled_before_the_first_capture_only() -> None:
    stage = Stage()
    stage.source.is_enabled, stage.source.enables = False, True
    await stage.capture(insert(ORDERS, {"_id": 1}))
    assert stage.coordinator.state.opened_stream
    stage.source.is_enabled = False
    with pytest.raises(OperatorError, match="not enabled"):
        await stage.replication().run(stage.coordinator)
    assert not stage.source.is_enabled
    assert stage.coordinator.state.opened_stream


async def test_it_is_noted_before_the_stream_is_switched_on_and_taken_back_where_that_is_refused() -> None:
    class Refusing(FakeChangeSource):
        """May not switch it on."""

        @override
        async def check(self, *, before_enabling: Callable[[], Awaitable[None]] | None) -> None:
            assert before_enabling is not None
            await before_enabling()
            noted.append(stage.coordinator.state.opened_stream)
            raise OperatorError("a privilege is missing")

    stage, noted = Stage(), list[bool]()
    stage.source = Refusing(cluster=stage.cluster, clock=stage.clock)
    with pytest.raises(OperatorError, match="a privilege is missing"):
        await stage.replication().run(stage.coordinator)
    assert noted == [True]
    assert not stage.coordinator.state.opened_stream


async def test_a_stream_that_somebody_else_has_switched_on_is_not_taken_for_ours() -> None:
    stage = Stage()
    stage.source.enables = True
    await stage.capture(insert(ORDERS, {"_id": 1}))
    assert not stage.coordinator.state.opened_stream


async def test_what_was_read_before_the_stream_failed_is_stored() -> None:
    class FailingSource(FakeChangeSource):
        """Gives what there is up to the newest cluster time, and then has lost the position."""

        fails = False

        @override
        async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
            async with aclosing(super()._batches(after)) as batches:
                async for batch in batches:
                    yield batch
                    if self.fails and batch.events:
                        raise OperatorError("the position is lost", hint="see the runbook")

    stage = Stage()
    source = FailingSource(cluster=stage.cluster, clock=stage.clock)
    async with asyncio.TaskGroup() as group:
        service = stage.replication(source=source, max_segment_seconds=1_000)
        end = group.create_task(_end_of(service, stage.coordinator))
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        source.fails = True
        for number in range(3):
            stage.cluster.apply(insert(ORDERS, {"_id": number}))
        await until(stage.clock, end.done)
    assert "the position is lost" in str(end.result())
    assert await stage.stored() == stage.happened()[:2]  # of the third's cluster time more might have followed


async def test_an_event_that_could_not_be_sent_whole_is_captured_and_told() -> None:
    class ReducingSource(FakeChangeSource):
        """Says of every event that it was too large."""

        @override
        async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
            async with aclosing(super()._batches(after)) as batches:
                async for batch in batches:
                    yield replace(batch, is_reduced=bool(batch.events))

    stage = Stage()
    source = ReducingSource(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.cluster.apply(insert(ORDERS, {"_id": 1}))
        await stage.wait_until_captured()
    told = stage.coordinator.journal.facts_of("event_too_large")
    assert [line["namespace"] for line in told] == ["d5agent.marks", "shop.orders"]


async def test_a_slow_store_is_waited_for_with_signs_of_life() -> None:
    class HeldStore(FakeObjectStore):
        """Takes no segment while it is held."""

        is_held = False

        @override
        async def put_once(self, key: str, body: bytes) -> bool:
            while self.is_held and key.endswith(".bson"):
                await stage.clock.sleep(1)
            return await super().put_once(key, body)

    store = HeldStore()
    stage = Stage(store=store)
    async with stage.running(stage.replication(max_segment_bytes=500)):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        store.is_held = True
        stage.cluster.apply(*[insert(ORDERS, {"_id": number}) for number in range(100)])
        await until(stage.clock, lambda: captured(stage.coordinator.progress).queue_bytes > 1_000)
        stage.coordinator.progress.capture = None
        await stage.clock.sleep(11)
        assert not captured(stage.coordinator.progress).is_caught_up
        store.is_held = False
        await stage.wait_until_captured()


@pytest.mark.parametrize("error", [TransientError("S3 is not reached"), CorruptDataError("an object has vanished")])
async def test_a_thousand_that_cannot_be_rolled_up_stops_no_capture(
    monkeypatch: pytest.MonkeyPatch, error: AgentError
) -> None:
    async def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(RollUps, "write_missing", fail)
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    assert stage.coordinator.journal.facts_of("rollup_not_written")[0]["error"] == error.message


async def test_what_is_in_hand_is_stored_when_the_stream_turns_out_to_be_switched_off() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as group:
        end = group.create_task(_end_of(stage.replication(max_segment_seconds=1_000), stage.coordinator))
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        await stage.clock.sleep(50)
        stage.cluster.apply(insert(ORDERS, {"_id": 1}))
        await stage.clock.sleep(2)
        assert await stage.stored() == []
        stage.source.is_enabled = False
        await until(stage.clock, end.done)
    assert await stage.stored() == stage.happened()


@pytest.mark.parametrize(
    ("reports", "first"),
    [
        ({}, 0),
        ({"a": {"last_sequence": 41, "log": {"commits": 42}}}, 42),
        ({"a": {"last_sequence": 41, "log": None}}, 42),
        ({"a": {"last_sequence": -1, "log": None}}, 0),
        ({"of an earlier version": {"log": {"commits": 42}}}, 42),
        ({"a": {"last_sequence": 99, "log": {"commits": 20}}, "b": {"last_sequence": 41, "log": {"commits": 42}}}, 100),
    ],
)
async def test_commit_numbers_go_on_from_the_runs_before(reports: dict[str, dict[str, Any]], first: int) -> None:
    stage = Stage()
    for run, report in reports.items():
        stage.store.objects[f"reports/{run}/final.json"] = json.dumps({"version": 1, **report}).encode()
        stage.store.objects[f"reports/{run}/certificate.json"] = b"{}"
    await stage.capture(insert(ORDERS, {"_id": 1}))
    sequences = [commit.sequence for commit in await stage.commits()]
    assert sequences == list(range(first, first + len(sequences)))
    await stage.capture(insert(ORDERS, {"_id": 2}))
    assert (await stage.commits())[0].sequence == first


@pytest.mark.parametrize("body", [b"garbage", b"[]", b'{"last_sequence": "many"}'])
async def test_a_final_report_that_cannot_be_read_does_not_stop_capture(body: bytes) -> None:
    stage = Stage()
    stage.store.objects["reports/a/final.json"] = body
    stage.store.objects["reports/b/final.json"] = b'{"last_sequence": 6}'
    await stage.capture(insert(ORDERS, {"_id": 1}))
    assert (await stage.commits())[0].sequence == 7
    (facts,) = stage.coordinator.journal.facts_of("final_report_not_read")
    assert facts["key"] == "reports/a/final.json"


async def test_a_run_that_was_ready_is_not_captured_anew_where_its_log_is_missing() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    stage.store.objects.clear()
    service = stage.replication(url_of=lambda key: f"s3://bucket/wrong/{key}")
    with pytest.raises(OperatorError, match="no log below s3://bucket/wrong/"):
        await service.run(stage.coordinator)
    assert stage.store.objects == {}


async def test_a_commit_ends_what_is_said_of_failed_tries() -> None:
    stage = Stage()
    stage.coordinator.progress.failing_since = SINCE
    await stage.capture(insert(ORDERS, {"_id": 1}))
    assert stage.coordinator.progress.failing_since is None
