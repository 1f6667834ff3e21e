"""monitor-restore, clean and monitor-clean: nothing is removed before the proof, and the end is said."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from d5agent.core.phase import Phase, Service, Status
from d5agent.errors import OperatorError
from d5agent.plugins.clean import Clean
from d5agent.plugins.monitor_clean import MonitorClean
from d5agent.plugins.monitor_restore import MonitorRestore
from tests.fakes.cluster import insert
from tests.fakes.machine import FakePowerSwitch
from tests.fakes.stage import ORDERS, Stage

STATES = ("data_resume_token", "restore_checkpoint")


async def proved(stage: Stage) -> Stage:
    """A stage whose log, of several segments, is verified up to its end."""
    for number in range(3):
        await stage.capture(insert(ORDERS, {"_id": number}))
    await stage.prove()
    await stage.states.save("restore_checkpoint", {"version": 1})
    stage.store.objects["dump/run/target/manifest.json"] = b"{}"
    stage.store.objects["reports/run/verify.json"] = b"{}"
    return stage


def clean(stage: Stage) -> Clean:
    return Clean(
        source=stage.source,
        store=stage.store,
        states=stage.states,
        state_names=STATES,
        clock=stage.clock,
        timeout_seconds=60,
    )


async def run_clean(stage: Stage) -> int:
    """Run clean beside replication, which it stops; return how many objects the log had then."""
    coordinator, found = stage.coordinator, [0]
    async with stage.running(stage.replication()) as replication:

        async def end_replication() -> None:
            coordinator.stopping.set()
            await asyncio.wait([replication])
            found[0] = len(log_of(stage))

        coordinator.on_stop = end_replication
        try:
            await clean(stage).run(coordinator)
        except OperatorError as error:
            refusal = error
        else:
            return found[0]
    raise refusal


def log_of(stage: Stage) -> list[str]:
    return [key for key in stage.store.objects if key.startswith("replication/")]


async def test_clean_removes_log_position_and_stream_but_neither_dumps_nor_reports() -> None:
    stage = await proved(Stage())
    deleted = await run_clean(stage)
    assert deleted > 3
    assert sorted(stage.store.objects) == ["dump/run/target/manifest.json", "reports/run/verify.json"]
    assert stage.states.texts == {}
    assert not stage.source.is_enabled
    assert stage.coordinator.stopped == [Service.REPLICATION]
    assert stage.coordinator.facts["deleted"] == deleted
    assert stage.coordinator.state.is_clearing


async def test_clean_refuses_when_operations_came_after_the_proof_and_replication_goes_on() -> None:
    stage = await proved(Stage())
    await stage.capture(insert(ORDERS, {"_id": "late"}))
    before = dict(stage.store.objects)
    with pytest.raises(OperatorError, match="has not verified") as refused:
        await run_clean(stage)
    assert refused.value.facts["operations"] == 1
    assert "nothing was deleted" in refused.value.hint
    assert before.items() <= stage.store.objects.items()
    assert stage.source.is_enabled
    assert stage.coordinator.started == [Service.REPLICATION]
    assert stage.coordinator.state.status(Service.REPLICATION) is Status.PENDING
    assert not stage.coordinator.state.is_clearing


async def test_clean_refuses_without_a_proof() -> None:
    stage = await proved(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, verified=None)
    before = dict(stage.store.objects)
    with pytest.raises(OperatorError, match="has not verified"):
        await clean(stage).run(stage.coordinator)
    assert stage.store.objects == before


async def test_marks_of_our_own_after_the_proof_do_not_keep_clean_from_its_work() -> None:
    stage = await proved(Stage())
    await stage.capture()  # replication starts again, and writes its mark
    await run_clean(stage)
    assert log_of(stage) == []


async def test_a_clean_that_was_cut_off_goes_on_without_asking_for_a_proof_again() -> None:
    stage = await proved(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, is_clearing=True)
    for key in log_of(stage)[::2]:
        del stage.store.objects[key]
    await clean(stage).run(stage.coordinator)
    assert log_of(stage) == []
    assert stage.coordinator.stopped == []


async def test_monitor_restore_waits_for_the_proof_and_then_starts_what_follows() -> None:
    stage = await proved(Stage())
    verified = stage.coordinator.state.verified
    stage.coordinator.state = replace(stage.coordinator.state, verified=None)
    stage.coordinator.set_status(Service.RESTORE, Status.FAILED)

    def go_on(reason: str) -> None:
        if reason.startswith("restore, which is failed"):
            stage.coordinator.set_status(Service.RESTORE, Status.RUNNING)
        else:
            stage.coordinator.set_status(Service.RESTORE, Status.DONE)
            stage.coordinator.state = replace(stage.coordinator.state, verified=verified)

    stage.coordinator.on_wait = go_on
    await MonitorRestore(store=stage.store).run(stage.coordinator)
    assert stage.coordinator.reasons == [
        "restore, which is failed: type d5agent start restore",
        "restore to be verified",
    ]
    assert stage.coordinator.started == [Service.CLEAN, Service.MONITOR_CLEAN]


async def test_monitor_restore_says_that_restore_has_not_been_started() -> None:
    stage = await proved(Stage())
    services = dict(stage.coordinator.state.services)
    del services[Service.RESTORE]
    stage.coordinator.state = replace(stage.coordinator.state, services=services)
    stage.coordinator.on_wait = lambda _: stage.coordinator.set_status(Service.RESTORE, Status.DONE)
    await MonitorRestore(store=stage.store).run(stage.coordinator)
    assert stage.coordinator.reasons == ["restore, which is not started: type d5agent start restore"]


async def test_operations_after_the_proof_are_restored_before_clean_is_started() -> None:
    stage = await proved(Stage())
    await stage.capture(insert(ORDERS, {"_id": "late"}))
    proof = stage.coordinator.state.verified
    assert proof is not None
    end = (await stage.commits())[-1].sequence

    def restored(_: str) -> None:
        assert Service.CLEAN not in stage.coordinator.started
        stage.coordinator.set_status(Service.RESTORE, Status.DONE)
        stage.coordinator.state = replace(stage.coordinator.state, verified=replace(proof, sequence=end))

    stage.coordinator.on_wait = restored
    await MonitorRestore(store=stage.store).run(stage.coordinator)
    assert stage.coordinator.journal.facts_of("operations_after_fence") == [{"operations": 1}]
    assert stage.coordinator.started == [Service.RESTORE, Service.CLEAN, Service.MONITOR_CLEAN]


async def test_monitor_clean_waits_for_clean_and_backup_and_powers_off_once_idle() -> None:
    stage = await proved(Stage())
    power = FakePowerSwitch()
    stage.coordinator.set_status(Service.CLEAN, Status.RUNNING)

    def go_on(reason: str) -> None:
        assert power.requests == 0
        stage.coordinator.set_status(Service.BACKUP if "clean" not in reason else Service.CLEAN, Status.DONE)

    stage.coordinator.on_wait = go_on
    await MonitorClean(power=power, clock=stage.clock).run(stage.coordinator)
    assert stage.coordinator.reasons == [
        "to be done: clean (running), backup (not started)",
        "to be done: backup (not started)",
    ]
    assert power.requests == 1
    assert stage.coordinator.state.phase is Phase.IDLE
    assert stage.coordinator.state.status(Service.MONITOR_CLEAN) is Status.DONE


async def test_a_power_off_that_fails_is_reported() -> None:
    stage = await proved(Stage())
    for service in (Service.CLEAN, Service.BACKUP):
        stage.coordinator.set_status(service, Status.DONE)
    power = FakePowerSwitch(error=OperatorError("systemctl ended with 1", hint="power the instance off by hand"))
    with pytest.raises(OperatorError, match="systemctl ended with 1"):
        await MonitorClean(power=power, clock=stage.clock).run(stage.coordinator)
    assert power.requests == 1
