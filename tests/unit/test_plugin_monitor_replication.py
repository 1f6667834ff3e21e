"""monitor-replication: the fence is drawn when it is proved, and every wait says what it waits for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from d5agent.core.run.services import Phase, Service, Status
from d5agent.errors import OperatorError
from d5agent.plugins.monitor_replication import MonitorReplication
from d5agent.steps.backups import wait_for_backup
from d5agent.steps.log.marks import mark_document_id
from d5agent.steps.log.reader import LogReader
from tests.fakes.cluster import insert
from tests.fakes.progress import captured
from tests.fakes.stage import ORDERS, Stage, until

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 60.0
MANIFEST = "dump/run/target/manifest.json"
MARK = "the fence to come out of the stream and be stored"


async def ready(stage: Stage) -> Stage:
    """A stage whose restore phase has begun, its backup being done."""
    await stage.capture(insert(ORDERS, {"_id": 0}))
    stage.coordinator.state = replace(stage.coordinator.state, phase=Phase.RESTORE)
    await stage.store.put(MANIFEST, b"{}")
    stage.coordinator.set_status(Service.MONITOR_REPLICATION, Status.RUNNING)
    return stage


def monitor(stage: Stage, *, quiet_seconds: float = 0) -> MonitorReplication:
    return MonitorReplication(
        source=stage.source,
        store=stage.store,
        kept=stage.kept(),
        clock=stage.clock,
        quiet_seconds=quiet_seconds,
        timeout_seconds=TIMEOUT,
    )


def once(stage: Stage, begin: str, act: Callable[[], object]) -> None:
    """Act at the first wait whose reason begins so."""
    acted: list[str] = []

    def on_wait(reason: str) -> None:
        if reason.startswith(begin) and not acted:
            acted.append(reason)
            act()

    stage.coordinator.on_wait = on_wait


@pytest.mark.parametrize("names_positions", [True, False])
async def test_the_fence_covers_all_that_was_written_before_it_and_restore_is_started(*, names_positions: bool) -> None:
    stage = Stage()
    stage.source.names_positions = names_positions
    await ready(stage)
    async with stage.running(stage.replication()):
        for number in range(1, 20):
            stage.cluster.apply(insert(ORDERS, {"_id": number}))
        await monitor(stage).run(stage.coordinator)
        fence = stage.coordinator.state.fence
        assert fence is not None
        covered = sum(commit.total.operations for commit in await stage.commits() if commit.sequence == fence.sequence)
        assert covered >= 20
        assert await stage.stored() == stage.happened()
    assert stage.coordinator.reasons == [MARK]
    assert stage.coordinator.started == [Service.RESTORE]
    assert stage.coordinator.state.status(Service.RESTORE) is Status.PENDING


async def test_running_writes_are_waited_for_and_named() -> None:
    stage = await ready(Stage())
    stage.source.writes = ["update on shop.orders since 3 s", "insert on shop.orders since 1 s"]
    marks = len(stage.cluster)

    def end_of_writes(reason: str) -> None:
        if reason.startswith(("1 ", "2 ")):
            assert len(stage.cluster) == marks  # no fence while somebody writes
            stage.source.writes.pop()

    stage.coordinator.on_wait = end_of_writes
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: len(stage.cluster) > marks)
        marks = len(stage.cluster) + 1  # with the one that shows that marks may be written
        await monitor(stage).run(stage.coordinator)
    assert stage.coordinator.reasons[:2] == [
        "2 running writes to end: update on shop.orders since 3 s",
        "1 running writes to end: update on shop.orders since 3 s",
    ]


async def test_writes_that_do_not_end_are_given_up_with_a_hint() -> None:
    stage = await ready(Stage())
    stage.source.writes = ["update on shop.orders since 3 s"]
    with pytest.raises(OperatorError, match="writes are still running") as failed:
        await monitor(stage).run(stage.coordinator)
    assert failed.value.facts == {"after_seconds": TIMEOUT, "running": "update on shop.orders since 3 s"}
    assert "read-only" in failed.value.hint
    assert TIMEOUT < stage.clock.monotonic() < TIMEOUT + 10
    assert stage.coordinator.state.fence is None


async def test_a_mark_that_does_not_come_out_is_given_up_with_a_hint() -> None:
    stage = await ready(Stage())  # and no replication runs
    with pytest.raises(OperatorError, match="the fence marker did not come out") as failed:
        await monitor(stage).run(stage.coordinator)
    assert "is replication running?" in failed.value.hint
    assert stage.coordinator.reasons == [MARK]
    assert stage.coordinator.started == []


async def test_without_a_marker_nothing_is_waited_for_and_no_fence_is_drawn() -> None:
    stage = await ready(Stage())
    stage.source.may_write, stage.source.writes = False, ["update on shop.orders since 3 s"]
    with pytest.raises(OperatorError, match="the fence marker cannot be written") as refused:
        await monitor(stage).run(stage.coordinator)
    assert refused.value.hint.endswith("(docs/privileges.md), then type: d5agent start restore")
    assert (stage.coordinator.reasons, stage.coordinator.started, stage.coordinator.state.fence) == ([], [], None)


async def test_the_fence_is_the_marker_itself_and_its_own_time() -> None:
    stage = await ready(Stage())
    async with stage.running(stage.replication()):
        await monitor(stage).run(stage.coordinator)
    fence = stage.coordinator.state.fence
    assert fence is not None
    commit = (await stage.commits())[fence.sequence]
    markers = [o async for o in LogReader(store=stage.store).operations(commit, only_own=True)]
    assert [o.cluster_time for o in markers if o.document_id == mark_document_id(fence.marker)] == [fence.cluster_time]


async def test_a_certificate_counts_what_came_behind_the_marker() -> None:
    stage = await ready(Stage())
    writes = iter(range(1, 7))

    def write_behind(reason: str) -> None:
        number = next(writes, None) if reason.startswith("2") else None
        if number is not None:
            stage.cluster.apply(insert(ORDERS, {"_id": number}))

    stage.coordinator.on_wait = write_behind
    async with stage.running(stage.replication()):
        await monitor(stage, quiet_seconds=2).run(stage.coordinator)
        await until(stage.clock, lambda: captured(stage.coordinator.progress).operations_after_fence == 6)
    assert stage.coordinator.journal.facts_of("operation_after_fence")
    await stage.restore().run(stage.coordinator)
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    assert certificate["end_of_stream"]["operations_after"] == 6
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_quiet_is_waited_for_when_asked_for_and_begins_anew_with_each_operation() -> None:
    stage = await ready(Stage())
    async with stage.running(stage.replication()):
        began = stage.clock.monotonic()
        once(stage, "20", lambda: stage.cluster.apply(insert(ORDERS, {"_id": "after"})))
        await monitor(stage, quiet_seconds=20).run(stage.coordinator)
        assert 21 <= stage.clock.monotonic() - began < 30
    assert stage.coordinator.reasons == [MARK, "20 quiet seconds after the fence"]


async def test_a_mark_of_our_own_does_not_disturb_the_quiet() -> None:
    stage = await ready(Stage())
    began = 0.0

    def mark_again(reason: str) -> None:
        if reason.startswith("20") and stage.clock.monotonic() - began > 15 and len(stage.cluster) < 5:
            stage.cluster.apply(insert(ORDERS._replace(database="d5agent"), {"_id": len(stage.cluster)}))

    async with stage.running(stage.replication()):
        await stage.clock.sleep(3)
        began = stage.clock.monotonic()
        stage.coordinator.on_wait = mark_again
        await monitor(stage, quiet_seconds=20).run(stage.coordinator)
        assert stage.clock.monotonic() - began < 24


async def test_an_application_that_is_never_quiet_is_given_up_with_a_hint() -> None:
    stage = await ready(Stage())

    def write(reason: str) -> None:
        if reason.startswith("20"):
            stage.cluster.apply(insert(ORDERS, {"_id": len(stage.cluster)}))

    stage.coordinator.on_wait = write
    async with stage.running(stage.replication()):
        with pytest.raises(OperatorError, match="operations still come after the fence") as failed:
            await monitor(stage, quiet_seconds=20).run(stage.coordinator)
    assert "read-only" in failed.value.hint


async def test_the_backup_is_waited_for() -> None:
    stage = await ready(Stage())
    await stage.store.delete([MANIFEST])
    stage.coordinator.set_status(Service.BACKUP, Status.FAILED)
    waits = (
        "a backup of the target, which is not running: type d5agent start backup",
        "the backup of the target",
    )

    def go_on(reason: str) -> None:
        if reason == waits[0]:
            assert stage.coordinator.state.fence is not None
            stage.coordinator.set_status(Service.BACKUP, Status.RUNNING)  # the source's may take longer
        elif reason == waits[1]:
            stage.store.objects[MANIFEST] = b"{}"

    stage.coordinator.on_wait = go_on
    async with stage.running(stage.replication()):
        await monitor(stage).run(stage.coordinator)
    assert stage.coordinator.reasons == [MARK, *waits, ""]
    assert stage.coordinator.started == [Service.RESTORE]


async def test_a_backup_that_is_done_is_not_asked_for_again() -> None:
    stage = Stage()
    stage.coordinator.set_status(Service.BACKUP, Status.RUNNING)

    def end_backup(_: str) -> None:
        stage.coordinator.set_status(Service.BACKUP, Status.DONE)
        stage.store.objects["dump/run/target/manifest.json"] = b"{}"

    stage.coordinator.on_wait = end_backup
    await wait_for_backup(stage.coordinator, stage.store, "target")
    assert stage.coordinator.reasons == ["the backup of the target", ""]
