"""monitor-restore, clean and monitor-clean: nothing is removed before the proof, and the end is said."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.naming import commit_key
from d5agent.core.log.owners import LogOwners
from d5agent.core.reports.final_report import Clearing
from d5agent.core.run.ending import ask_power_off, forced
from d5agent.core.run.hold import HOLD
from d5agent.core.run.phase import to_resume
from d5agent.core.run.services import Late, LateShown, LateWord, Phase, Service, ServiceState, Status
from d5agent.errors import AgentError, CorruptDataError, OperatorError, TransientError, UnclassifiedError
from d5agent.plugins.clean import Clean
from d5agent.plugins.monitor_clean import MonitorClean
from d5agent.plugins.monitor_restore import MonitorRestore
from d5agent.steps.log.reader import LogReader
from d5agent.steps.reports import store_report
from tests.fakes.cluster import insert
from tests.fakes.coordinator import SINCE
from tests.fakes.machine import FakeJournal, FakePowerSwitch
from tests.fakes.source import FakeChangeSource, LaggingSource
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STATES = ("data_resume_token", "stream_kept", "restore_checkpoint")
REPORTS = [f"reports/run/{name}" for name in ("certificate.html", "certificate.json", "final.json", "verify.json")]


async def proved(stage: Stage) -> Stage:
    """A stage whose log, of several segments, is verified up to its end."""
    for number in range(3):
        await stage.capture(insert(ORDERS, {"_id": number}))
    await stage.prove()
    await stage.states.save("restore_checkpoint", {"version": 1})
    stage.store.objects["dump/run/target/manifest.json"] = b"{}"
    stage.store.objects["reports/run/verify.json"] = b"{}"
    return stage


def clean(stage: Stage, *, keep_log_days: int | None = None) -> Clean:
    return Clean(
        hold=stage.hold(),
        open_clusters=stage.clusters,
        source=stage.source,
        store=stage.store,
        uploads=stage.store,
        states=stage.states,
        kept=stage.kept(),
        state_names=STATES,
        clock=stage.clock,
        timeout_seconds=60,
        keep_log_days=keep_log_days,
    )


def monitor_clean(stage: Stage, power: FakePowerSwitch) -> MonitorClean:
    return MonitorClean(power=power, store=stage.store, clock=stage.clock, timeout_seconds=30)


def final_report(stage: Stage) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(stage.store.objects["reports/run/final.json"])
    return report


async def run_clean(stage: Stage, service: Clean | None = None) -> int:
    """Run clean beside replication, which it stops; return how many objects the log had then."""
    coordinator, found = stage.coordinator, [0]
    service = service or clean(stage)
    async with stage.running(stage.replication()) as replication:

        async def end_replication() -> None:
            coordinator.stopping.set()
            await asyncio.wait([replication])
            found[0] = len(log_of(stage))

        coordinator.on_stop = end_replication
        try:
            await service.run(coordinator)
        except AgentError as error:
            refusal = error
        else:
            return found[0]
    raise refusal


def log_of(stage: Stage) -> list[str]:
    return [key for key in stage.store.objects if key.startswith("replication/")]


async def test_clean_removes_log_position_and_stream_but_neither_dumps_nor_reports() -> None:
    stage = await proved(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, opened_stream=True)
    stage.store.half_way = ["dump/run/source/shop.archive.gz"]
    deleted = await run_clean(stage)
    assert deleted > 3
    assert sorted(stage.store.objects) == ["dump/run/target/manifest.json", *REPORTS]
    assert stage.store.half_way == []
    assert stage.states.texts == {}
    assert not stage.source.is_enabled
    assert stage.coordinator.stopped == [Service.REPLICATION]
    assert stage.coordinator.progress.clean.deleted == deleted
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


class MuteSource(LaggingSource):
    """Sends nothing more once the last marker is written, which is after replication was stopped."""

    @override
    async def mark(self, mark_id: str) -> bool:
        if mark_id.startswith("end-"):
            self.silent_until = self.clock.monotonic() + 1_000
        return await super().mark(mark_id)


async def test_a_last_marker_that_is_not_read_keeps_the_log() -> None:
    stage = await proved(Stage())
    stage.source = MuteSource(cluster=stage.cluster, clock=stage.clock)
    before = dict(stage.store.objects)
    with pytest.raises(OperatorError, match="the fence marker did not come out") as refused:
        await run_clean(stage)
    assert refused.value.facts == {"after_seconds": 60}
    assert before.items() <= stage.store.objects.items()
    assert stage.coordinator.started == [Service.REPLICATION]
    assert not stage.coordinator.state.is_clearing


async def test_a_last_marker_that_cannot_be_written_keeps_the_log() -> None:
    class Withdrawn(FakeChangeSource):
        """Takes the right to write away after clean has drawn its fence."""

        @override
        async def mark(self, mark_id: str) -> bool:
            self.may_write = not mark_id.startswith("end-")
            return await super().mark(mark_id)

    stage = await proved(Stage())
    stage.source = Withdrawn(cluster=stage.cluster, clock=stage.clock)
    with pytest.raises(OperatorError, match="the fence marker cannot be written") as refused:
        await run_clean(stage)
    assert refused.value.hint.endswith("then type: d5agent start clean")
    assert stage.coordinator.started == [Service.REPLICATION]
    assert not stage.coordinator.state.is_clearing


async def test_a_last_marker_that_fails_for_an_unknown_reason_keeps_capture_going() -> None:
    class Refusing(FakeChangeSource):
        """Answers the last marker with an error that nobody has a name for."""

        @override
        async def mark(self, mark_id: str) -> bool:
            if mark_id.startswith("end-"):
                raise UnclassifiedError("the source refused it", hint="")
            return await super().mark(mark_id)

    stage = await proved(Stage())
    stage.source = Refusing(cluster=stage.cluster, clock=stage.clock)
    with pytest.raises(UnclassifiedError):
        await run_clean(stage)
    assert stage.coordinator.started == [Service.REPLICATION]
    assert not stage.coordinator.state.is_clearing


async def test_clean_refuses_without_a_proof() -> None:
    stage = await proved(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, verified=None)
    before = dict(stage.store.objects)
    with pytest.raises(OperatorError, match="has not verified"):
        await clean(stage).run(stage.coordinator)
    assert stage.store.objects == before


async def refused(stage: Stage, match: str) -> OperatorError:
    """See that clean refuses, and keeps all."""
    before = dict(stage.store.objects)
    with pytest.raises(OperatorError, match=match) as error:
        await clean(stage).run(stage.coordinator)
    assert stage.store.objects == before
    assert stage.coordinator.stopped == []
    assert not stage.coordinator.state.is_clearing
    return error.value


async def test_clean_refuses_without_the_certificate_in_the_store() -> None:
    stage = await proved(Stage())
    del stage.store.objects["reports/run/certificate.json"]
    assert "d5agent start monitor-restore" in (await refused(stage, "there is no certificate")).hint


async def test_clean_refuses_a_proof_that_was_never_certified() -> None:
    stage = await proved(Stage())
    assert stage.coordinator.state.verified is not None
    proof = replace(stage.coordinator.state.verified, certificate="")
    stage.coordinator.state = replace(stage.coordinator.state, verified=proof)
    await refused(stage, "there is no certificate")


async def test_clean_refuses_an_altered_certificate_and_that_of_another_log() -> None:
    stage, other = await proved(Stage()), await proved(Stage())
    key = "reports/run/certificate.json"
    whole = stage.store.objects[key]
    stage.store.objects[key] = whole.replace(b'"compared": 1', b'"compared": 2')
    assert stage.store.objects[key] != whole
    await refused(stage, "altered")
    await other.capture(insert(ORDERS, {"_id": "more"}))
    await other.prove()
    stage.store.objects[key] = other.store.objects[key]
    await refused(stage, "another log")


async def compared(stage: Stage, *, scope: str, is_equal: bool) -> str:
    """Store the report of a comparison that is made now; return its key."""
    report = VerifyReport(scope=scope, run_id="run", compared=3, different=0 if is_equal else 2)
    return await store_report(stage.store, report, at=stage.clock.now().isoformat(timespec="seconds"))


@pytest.mark.parametrize("scope", ["touched", "full"])
async def test_clean_refuses_while_the_last_comparison_is_red_and_names_its_report(scope: str) -> None:
    stage = await proved(Stage())
    await stage.clock.sleep(60)
    key = await compared(stage, scope=scope, is_equal=False)
    error = await refused(stage, "a comparison after the certificate has found differences")
    assert key in error.hint
    assert error.facts == {"different": 2}
    await stage.clock.sleep(60)
    await compared(stage, scope=scope, is_equal=True)
    await run_clean(stage)
    assert log_of(stage) == []


@pytest.mark.parametrize("is_later", [True, False])
async def test_clean_goes_on_with_differences_that_an_operator_has_accepted(*, is_later: bool) -> None:
    stage = await proved(Stage())
    await stage.clock.sleep(60)
    await compared(stage, scope="full", is_equal=False)
    accepted_at = stage.clock.now().isoformat(timespec="seconds")
    stage.coordinator.state = replace(stage.coordinator.state, differences_accepted_at=accepted_at)
    if is_later:
        await stage.clock.sleep(60)
        await compared(stage, scope="touched", is_equal=False)
        error = await refused(stage, "a comparison after the certificate has found differences")
        assert "d5agent start clean --accept-differences run" in error.hint
        return
    await run_clean(stage)
    assert log_of(stage) == []


async def test_a_comparison_before_the_certificate_does_not_keep_clean_from_its_work() -> None:
    stage = Stage()
    await compared(stage, scope="full", is_equal=False)
    await stage.clock.sleep(60)
    for number in range(3):
        await stage.capture(insert(ORDERS, {"_id": number}))
    await stage.prove()
    proof = stage.coordinator.state.verified
    assert proof is not None
    now = stage.clock.now().isoformat(timespec="seconds")
    stage.coordinator.state = replace(stage.coordinator.state, verified=replace(proof, at=now))
    await run_clean(stage)
    assert log_of(stage) == []


async def test_a_report_that_cannot_be_read_keeps_the_log() -> None:
    stage = await proved(Stage())
    stage.store.objects["reports/run/verify-full-2026-11-02T090000+0000.json"] = b"garbage"
    await refused(stage, "the report of a comparison is damaged")


async def test_a_forced_clean_asks_for_no_proof_says_so_and_ends_the_run_without_a_power_off() -> None:
    stage = await proved(Stage())
    del stage.store.objects["reports/run/certificate.json"]
    state = replace(stage.coordinator.state, verified=None, services={})
    stage.coordinator.state = forced(state, "run", owners=LogOwners(), now=SINCE)
    await clean(stage).run(stage.coordinator)
    assert log_of(stage) == []
    assert stage.states.texts == {}
    assert stage.coordinator.journal.facts_of("clean_is_forced") == [{"at": SINCE, "proof": "not asked for"}]
    assert final_report(stage)["forced_at"] == SINCE
    assert final_report(stage)["power_off"] is None
    assert stage.coordinator.state.phase is Phase.IDLE
    assert stage.coordinator.state.status(Service.CLEAN) is Status.DONE
    assert to_resume(stage.coordinator.state) == ()


async def test_clean_gives_a_target_back_that_is_still_held() -> None:
    stage = await proved(Stage())
    await stage.hold().take("run", FakeJournal())
    await run_clean(stage)
    assert not stage.target.database.is_blocked
    assert stage.states.texts == {}


async def test_clean_removes_nothing_while_the_target_cannot_be_given_back() -> None:
    stage = await proved(Stage())
    await stage.hold().take("run", FakeJournal())
    stage.guard.error = TransientError("the target is not reached", hint="start it")
    with pytest.raises(TransientError, match="not reached"):
        await clean(stage).run(stage.coordinator)
    assert log_of(stage)


async def test_a_forced_clean_goes_on_without_a_target_that_is_lost() -> None:
    stage = await proved(Stage())
    await stage.hold().take("run", FakeJournal())
    stage.guard.error = TransientError("the target is not reached", hint="start it")
    state = replace(stage.coordinator.state, services={})
    stage.coordinator.state = forced(state, "run", owners=LogOwners(), now=SINCE)
    await clean(stage).run(stage.coordinator)
    assert log_of(stage) == []
    assert set(stage.states.texts) == {HOLD}  # the daemon goes on trying
    (warning,) = stage.coordinator.journal.facts_of("target_not_given_back")
    assert "the daemon goes on trying" in str(warning["hint"])


async def test_a_forced_clean_takes_a_log_that_cannot_be_read() -> None:
    stage = await proved(Stage())
    commits = sorted(key for key in log_of(stage) if key.startswith("replication/.log/"))
    stage.store.objects[commits[-1]] = b"garbage"
    stage.coordinator.state = forced(
        replace(stage.coordinator.state, services={}), "run", owners=LogOwners(), now=SINCE
    )
    await clean(stage).run(stage.coordinator)
    assert log_of(stage) == []
    assert final_report(stage)["log"] is None
    assert final_report(stage)["last_sequence"] == len(commits) - 1, "the next run goes on from there"


async def test_a_forced_clean_leaves_the_log_of_another_run() -> None:
    stage = await proved(Stage())
    before = dict(stage.store.objects)
    state = replace(stage.coordinator.state, run_id="another", services={}, is_clearing=True, forced_at=SINCE)
    stage.coordinator.state = state
    with pytest.raises(OperatorError, match="the log of another run") as refused:
        await clean(stage).run(stage.coordinator)
    assert refused.value.facts == {"run_id": "another", "found": "run"}
    assert stage.store.objects == before
    assert not stage.coordinator.state.is_clearing, "replication may be started"
    assert not stage.coordinator.state.forced_at


async def test_an_earned_clean_leaves_a_log_that_is_not_its_runs_alone() -> None:
    stage = await proved(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, run_id="another")
    await refused(stage, "the log of another run")


async def test_a_forced_clean_leaves_a_log_whose_run_nobody_can_read() -> None:
    stage = await proved(Stage())
    for key in log_of(stage):
        if key.startswith("replication/.log/"):
            stage.store.objects[key] = b"garbage"
    before = dict(stage.store.objects)
    stage.coordinator.state = replace(stage.coordinator.state, services={}, is_clearing=True, forced_at=SINCE)
    with pytest.raises(OperatorError, match="no commit of the log can be read"):
        await clean(stage).run(stage.coordinator)
    assert stage.store.objects == before


async def test_a_deletion_that_had_begun_goes_on_when_no_commit_is_left() -> None:
    stage = await proved(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, is_clearing=True)
    await stage.states.save("clearing", Clearing(run_id="run", began_at=SINCE, is_deleting=True).to_json())
    for key in log_of(stage):
        if key.startswith("replication/.log/"):
            stage.store.objects[key] = b"garbage"
    await clean(stage).run(stage.coordinator)
    assert log_of(stage) == []


async def test_a_stream_that_the_agent_did_not_switch_on_stays_on_and_that_is_told() -> None:
    stage = await proved(Stage())
    await run_clean(stage)
    assert stage.source.is_enabled
    assert stage.coordinator.journal.facts_of("change_stream_left_on")
    assert final_report(stage)["removed"]["change_stream"] == "left on: the agent did not switch it on"


async def test_uploads_of_a_backup_at_work_are_left_alone() -> None:
    stage = await proved(Stage())
    stage.store.half_way = ["dump/run/source/shop.archive.gz"]
    stage.coordinator.set_status(Service.BACKUP, Status.RUNNING)
    await run_clean(stage)
    assert stage.store.half_way == ["dump/run/source/shop.archive.gz"]


async def test_the_final_report_says_what_was_removed_and_what_is_kept() -> None:
    stage = await proved(Stage())
    last = (await stage.commits())[-1]
    stage.coordinator.state = replace(stage.coordinator.state, differences_accepted_at=SINCE)
    deleted = await run_clean(stage)
    report = final_report(stage)
    assert report["differences_accepted_at"] == SINCE
    assert report["removed"]["objects"] == deleted
    assert report["log"]["operations"] >= last.total.operations
    assert report["log"]["commits"] == report["last_sequence"] + 1 > last.sequence
    assert report["verified"]["certificate"] == "reports/run/certificate.json"
    assert report["kept"] == {
        "archive": None,
        "keep_log_days": None,
        "dump": "dump/run/",
        "reports": "reports/run/",
    }


async def test_the_log_is_archived_whole_with_its_days_as_a_tag_before_any_of_it_is_deleted() -> None:
    stage = await proved(Stage())
    archived_at_first_delete: list[int] = []
    original = stage.store.delete

    async def delete(keys: Sequence[str]) -> None:
        if any(key.startswith("replication/") and key in stage.store.objects for key in keys):
            archived_at_first_delete.append(sum(key.startswith("archive/") for key in stage.store.objects))
        await original(keys)

    stage.store.delete = delete  # type: ignore[method-assign]  # a look at the moment of the first delete
    deleted = await run_clean(stage, clean(stage, keep_log_days=30))
    archive = sorted(key for key in stage.store.objects if key.startswith("archive/"))
    assert archived_at_first_delete[0] == deleted == len(archive)
    assert all(stage.store.tags[key] == {"d5agent-keep-log-days": "30"} for key in archive)
    assert log_of(stage) == []
    assert final_report(stage)["kept"]["archive"] == "archive/run/"
    assert final_report(stage)["kept"]["keep_log_days"] == 30
    moved = FakeObjectStore()
    moved.objects = {key.removeprefix("archive/run/"): stage.store.objects[key] for key in archive}
    assert (await LogReader(store=moved).check()).orphans == (), "it is a log of its own, and whole"


@pytest.mark.parametrize("fault", ["is missing", "is not what was stored"])
async def test_a_log_that_cannot_be_archived_whole_is_not_deleted(fault: str) -> None:
    stage = await proved(Stage())
    segment = next(key for key in log_of(stage) if key.startswith("replication/shop/"))
    if fault == "is missing":
        del stage.store.objects[segment]
    else:
        stage.store.objects[segment] += b"x"
    stage.coordinator.state = replace(stage.coordinator.state, is_clearing=True)
    before = log_of(stage)
    with pytest.raises(CorruptDataError, match=fault) as error:
        await clean(stage, keep_log_days=30).run(stage.coordinator)
    assert log_of(stage) == before
    assert "keep_log_days" in error.value.hint
    await clean(stage).run(stage.coordinator)  # what the hint says
    assert log_of(stage) == []
    assert final_report(stage)["kept"]["archive"] is None


async def test_an_archive_goes_on_where_it_was_cut_off_and_a_deletion_that_began_is_not_archived() -> None:
    stage = await proved(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, is_clearing=True)
    last = (await stage.commits())[-1].sequence
    clearing = Clearing(run_id="run", began_at=SINCE, archive="archive/run/", archived=last - 1)
    await stage.states.save("clearing", clearing.to_json())
    copied: list[str] = []
    original = stage.store.copy

    async def copy(key: str, to: str, *, tags: Mapping[str, str]) -> str | None:
        copied.append(key)
        return await original(key, to, tags=tags)

    stage.store.copy = copy  # type: ignore[method-assign]  # counts
    await clean(stage, keep_log_days=30).run(stage.coordinator)
    assert f"replication/.log/{last:012d}.json" in copied
    assert f"replication/.log/{0:012d}.json" not in copied
    copied.clear()
    stage = await proved(Stage())
    stage.coordinator.state = replace(stage.coordinator.state, is_clearing=True)
    await stage.states.save("clearing", replace(clearing, is_deleting=True, deleted=5).to_json())
    left = len(log_of(stage))
    await clean(stage, keep_log_days=30).run(stage.coordinator)
    assert final_report(stage)["removed"]["objects"] == left + 5
    assert not copied


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
    await MonitorRestore(late=stage.reporter()).run(stage.coordinator)
    assert stage.coordinator.reasons == [
        "restore, which is failed: type d5agent start restore",
        "restore to be verified",
        "",
    ]
    assert stage.coordinator.started == [Service.CLEAN, Service.MONITOR_CLEAN]


async def test_monitor_restore_goes_on_with_a_clean_that_has_removed_part_of_the_log() -> None:
    stage = await proved(Stage())
    assert stage.coordinator.state.verified is not None
    stage.store.objects.pop(commit_key(stage.coordinator.state.verified.sequence))
    stage.coordinator.state = replace(stage.coordinator.state, is_clearing=True)
    await MonitorRestore(late=stage.reporter()).run(stage.coordinator)
    assert stage.coordinator.started == [Service.CLEAN, Service.MONITOR_CLEAN]


async def test_monitor_restore_says_that_restore_has_not_been_started() -> None:
    stage = await proved(Stage())
    services = dict(stage.coordinator.state.services)
    del services[Service.RESTORE]
    proof = stage.coordinator.state.verified
    stage.coordinator.state = replace(stage.coordinator.state, services=services, verified=None)

    def restored(_: str) -> None:
        stage.coordinator.set_status(Service.RESTORE, Status.DONE)
        stage.coordinator.state = replace(stage.coordinator.state, verified=proof)

    stage.coordinator.on_wait = restored
    await MonitorRestore(late=stage.reporter()).run(stage.coordinator)
    assert stage.coordinator.reasons == ["restore, which is not started: type d5agent start restore", ""]


async def test_late_operations_start_neither_restore_nor_clean() -> None:
    stage = await proved(Stage())
    await stage.capture(insert(ORDERS, {"_id": "late"}))
    with pytest.raises(OperatorError, match="1 operations reached the source after the certificate") as stopped:
        await MonitorRestore(late=stage.reporter()).run(stage.coordinator)
    assert stopped.value.facts == {
        "operations": "insert shop.orders late",
        "documents": "shop.orders late: as certified",
    }
    assert "d5agent start monitor-restore --accept-late run" in stopped.value.hint
    assert "d5agent start monitor-restore --discard-late run" in stopped.value.hint
    assert stage.coordinator.started == []
    assert stage.target.database.contents() == {}


async def test_a_restore_that_fails_after_the_proof_fails_its_monitor() -> None:
    stage = await proved(Stage())
    stage.coordinator.set_status(Service.RESTORE, Status.FAILED)

    def fail(reason: str) -> None:
        assert reason == "restore to carry out the word on late operations"
        row = ServiceState(status=Status.FAILED, since=SINCE, error="it broke", hint="do this")
        stage.coordinator.state = stage.coordinator.state.with_service(Service.RESTORE, row)

    stage.coordinator.on_wait = fail
    with pytest.raises(OperatorError, match="restore is failed: it broke") as failed:
        await MonitorRestore(late=stage.reporter()).run(stage.coordinator)
    assert failed.value.hint == "do this"
    assert stage.coordinator.started == [Service.RESTORE]


async def test_a_restore_that_is_stopped_after_the_proof_is_run_again() -> None:
    stage = await proved(Stage())
    stage.coordinator.set_status(Service.RESTORE, Status.STOPPED)
    stage.coordinator.on_wait = lambda _: stage.coordinator.set_status(Service.RESTORE, Status.DONE)
    await MonitorRestore(late=stage.reporter()).run(stage.coordinator)
    assert stage.coordinator.started == [Service.RESTORE, Service.CLEAN, Service.MONITOR_CLEAN]


async def test_clean_refuses_what_an_accepted_report_left_different() -> None:
    stage = await proved(Stage())
    shown = LateShown(sequence=99, operations=1, documents=1, unknown=0, report="reports/run/late/r", digest="")
    word = LateWord(is_accepted=True, shown=shown, at=SINCE, ended_at=SINCE, different=2, result="reports/run/late/x")
    stage.coordinator.state = replace(stage.coordinator.state, late=Late(words=(word,)))
    error = await refused(stage, "2 documents of the accepted late operations are not what was accepted")
    assert "d5agent start clean --accept-differences run" in error.hint
    stage.coordinator.state = replace(stage.coordinator.state, differences_accepted_at=SINCE)
    await run_clean(stage)
    assert final_report(stage)["late"][0]["different"] == 2


async def test_clean_waits_for_an_accepted_word_to_be_carried_out() -> None:
    stage = await proved(Stage())
    shown = LateShown(sequence=99, operations=1, documents=1, unknown=0, report="reports/run/late/r", digest="")
    late = Late(words=(LateWord(is_accepted=True, shown=shown, at=SINCE),))
    stage.coordinator.state = replace(stage.coordinator.state, late=late)
    error = await refused(stage, "accepted late operations are not written yet")
    assert error.hint == "type: d5agent start monitor-restore, which has them written"


async def ended(stage: Stage) -> Stage:
    """A stage whose clean and backup are done."""
    await run_clean(stage)
    for service in (Service.CLEAN, Service.BACKUP):
        stage.coordinator.set_status(service, Status.DONE)
    return stage


async def test_monitor_clean_waits_for_clean_and_backup_and_powers_off_once_idle() -> None:
    stage = await proved(Stage())
    await run_clean(stage)
    power = FakePowerSwitch()
    stage.coordinator.reasons.clear()
    stage.coordinator.set_status(Service.CLEAN, Status.RUNNING)

    def go_on(reason: str) -> None:
        if reason.startswith("to be done"):
            assert power.requests == 0
            stage.coordinator.set_status(Service.BACKUP if "clean" not in reason else Service.CLEAN, Status.DONE)

    stage.coordinator.on_wait = go_on
    with pytest.raises(OperatorError, match="still up"):
        await monitor_clean(stage, power).run(stage.coordinator)
    assert stage.coordinator.reasons == [
        "to be done: clean (running), backup (not started: type d5agent start backup)",
        "to be done: backup (not started: type d5agent start backup)",
        "the machine to go down",
    ]
    assert power.requests == 1
    assert stage.coordinator.state.phase is Phase.IDLE
    report = final_report(stage)
    assert report["power_off"]["requested_at"]
    assert report["services"]["clean"]["state"] == "done"
    assert report["removed"]["objects"] > 0
    events = [entry.event for entry in stage.coordinator.journal.entries][-4:]
    assert events == ["power_off_waits", "power_off_waits", "final_report_stored", "power_off_requested"]


@pytest.mark.parametrize("status", [Status.FAILED, Status.RUNNING, Status.WAITING])
async def test_nothing_is_powered_off_while_any_service_runs_or_has_failed(status: Status) -> None:
    stage = await ended(await proved(Stage()))
    stage.coordinator.set_status(Service.VERIFY, status)
    power = FakePowerSwitch()

    def end(_: str) -> None:
        assert power.requests == 0
        stage.coordinator.set_status(Service.VERIFY, Status.DONE)

    stage.coordinator.on_wait = lambda reason: end(reason) if "verify" in reason else None
    stage.coordinator.reasons.clear()
    with pytest.raises(OperatorError, match="still up"):
        await monitor_clean(stage, power).run(stage.coordinator)
    assert f"verify ({status}" in stage.coordinator.reasons[0]


async def test_a_machine_that_is_still_up_is_told_and_may_be_asked_again() -> None:
    stage, power = await ended(await proved(Stage())), FakePowerSwitch()
    for requests in (1, 2):
        with pytest.raises(OperatorError, match="the machine is still up") as failed:
            await monitor_clean(stage, power).run(stage.coordinator)
        assert failed.value.facts == {"after_seconds": 30}
        assert "d5agent start monitor-clean" in failed.value.hint
        assert power.requests == requests


async def test_a_daemon_that_died_over_the_power_off_asks_again_in_the_same_boot_but_never_in_the_next() -> None:
    stage, power = await ended(await proved(Stage())), FakePowerSwitch()
    stage.coordinator.state = ask_power_off(stage.coordinator.state, boot_id=power.boot, now=SINCE)
    assert to_resume(stage.coordinator.state) == (Service.MONITOR_CLEAN,)
    with pytest.raises(OperatorError, match="still up"):
        await monitor_clean(stage, power).run(stage.coordinator)
    assert power.requests == 1
    power.boot = "second boot"
    await monitor_clean(stage, power).run(stage.coordinator)
    assert power.requests == 1
    assert stage.coordinator.journal.facts_of("power_off_happened")


async def test_a_power_off_that_fails_is_reported() -> None:
    stage = await ended(await proved(Stage()))
    power = FakePowerSwitch(error=OperatorError("systemctl ended with 1", hint="power the instance off by hand"))
    with pytest.raises(OperatorError, match="systemctl ended with 1"):
        await monitor_clean(stage, power).run(stage.coordinator)
    assert power.requests == 1
