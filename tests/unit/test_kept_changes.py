"""A gap in the stream is noticed after a restart, after a failed look, and with a full disk; it is never certified."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from d5agent.core.run.services import Service, Status
from d5agent.errors import CorruptDataError, NotKeptError, OperatorError, TransientError
from d5agent.steps.capture.kept_changes import GAP, KEPT, gap_key
from d5agent.steps.parallel import leaf_of
from tests.fakes.cluster import insert
from tests.fakes.progress import captured
from tests.fakes.source import FakeChangeSource
from tests.fakes.stage import ORDERS, Stage, until
from tests.fakes.store import DownStore, FakeObjectStore, FakeStateStore, FullDisk
from tests.unit.test_plugin_monitors import proved, run_clean

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from d5agent.core.log.operation import ClusterTime, Position
    from d5agent.ports import EventBatch

LOST = "the position is lost"
KNOWN = "the stream has a gap"
WITH_AND_WITHOUT_POSITIONS = pytest.mark.parametrize("names_positions", [True, False])


@dataclass(slots=True, kw_only=True)
class FlakySource(FakeChangeSource):
    """Fails so many looks, each with a passing error."""

    failing: int = 0

    @override
    async def check_kept(self, since: ClusterTime | None) -> ClusterTime:
        if self.failing:
            self.failing -= 1
            raise TransientError("the source is not reached", hint="wait")
        return await FakeChangeSource.check_kept(self, since)


def open_a_gap(stage: Stage, source: FakeChangeSource | None = None) -> None:
    """Let an operation happen that no stream tells of; one that is open goes on behind it."""
    source = source or stage.source
    source.switch(is_on=False)
    stage.cluster.apply(insert(ORDERS, {"_id": "untold"}))
    source.switch(is_on=True)
    stage.cluster.apply(insert(ORDERS, {"_id": "told"}))


async def failure_of(
    stage: Stage, source: FakeChangeSource, act: Callable[[asyncio.Task[None]], Awaitable[object]]
) -> BaseException:
    """Act beside a replication that is ready, and return what it ends with."""
    try:
        async with stage.running(stage.replication(source=source)) as service:
            await until(stage.clock, lambda: stage.coordinator.state.ready_at)
            await act(service)
    except ExceptionGroup as raised:
        return leaf_of(raised)
    raise AssertionError("replication has not failed")


class KilledError(Exception):
    """The end of the process."""


class KilledSource(FakeChangeSource):
    """Lets replication begin, and end at its next look."""

    has_begun = False

    @override
    async def check_kept(self, since: ClusterTime | None) -> ClusterTime:
        if self.has_begun:
            raise KilledError
        self.has_begun = True
        return await super().check_kept(since)


async def captured_over_a_gap(stage: Stage) -> None:
    """Let replication commit what comes behind a gap, and be killed before it looks."""
    source = KilledSource(cluster=stage.cluster, clock=stage.clock, names_positions=stage.source.names_positions)

    async def act(_: object) -> None:
        await stage.clock.sleep(2)
        open_a_gap(stage, source)
        await until(stage.clock, lambda: captured(stage.coordinator.progress).operations == 2)

    assert isinstance(await failure_of(stage, source, act), KilledError)
    stage.source._untold, stage.source._on_since = source._untold, source._on_since
    assert len(await stage.stored()) == len(stage.happened()) - 1 == 1


def stage_of(*, names_positions: bool, states: FakeStateStore | None = None) -> Stage:
    stage = Stage(states=states or FakeStateStore())
    stage.source.names_positions = names_positions
    return stage


@WITH_AND_WITHOUT_POSITIONS
async def test_a_gap_is_noticed_after_a_kill(*, names_positions: bool) -> None:
    stage = stage_of(names_positions=names_positions)
    await captured_over_a_gap(stage)
    commits = await stage.commits()
    for expected in (LOST, KNOWN):
        with pytest.raises(NotKeptError, match=expected):
            await stage.replication().run(stage.coordinator)
    assert await stage.commits() == commits


@WITH_AND_WITHOUT_POSITIONS
async def test_a_gap_is_noticed_while_replication_drains(*, names_positions: bool) -> None:
    stage = stage_of(names_positions=names_positions)

    async def act(_: object) -> None:
        open_a_gap(stage)
        await until(stage.clock, lambda: captured(stage.coordinator.progress).operations == 2)

    failure = await failure_of(stage, stage.source, act)
    assert isinstance(failure, NotKeptError)
    assert failure.message == LOST
    assert len(await stage.stored()) == 1  # what is in hand is stored first
    with pytest.raises(NotKeptError, match=KNOWN):
        await stage.replication().run(stage.coordinator)


@WITH_AND_WITHOUT_POSITIONS
async def test_a_look_that_fails_keeps_its_reference(*, names_positions: bool) -> None:
    stage = stage_of(names_positions=names_positions)
    source = FlakySource(cluster=stage.cluster, clock=stage.clock, names_positions=names_positions)

    async def act(service: asyncio.Task[None]) -> None:
        source.failing = 3
        open_a_gap(stage, source)
        await until(stage.clock, service.done)

    failure = await failure_of(stage, source, act)
    assert isinstance(failure, NotKeptError)
    assert failure.message == LOST
    assert source.failing == 0
    assert len(stage.coordinator.journal.facts_of("source_not_checked")) == 3


async def test_a_drain_without_a_look_is_caught_up_by_the_next_start() -> None:
    stage = Stage()
    source = FlakySource(cluster=stage.cluster, clock=stage.clock)
    async with stage.running(stage.replication(source=source)):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        open_a_gap(stage, source)
        source.failing = 1
    with pytest.raises(NotKeptError, match=LOST):
        await stage.replication(source=source).run(stage.coordinator)


async def test_the_proved_time_moves_on_with_each_look() -> None:
    stage = Stage()
    stage.cluster.moves_while_idle = True
    proved = set()
    async with stage.running(stage.replication()):
        for _ in range(4):
            await stage.clock.sleep(61)
            proved.add(tuple(json.loads(stage.states.texts[KEPT])["cluster_time"]))
    assert len(proved) == 4
    assert json.loads(stage.states.texts[KEPT])["run_id"] == "run"


async def test_the_proved_time_of_another_run_is_ignored() -> None:
    stage = Stage()
    await stage.states.save(KEPT, {"version": 1, "run_id": "before", "cluster_time": [1, 1]})
    await stage.states.save(GAP, {"version": 1, "run_id": "before"})
    stage.source.switch(is_on=False)
    stage.source.switch(is_on=True)
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.kept().prove("run", sequence=1)


async def test_a_log_of_an_earlier_version_is_proved_from_its_beginning() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.states.delete(KEPT)
    await stage.capture(insert(ORDERS, {"_id": 2}))
    assert json.loads(stage.states.texts[KEPT])["since"] is None
    assert not stage.coordinator.journal.facts_of("stream_not_proved_before")
    stage.source.switch(is_on=False)
    stage.source.switch(is_on=True)
    with pytest.raises(NotKeptError, match=LOST):
        await stage.kept().prove("run", sequence=1)


@WITH_AND_WITHOUT_POSITIONS
async def test_a_gap_before_the_upgrade_is_noticed_from_the_last_commit(*, names_positions: bool) -> None:
    stage = stage_of(names_positions=names_positions)
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.states.delete(KEPT)  # an earlier version wrote this log, and has stopped
    open_a_gap(stage)
    last = (await stage.commits())[-1].sequence
    with pytest.raises(NotKeptError, match=LOST):
        await stage.kept().prove("run", sequence=last)
    with pytest.raises(NotKeptError, match=KNOWN):
        await stage.replication().run(stage.coordinator)


async def test_a_log_that_is_provable_in_part_only_says_so() -> None:
    stage = Stage()
    await captured_over_a_gap(stage)
    await stage.states.delete(KEPT)  # of an earlier version, which passed over it and committed behind it
    last = (await stage.commits())[-1]
    stage.coordinator.state = replace(stage.coordinator.state, ready_at="")
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
    (facts,) = stage.coordinator.journal.facts_of("stream_not_proved_before")
    assert facts["cluster_time"] == str(last.position.cluster_time)
    assert "[verify] outside" in str(facts["hint"])
    await stage.draw_fence()
    await stage.prove()
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    assert certificate["end_of_stream"]["kept_since"] == list(last.position.cluster_time)
    page = stage.store.objects["reports/run/certificate.html"].decode()
    assert f"proved without a gap from {last.position.cluster_time} on" in page


async def test_a_proved_time_of_an_earlier_form_is_from_the_beginning() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    value = json.loads(stage.states.texts[KEPT])
    assert value.pop("since") is None
    await stage.states.save(KEPT, value)
    assert await stage.kept().prove("run", sequence=1) is None


@WITH_AND_WITHOUT_POSITIONS
async def test_a_gap_is_remembered_although_the_disk_is_full(*, names_positions: bool) -> None:
    disk = FullDisk()
    stage = stage_of(names_positions=names_positions, states=disk)
    await captured_over_a_gap(stage)
    disk.is_full = True
    with pytest.raises(NotKeptError, match=LOST) as found:
        await stage.replication().run(stage.coordinator)
    assert "a state file cannot be written" in str(found.value.facts["not_saved"])
    disk.is_full = False
    assert GAP not in disk.texts
    with pytest.raises(NotKeptError, match=KNOWN) as known:
        await stage.replication().run(stage.coordinator)
    assert known.value.facts["found"] == LOST
    assert "'the position is lost'" in known.value.hint


async def test_a_gap_is_remembered_although_the_store_is_down() -> None:
    store = DownStore(page_size=3)
    stage = Stage(store=store)
    await stage.capture(insert(ORDERS, {"_id": 1}))
    open_a_gap(stage)

    class ThenDown(FakeStateStore):
        @override
        async def load(self, name: str) -> dict[str, object] | None:
            if name == KEPT:
                store.error = TransientError("S3 is not reached")
            return await super().load(name)

    states = ThenDown()
    states.texts = stage.states.texts
    stage.states = states
    with pytest.raises(NotKeptError, match=LOST) as found:
        await stage.kept().prove("run", sequence=1)
    assert "S3 is not reached" in str(found.value.facts["not_saved"])
    store.error = None
    assert gap_key("run") not in store.objects
    with pytest.raises(NotKeptError, match=KNOWN):
        await stage.kept().refuse_gap("run")


async def test_what_is_not_kept_before_the_log_begins_is_no_gap_of_the_log() -> None:
    stage = Stage()
    stage.source.switch(is_on=False)
    with pytest.raises(NotKeptError):
        await stage.kept().prove("run", sequence=None)
    stage.source.switch(is_on=True)
    await stage.kept().prove("run", sequence=None)


async def test_a_note_of_a_gap_that_is_damaged_is_a_gap() -> None:
    stage = Stage()
    await stage.store.put(gap_key("run"), b"{")
    with pytest.raises(CorruptDataError, match="the note is damaged") as damaged:
        await stage.kept().prove("run", sequence=1)
    assert gap_key("run") == damaged.value.facts["key"]
    assert "'the position is lost'" in damaged.value.hint


async def test_capture_goes_on_while_a_look_is_refused() -> None:
    class Refusing(FakeObjectStore):
        is_refusing = False

        @override
        async def get(self, key: str) -> bytes | None:
            if self.is_refusing and key == gap_key("run"):
                raise OperatorError("S3 refuses the agent", hint="give the role s3:GetObject")
            return await super().get(key)

    store = Refusing()
    stage = Stage(store=store)
    async with stage.running(stage.replication()) as service:
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        store.is_refusing = True
        await stage.clock.sleep(180)
        assert not service.done()
        stage.cluster.apply(insert(ORDERS, {"_id": 1}))
        await stage.wait_until_captured()
        stage.coordinator.stopping.set()
    assert len(stage.coordinator.journal.facts_of("source_not_checked")) >= 2


async def test_a_proof_that_cannot_be_saved_moves_nothing() -> None:
    disk = FullDisk()
    stage = Stage(states=disk)
    await stage.capture(insert(ORDERS, {"_id": 1}))
    before, disk.is_full = disk.texts[KEPT], True
    with pytest.raises(OperatorError, match="a state file cannot be written"):
        await stage.kept().prove("run", sequence=1)
    assert disk.texts[KEPT] == before


@WITH_AND_WITHOUT_POSITIONS
@pytest.mark.parametrize("is_known", [True, False])
async def test_nothing_is_certified_over_a_gap(*, names_positions: bool, is_known: bool) -> None:
    stage = stage_of(names_positions=names_positions)
    await captured_over_a_gap(stage)
    await stage.draw_fence()
    if is_known:
        with pytest.raises(NotKeptError):
            await stage.replication().run(stage.coordinator)
    with pytest.raises(NotKeptError, match=KNOWN if is_known else LOST):
        await stage.restore().run(stage.coordinator)
    assert stage.coordinator.state.verified is None
    assert not [key for key in stage.store.objects if "certificate" in key]


@WITH_AND_WITHOUT_POSITIONS
async def test_no_fence_is_drawn_behind_a_gap(*, names_positions: bool) -> None:
    stage = stage_of(names_positions=names_positions)
    monitor = replace(stage.cutover(), application=None)

    async def act(_: object) -> None:
        stage.coordinator.set_status(Service.MONITOR_REPLICATION, Status.RUNNING)
        open_a_gap(stage)
        with pytest.raises(NotKeptError, match=LOST):
            await monitor.run(stage.coordinator)

    assert isinstance(await failure_of(stage, stage.source, act), NotKeptError)
    assert stage.coordinator.state.fence is None


async def test_nothing_is_cleaned_behind_a_gap() -> None:
    stage = await proved(Stage())
    before = dict(stage.store.objects)
    stage.source = GapAtTheEnd(cluster=stage.cluster, clock=stage.clock)
    with pytest.raises(NotKeptError, match=LOST):
        await run_clean(stage)
    assert before.items() <= stage.store.objects.items()
    assert stage.coordinator.started == [Service.REPLICATION]
    assert not stage.coordinator.state.is_clearing


class GapAtTheEnd(FakeChangeSource):
    """Is switched off and on again after replication was stopped."""

    @override
    async def mark(self, mark_id: str) -> bool:
        if mark_id.startswith("end-"):
            self.switch(is_on=False)
            self.switch(is_on=True)
        return await super().mark(mark_id)

    @override
    async def _batches(self, after: Position) -> AsyncGenerator[EventBatch]:
        """Begin at the gap's end: the stream itself shows no error."""
        async with aclosing(super()._batches(replace(after, cluster_time=self.cluster.now(), token=None))) as batches:
            async for batch in batches:
                yield batch
