"""What the log does not touch is compared too: what is lost there becomes a named difference, and nobody waits."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
from typing_extensions import override

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.compare.outside import Differences, OutsideReport, decode_outside, outside_key
from d5agent.core.log.operation import Namespace
from d5agent.core.replay.ttl import NEVER, TtlIndex
from d5agent.core.run.services import Phase, Service, Status
from d5agent.errors import CorruptDataError, LogHeldError, OperatorError, TransientError
from d5agent.steps.compare.generations import COMPARED
from d5agent.steps.compare.paced_reader import PacedReader
from d5agent.steps.replay.checkpoint import CHECKPOINT, Checkpoint
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import delete, drop, insert, rename, update
from tests.fakes.coordinator import SINCE
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.servers import FakeServer
from tests.fakes.stage import ORDERS, Stage, until
from tests.fakes.store import DownStore
from tests.fakes.target import FakeReader
from tests.unit.test_plugin_monitors import clean, run_clean

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from d5agent.core.log.raw import DocumentId
    from d5agent.errors import AgentError
    from d5agent.steps.compare.outside import Outside

OTHERS: Final = Namespace("shop", "others")
ITEMS: Final = Namespace("shop", "items")
LONG_AGO: Final = datetime(2026, 1, 1, tzinfo=UTC)
LATER: Final = "2026-11-02T09:00:00.000+00:00"


def have(stage: Stage, *sides: str, namespace: Namespace = ORDERS, **fields: object) -> None:
    """Let a document be there before anything happens."""
    for side in sides:
        database = stage.cluster.database if side == "source" else stage.target.database
        database.put(namespace, raw_id(fields["_id"]), raw_document(fields))


def diverged() -> Stage:
    """A stage with one document of each difference, and one that is equal, before the outage."""
    stage = Stage()
    have(stage, "source", "target", _id="equal")
    have(stage, "source", _id="lost")
    have(stage, "source", _id="old", n=1)
    have(stage, "target", _id="old", n=2)
    have(stage, "target", _id="undelivered")
    return stage


async def drained(stage: Stage, *ops: Any) -> Stage:  # noqa: ANN401 -- operations
    await stage.capture(*ops)
    await stage.draw_fence()
    return stage


async def restored(stage: Stage, outside: Outside | None = None) -> dict[str, Any]:
    """Restore; return what the certificate says of what the log does not touch."""
    await stage.restore(outside=outside or stage.outside()).run(stage.coordinator)
    certificate: dict[str, Any] = json.loads(stage.store.objects["reports/run/certificate.json"])
    found: dict[str, Any] = certificate["outside"]
    return found


def stored(stage: Stage) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(stage.store.objects[outside_key("run")])
    return value


def named(found: Mapping[str, Any], name: str = "first") -> set[tuple[str, str]]:
    return {(row["id"], row["kind"]) for row in found[name]}


def is_complete(stage: Stage) -> bool:
    """Whether restore or clean, whichever has compared last, says that all is compared."""
    found = stage.coordinator.progress.clean.outside or stage.coordinator.progress.restore.outside
    return found is not None and found.is_complete


DIVERGED: Final = {("lost", "missing"), ("old", "different"), ("undelivered", "extra")}


async def test_untouched_differences_are_named_in_the_certificate() -> None:
    stage = await drained(diverged(), update(ORDERS, {"_id": "equal", "n": 1}), insert(ORDERS, {"_id": "new"}))
    before = stage.target.database.find(ORDERS, raw_id("old"))
    found = await restored(stage)
    assert (found["state"], found["missing"], found["different"], found["extra"]) == ("complete", 1, 1, 1)
    assert named(found) == DIVERGED
    assert named(stored(stage), "differences") == DIVERGED
    assert stage.target.database.find(ORDERS, raw_id("old")) == before  # it never repairs
    assert stage.target.database.find(ORDERS, raw_id("lost")) is None
    page = stage.store.objects["reports/run/certificate.html"].decode()
    assert "2 documents that the log does not touch are missing or different in the target" in page
    assert "undelivered" in page
    assert is_complete(stage)


async def test_equal_databases_give_a_complete_comparison_without_differences() -> None:
    stage = Stage()
    have(stage, "source", "target", _id="equal")
    found = await restored(await drained(stage, insert(ORDERS, {"_id": "new"})))
    assert (found["state"], found["first"], found["collections_compared"]) == ("complete", [], 1)
    page = stage.store.objects["reports/run/certificate.html"].decode()
    assert "Each document that the log does not touch was compared as well." in page


async def test_equal_databases_need_no_look_into_the_log() -> None:
    stage = Stage()
    have(stage, "source", "target", _id="equal")
    await drained(stage, insert(ORDERS, {"_id": "new"}))
    await stage.restore(outside=None).run(stage.coordinator)
    read: list[str] = []
    get = stage.store.get

    async def counted(key: str) -> bytes | None:
        read.append(key)
        return await get(key)

    stage.store.get = counted  # type: ignore[method-assign]
    report = await stage.outside().finish(stage.coordinator)
    assert (report.is_complete(sequence=1_000), report.compared) == (True, 2)
    assert read == [outside_key("run")]


async def test_documents_that_the_log_touches_are_no_outside_differences() -> None:
    stage = Stage()
    for number in range(6):
        have(stage, "source", "target", _id=number)
    have(stage, "source", "target", namespace=OTHERS, _id=1)
    have(stage, "source", "target", namespace=ITEMS, _id=1)
    await drained(
        stage,
        *[update(ORDERS, {"_id": number, "n": 1}) for number in range(3)],
        delete(ORDERS, 5),
        drop(OTHERS),
        rename(ITEMS, Namespace("shop", "moved")),
    )
    found = await restored(stage)
    assert (found["state"], found["first"], found["unchecked"]) == ("complete", [], 0)


class SlowReader(FakeReader):
    """Takes an hour for each page."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.cluster)
        self.stage = stage

    @override
    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        async for page in super().scan(namespace):
            await self.stage.clock.sleep(3600)
            yield page


async def test_a_restore_never_waits_for_the_outside_comparison() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    began = stage.clock.monotonic()
    found = await restored(stage, stage.outside(source=SlowReader(stage)))
    assert stage.clock.monotonic() - began < 60
    assert (found["state"], found["collections_compared"], found["first"]) == ("unfinished", 0, [])
    assert "it does not cover them" in stage.store.objects["reports/run/certificate.html"].decode()
    stage.coordinator = stage.new_coordinator()
    report = await stage.outside().finish(stage.coordinator)
    assert {d.kind for d in report.differences} == set(DifferenceKind)


class FailingReader(FakeReader):
    """Fails a few times before it scans."""

    def __init__(self, stage: Stage, error: AgentError, times: int) -> None:
        super().__init__(stage.cluster)
        self.error, self.times = error, times

    @override
    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        async for page in super().scan(namespace):
            yield page


async def test_an_interrupted_comparison_fails_no_restore() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    error = OperatorError("the source refuses", hint="grant it")
    found = await restored(stage, stage.outside(source=FailingReader(stage, error, 1)))
    assert found["state"] == "unfinished"
    assert interruptions(stage) == [{"error": "the source refuses", "hint": "grant it"}]
    with pytest.raises(OperatorError, match="the source refuses"):
        await stage.outside(source=FailingReader(stage, error, 1)).finish(stage.coordinator)


def interruptions(stage: Stage) -> list[Mapping[str, object]]:
    return stage.coordinator.journal.facts_of("outside_comparison_interrupted")


async def test_a_comparison_that_was_cut_off_begins_its_collection_again() -> None:
    stage = diverged()
    await drained(stage, insert(ORDERS, {"_id": "new"}))
    error = TransientError("the source does not answer")
    outside = stage.outside(source=FailingReader(stage, error, 2))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(outside.keep_comparing(stage.coordinator, is_held=lambda: False))
        await until(stage.clock, lambda: interruptions(stage))
        outside.note_replayed()
        await until(stage.clock, lambda: is_complete(stage))
        task.cancel()
    assert len(interruptions(stage)) == 2
    assert named(outside.summary(sequence=0)) == DIVERGED


class CountingReader(FakeReader):
    """Notes which collections are scanned."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.cluster)
        self.scanned: list[Namespace] = []

    @override
    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        self.scanned.append(namespace)
        async for page in super().scan(namespace):
            yield page


async def test_a_restart_goes_on_with_the_next_collection() -> None:
    stage = diverged()
    have(stage, "source", "target", namespace=OTHERS, _id=1)
    await drained(stage, insert(ITEMS, {"_id": 1}))
    first = OutsideReport(run_id="run", began_at=LATER, collections={"shop.orders": 3}, total=2)
    missing = Difference(namespace=ORDERS, id=raw_id("lost"), kind=DifferenceKind.MISSING)
    settled = Difference(namespace=ORDERS, id=raw_id("equal"), kind=DifferenceKind.MISSING)
    first.suspects.add([missing, settled])
    stage.store.objects[outside_key("run")] = first.encode()
    await stage.states.save(CHECKPOINT, Checkpoint(run_id="run", target=stage.target_server.told).to_json())
    reader = CountingReader(stage)
    found = await restored(stage, stage.outside(source=reader))
    assert reader.scanned == [ITEMS, OTHERS]
    assert (found["state"], found["began_at"], named(found)) == ("complete", LATER, {("lost", "missing")})


@pytest.mark.parametrize("is_known", [True, False], ids=["another target", "begun again"])
async def test_what_was_compared_with_another_target_is_compared_again(*, is_known: bool) -> None:
    stage = diverged()
    await drained(stage, insert(ITEMS, {"_id": 1}))
    first = OutsideReport(run_id="run", began_at=LATER, ended_at=LATER, collections={"shop.orders": 3}, total=1)
    stage.store.objects[outside_key("run")] = first.encode()
    await stage.states.save(COMPARED, {"version": 0, "run_id": "run"})
    if is_known:
        other = replace(stage.target_server.told, hosts=("other:27017",), cluster_id="6b0b")
        await stage.states.save(CHECKPOINT, Checkpoint(run_id="run", target=other).to_json())
    reader = CountingReader(stage)
    found = await restored(stage, stage.outside(source=reader))
    assert ORDERS in reader.scanned
    assert found["began_at"] != LATER
    assert COMPARED not in stage.states.texts


async def test_a_restore_without_the_comparison_forgets_an_earlier_ones() -> None:
    stage = diverged()
    await drained(stage, insert(ITEMS, {"_id": 1}))
    first = OutsideReport(run_id="run", began_at=LATER, ended_at=LATER, collections={"shop.orders": 3}, total=1)
    stage.store.objects[outside_key("run")] = first.encode()
    await stage.restore(outside=None).run(stage.coordinator)  # with --again, the target put back, and `outside = "off"`
    assert outside_key("run") not in stage.store.objects


def beside(stage: Stage) -> Stage:
    """Return the same world with another target, which has all that the source has."""
    told = replace(stage.target_server.told, hosts=("other:27017",), cluster_id="6b0b")
    other = Stage(clock=stage.clock, states=stage.states, store=stage.store, target_server=FakeServer(told=told))
    other.cluster, other.source, other.coordinator = stage.cluster, stage.source, stage.coordinator
    for namespace, documents in stage.cluster.database.contents().items():
        for id_, document in documents.items():
            other.target.database.put(namespace, id_, document)
    return other


async def test_what_was_compared_with_a_target_that_was_refused_is_compared_again() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    await stage.hold().take("run", stage.coordinator.journal)  # restore was killed
    await stage.states.save(CHECKPOINT, Checkpoint(run_id="run", target=stage.target_server.told).to_json())
    with pytest.raises(OperatorError, match="another target is still closed"):
        await restored(beside(stage))
    assert stored(stage)["collections"]
    found = await restored(stage)
    assert (found["state"], named(found)) == ("complete", DIVERGED)


async def test_clean_compares_with_no_other_target() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    await restored(stage)
    with pytest.raises(OperatorError, match="another target") as refused:
        await cleaned(stage, beside(stage).outside())
    assert "correct [target] uri" in refused.value.hint
    assert refused.value.facts == {"before": ("target:27017",), "now": ("other:27017",)}
    assert [key for key in stage.store.objects if key.startswith("replication/")]


async def test_a_comparison_of_an_earlier_version_goes_on_with_the_present_target() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    await restored(stage)
    value = stored(stage)
    del value["target"]
    stage.store.objects[outside_key("run")] = json.dumps(value).encode()
    reader = CountingReader(stage)
    await stage.outside(source=reader).finish(stage.coordinator)
    assert reader.scanned == []
    assert stored(stage)["target"] == stage.target_server.told.to_json()


async def test_a_collection_with_many_unreplayed_documents_is_compared_after_the_replay() -> None:
    stage = Stage()
    have(stage, "source", _id="lost")
    await drained(stage, *[insert(ORDERS, {"_id": number}) for number in range(50)])
    reader = CountingReader(stage)
    outside = stage.outside(source=reader, most_bytes=2_000)
    await restored(stage, outside)
    report = await outside.finish(stage.coordinator)
    assert reader.scanned == [ORDERS, ORDERS]
    assert (report.is_cut, [d.id for d in report.differences]) == (False, [raw_id("lost")])


async def test_more_differences_than_are_held_are_said_to_be_more() -> None:
    stage = Stage()
    for number in range(50):
        have(stage, "source", _id=number)
    have(stage, "source", namespace=OTHERS, _id="other")
    outside = stage.outside(most_bytes=2_000)
    await restored(await drained(stage, insert(ITEMS, {"_id": 1})), outside)
    report = await outside.finish(stage.coordinator)
    found = report.summary(sequence=report.sequence)
    assert (found["state"], found["is_cut"], report.needs_word) == ("complete", True, True)
    assert 0 < found["missing"] < 50
    assert ("other", "missing") in named(found)  # one collection hides no other's differences
    assert decode_outside(stage.store.objects[outside_key("run")], run_id="run").is_cut


async def test_collections_of_the_target_only_are_counted_and_not_read() -> None:
    stage = Stage()
    have(stage, "target", namespace=OTHERS, _id=1)
    have(stage, "target", namespace=OTHERS, _id=2)
    found = await restored(await drained(stage, insert(ORDERS, {"_id": 1})))
    assert (found["state"], found["extra"], found["extra_collections"]) == ("complete", 0, 1)
    assert stored(stage)["extra_collections"] == {"shop.others": 2}
    report = decode_outside(stage.store.objects[outside_key("run")], run_id="run")
    assert not report.needs_word


async def test_a_document_touched_after_it_was_named_is_forgotten() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    outside = stage.outside()
    report = await outside.finish(stage.coordinator)
    assert {d.id for d in report.differences} >= {raw_id("lost"), raw_id("old")}
    await stage.capture(update(ORDERS, {"_id": "old", "n": 3}), delete(ORDERS, "lost"))
    last = (await stage.commits())[-1]
    assert not report.is_complete(sequence=last.sequence)
    report = await outside.finish(stage.coordinator)
    assert {d.id for d in report.differences} == {raw_id("undelivered")}
    assert report.is_complete(sequence=last.sequence)
    assert named(stored(stage), "differences") == {("undelivered", "extra")}


async def test_an_empty_log_leaves_all_that_differs_named() -> None:
    stage = diverged()
    report = await stage.outside().finish(stage.coordinator)
    assert report.counts() == {"missing": 1, "extra": 1, "different": 1}
    assert report.is_complete(sequence=-1)


async def test_nothing_is_read_while_a_cutover_is_under_way_or_restore_is_paused() -> None:
    stage = diverged()
    stage.store.objects["dump/run/target/manifest.json"] = b"{}"
    coordinator, reader = stage.coordinator, CountingReader(stage)
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: coordinator.state.ready_at)
        coordinator.state = replace(coordinator.state, phase=Phase.RESTORE, is_paused=True)
        coordinator.set_status(Service.RESTORE, Status.RUNNING)
        async with stage.running(stage.restore(is_live=True, outside=stage.outside(source=reader))) as restore:
            await stage.clock.sleep(60)
            assert reader.scanned == []
            coordinator.set_status(Service.MONITOR_REPLICATION, Status.RUNNING)
            coordinator.state = replace(coordinator.state, is_paused=False)
            await until(stage.clock, lambda: coordinator.progress.restore.can_cutover)
            await stage.cutover().run(coordinator)
            await restore
            coordinator.stopping.clear()
    assert reader.scanned == []
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    assert certificate["outside"]["state"] == "unfinished"


async def test_a_live_restore_compares_before_its_cutover() -> None:
    stage = diverged()
    stage.store.objects["dump/run/target/manifest.json"] = b"{}"
    coordinator = stage.coordinator
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: coordinator.state.ready_at)
        coordinator.state = replace(coordinator.state, phase=Phase.RESTORE)
        coordinator.set_status(Service.RESTORE, Status.RUNNING)
        async with stage.running(stage.restore(is_live=True)) as restore:
            await until(stage.clock, lambda: is_complete(stage))
            stage.cluster.apply(update(ORDERS, {"_id": "old", "n": 7}))  # named until now, and touched by the log
            stage.cluster.apply(insert(ORDERS, {"_id": "last"}))
            await stage.wait_until_captured()
            await until(stage.clock, lambda: coordinator.progress.restore.can_cutover)
            await stage.cutover().run(coordinator)
            await restore
            coordinator.stopping.clear()
    found = json.loads(stage.store.objects["reports/run/certificate.json"])["outside"]
    assert (found["state"], named(found)) == ("complete", {("lost", "missing"), ("undelivered", "extra")})


async def test_without_the_comparison_the_certificate_says_that_it_is_off() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    await stage.restore(outside=None).run(stage.coordinator)
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    assert certificate["outside"] == {"state": "off"}
    assert "[verify] outside is off" in stage.store.objects["reports/run/certificate.html"].decode()


def test_a_report_comes_back_from_its_bytes_whatever_the_names_are() -> None:
    odd = Namespace("shop", "caf\udce9..")
    report = OutsideReport(run_id="run", began_at=LATER, collections={str(odd): 7}, total=9)
    report.suspects.add([Difference(namespace=odd, id=raw_id({"a": 1}), kind=DifferenceKind.DIFFERENT, fields=("n",))])
    found = decode_outside(report.encode(), run_id="run")
    assert (found.collections, found.total, list(found.suspects)) == ({str(odd): 7}, 9, list(report.suspects))


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"version": 1}', b'{"version": 1, "collections": []}'])
def test_a_damaged_report_is_refused_with_what_to_do(body: bytes) -> None:
    with pytest.raises(CorruptDataError, match="is damaged") as damaged:
        decode_outside(body, run_id="run")
    assert damaged.value.facts["key"] == "reports/run/outside.json"
    assert "delete the object" in damaged.value.hint


def test_a_report_of_a_newer_version_is_refused() -> None:
    with pytest.raises(OperatorError, match="another version"):
        decode_outside(b'{"version": 2}', run_id="run")


def test_a_known_difference_keeps_the_time_at_which_it_was_found() -> None:
    lost = Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.MISSING)
    report = OutsideReport(run_id="run", began_at=LATER)
    report.suspects.add([lost])
    report.conclude(now="first", sequence=1)
    assert report.found_at == "first"
    again = decode_outside(report.encode(), run_id="run")
    again.conclude(now="second", sequence=2)
    assert (again.found_at, again.needs_word) == ("first", True)
    again.suspects.add([replace(lost, id=raw_id(2), kind=DifferenceKind.EXTRA)])
    again.conclude(now="third", sequence=3)
    assert again.found_at == "first"  # what only the target has needs no word
    again.suspects.add([replace(lost, id=raw_id(3))])
    again.conclude(now="fourth", sequence=4)
    assert again.found_at == "fourth"


def test_ids_that_are_one_to_a_server_are_one_difference() -> None:
    found = Differences()
    found.add([Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.MISSING)])
    found.add([Difference(namespace=ORDERS, id=raw_id(1.0), kind=DifferenceKind.EXTRA)])
    assert (len(found), found.bytes > 0) == (1, True)
    found.touch(ITEMS, raw_id(1))
    found.touch(ORDERS, raw_id(2))
    assert len(found) == 1
    found.touch(ORDERS, raw_id(1))
    assert (len(found), found.bytes, found.by_namespace()) == (0, 0, {})
    found.add([Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.MISSING)])
    found.move(OTHERS)
    assert len(found) == 1
    found.move(Namespace("shop"))
    assert (len(found), found.bytes) == (0, 0)


async def test_a_paced_reader_rests_and_reads_what_its_reader_reads() -> None:
    stage = diverged()
    clock = FakeClock()

    class Timed(FakeReader):
        @override
        async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
            async for page in super().scan(namespace):
                await clock.sleep(1)
                yield page

    reader = Timed(stage.cluster)
    paced = PacedReader(reader=reader, clock=clock, rest=3, is_held=lambda: clock.monotonic() < 10)
    ids: list[DocumentId] = [raw_id("equal")]
    assert await paced.collections() == await reader.collections()
    assert clock.monotonic() >= 10
    assert await paced.fetch(ORDERS, ids) == await reader.fetch(ORDERS, ids)
    assert await paced.count(ORDERS, exactly=True) == 3
    assert await paced.facts(ORDERS) == await reader.facts(ORDERS)
    began = clock.monotonic()
    assert [page async for page in paced.scan(ORDERS)] == [
        page async for page in FakeReader(stage.cluster).scan(ORDERS)
    ]
    assert clock.monotonic() - began == 4  # one page of a second, and three of rest


async def cleaned(stage: Stage, outside: Outside | None = None) -> dict[str, Any]:
    """Run clean, as after a restart; return what the final report says of what the log does not touch."""
    stage.coordinator.set_status(Service.RESTORE, Status.DONE)
    comparison = outside or stage.outside()
    await run_clean(stage, replace(clean(stage), open_clusters=lambda: stage.clusters(comparison)))
    report: dict[str, Any] = json.loads(stage.store.objects["reports/run/final.json"])
    found: dict[str, Any] = report["outside"]
    return found


async def test_clean_deletes_nothing_before_an_operator_has_accepted_what_is_lost() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    await restored(stage)
    log = [key for key in stage.store.objects if key.startswith("replication/")]
    with pytest.raises(OperatorError, match="missing or different in the target") as refused:
        await cleaned(stage)
    assert refused.value.facts["count"] == 2
    assert "d5agent start clean --accept-differences run" in refused.value.hint
    assert "reports/run/outside.json" in refused.value.hint
    assert set(log) <= set(stage.store.objects)
    assert not stage.coordinator.state.is_clearing
    assert stage.source.is_enabled
    stage.coordinator.state = replace(stage.coordinator.state, differences_accepted_at=LATER)
    found = await cleaned(stage)
    assert (found["missing"], found["different"], found["extra"], found["is_cut"]) == (1, 1, 1, False)
    assert not [key for key in stage.store.objects if key.startswith("replication/")]


async def test_differences_that_are_found_after_the_operators_word_need_another() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    stage.coordinator.state = replace(stage.coordinator.state, differences_accepted_at=SINCE)
    await restored(stage)
    with pytest.raises(OperatorError, match="missing or different in the target"):
        await cleaned(stage)


async def test_what_was_corrected_in_the_target_needs_no_word() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    assert len((await restored(stage))["first"]) == 3
    have(stage, "target", _id="lost")
    have(stage, "target", _id="old", n=1)
    found = await cleaned(stage)
    assert (found["missing"], found["different"], found["extra"]) == (0, 0, 1)


async def test_clean_finishes_what_restore_could_not() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    assert (await restored(stage, stage.outside(source=SlowReader(stage))))["state"] == "unfinished"
    with pytest.raises(OperatorError, match="missing or different in the target"):
        await cleaned(stage)
    assert is_complete(stage)


async def test_clean_names_more_than_it_counts_where_the_comparison_was_cut() -> None:
    stage = Stage()
    for number in range(50):
        have(stage, "source", _id=number)
    await restored(await drained(stage, insert(ITEMS, {"_id": 1})), stage.outside(most_bytes=2_000))
    with pytest.raises(OperatorError) as refused:
        await cleaned(stage, stage.outside(most_bytes=2_000))
    assert str(refused.value.facts["count"]).startswith("more than ")


async def test_what_applications_write_after_the_certificate_is_no_difference() -> None:
    stage = diverged()
    for number in range(8):
        have(stage, "source", "target", _id=number)
    have(stage, "source", "target", namespace=OTHERS, _id=1)
    await drained(stage, insert(ORDERS, {"_id": "new"}))
    assert (await restored(stage, stage.outside(source=SlowReader(stage))))["state"] == "unfinished"
    target = stage.target.database  # the applications have moved
    target.put(ORDERS, raw_id(1), raw_document({"_id": 1, "n": 5}))
    target.remove(ORDERS, raw_id(2))
    target.put(ORDERS, raw_id("app"), raw_document({"_id": "app"}))
    target.drop(OTHERS)
    with pytest.raises(OperatorError, match="missing or different") as refused:
        await cleaned(stage)
    assert refused.value.facts["count"] == 2
    assert named(stored(stage), "differences") == DIVERGED
    assert {(row["coll"], row["id"], row["kind"]) for row in stored(stage)["written_since"]} == {
        ("orders", "1", "different"),
        ("orders", "2", "missing"),
        ("orders", "app", "extra"),
        ("others", "1", "missing"),
    }
    stage.coordinator.state = replace(stage.coordinator.state, differences_accepted_at=LATER)
    target.remove(ORDERS, raw_id("old"))  # an application deletes what was reported: no other word is needed
    found = await cleaned(stage)
    assert (found["missing"], found["different"], found["written_since"]) == (2, 0, 4)


def with_ttl(stage: Stage, **changed: Any) -> None:  # noqa: ANN401 -- fields of the index
    """Let the target have a TTL index that the source lacks: DMS copies none."""
    index = TtlIndex(namespace=ORDERS, name="at_1", field="at", seconds=60)
    stage.target.database.ttl[ORDERS] = (replace(index, **changed),)


async def test_what_has_expired_in_the_target_needs_no_word() -> None:
    stage = Stage()
    have(stage, "source", _id="gone", at=LONG_AGO)
    with_ttl(stage)
    found = await restored(await drained(stage, insert(OTHERS, {"_id": "new"})))
    assert (found["state"], found["missing"]) == ("complete", 0)
    assert found["expired"] == 1
    page = stage.store.objects["reports/run/certificate.html"].decode()
    assert "1 more that the target lacks have expired by its own TTL indexes" in page
    assert [(row["id"], row["kind"]) for row in stored(stage)["expired"]] == [("gone", "missing")]
    assert (await cleaned(stage))["expired"] == 1


async def test_large_documents_that_have_expired_are_read_in_smaller_portions() -> None:
    stage = Stage()
    for number in range(3):
        have(stage, "source", _id=number, at=LONG_AGO, large="x" * 4_000_000)
    with_ttl(stage)
    await drained(stage, insert(OTHERS, {"_id": "new"}))
    report = await stage.outside().finish(stage.coordinator)
    assert (len(report.expired), report.needs_word) == (3, False)


async def test_what_has_not_expired_in_the_target_is_lost() -> None:
    stage = Stage()
    have(stage, "source", _id="gone", at=LONG_AGO)
    have(stage, "source", _id="lost", at=datetime(2030, 1, 1, tzinfo=UTC))
    have(stage, "source", _id="without a date")
    have(stage, "source", _id="different", at=LONG_AGO)
    have(stage, "target", _id="different", at=LONG_AGO, n=1)
    with_ttl(stage)
    found = await restored(await drained(stage, insert(OTHERS, {"_id": "new"})))
    assert (found["missing"], found["different"], found["expired"]) == (2, 1, 1)
    with pytest.raises(OperatorError, match="missing or different") as refused:
        await cleaned(stage)
    assert refused.value.facts["count"] == 3


@pytest.mark.parametrize("changed", [{"is_partial": True}, {"field": "other"}, {"seconds": NEVER}])
async def test_an_index_that_does_not_delete_it_makes_nothing_expired(changed: dict[str, Any]) -> None:
    stage = Stage()
    have(stage, "source", _id="lost", at=LONG_AGO)
    with_ttl(stage, **changed)
    found = await restored(await drained(stage, insert(OTHERS, {"_id": "new"})))
    assert (found["missing"], found["expired"]) == (1, 0)


async def test_what_expires_after_it_was_named_needs_no_word_either() -> None:
    stage = Stage()
    have(stage, "source", _id="gone", at=LONG_AGO)
    with_ttl(stage)
    stage.guard.obstacle = "the agent's user may not setUserWriteBlockMode"  # the index is held, and deletes nothing
    found = await restored(await drained(stage, insert(OTHERS, {"_id": "new"})))
    assert (found["missing"], found["expired"]) == (1, 0)
    found = await cleaned(stage)
    assert (found["missing"], found["expired"]) == (0, 1)


async def test_what_has_expired_and_comes_into_the_log_is_forgotten() -> None:
    stage = Stage()
    have(stage, "source", _id="gone", at=LONG_AGO)
    with_ttl(stage)
    await drained(stage, insert(OTHERS, {"_id": "new"}))
    outside = stage.outside()
    assert len((await outside.finish(stage.coordinator)).expired) == 1
    have(stage, "source", _id="lost")
    await stage.capture(delete(ORDERS, "gone"))
    report = await stage.outside().finish(stage.coordinator)
    assert len(report.expired) == 0


@pytest.mark.parametrize("is_silent", [True, False])
async def test_writes_in_a_target_that_does_not_tell_them_are_named_too(*, is_silent: bool) -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    await restored(stage, stage.outside(source=SlowReader(stage)))
    stage.target.database.put(ORDERS, raw_id("equal"), raw_document({"_id": "equal", "n": 5}))
    stage.changes.is_silent, stage.changes.kept_from = is_silent, 0 if is_silent else 1_000
    with pytest.raises(OperatorError, match="missing or different") as refused:
        await cleaned(stage)
    assert refused.value.facts["count"] == 3
    (told,) = stage.coordinator.journal.facts_of("writes_in_target_not_known")
    assert "marker" in str(told["error"]) or "refused" in str(told["error"])


async def test_a_target_without_a_change_stream_fails_no_restore() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    stage.changes.error = OperatorError("the target tells no position", hint="it is no replica set")
    assert (await restored(stage))["state"] == "complete"
    assert {"error": "the target tells no position", "hint": "it is no replica set"} in interruptions(stage)


async def test_an_agent_that_lost_the_log_ends_while_it_asks_the_target() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    await restored(stage, stage.outside(source=SlowReader(stage)))
    stage.changes.error = LogHeldError("another agent holds the log")
    with pytest.raises(LogHeldError):
        await stage.outside().finish(stage.coordinator)


async def test_a_report_that_was_not_stored_is_stored_with_the_next_turn() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    down = DownStore()
    down.objects = stage.store.objects
    down.error = TransientError("the store does not answer")
    outside = stage.outside(store=down)
    with pytest.raises(TransientError):
        await outside.finish(stage.coordinator)
    down.error = None
    await outside.finish(stage.coordinator)
    assert named(stored(stage), "differences") == DIVERGED


async def test_with_the_comparison_off_clean_asks_for_no_word() -> None:
    stage = await drained(diverged(), insert(ORDERS, {"_id": "new"}))
    await stage.restore(outside=None).run(stage.coordinator)
    stage.coordinator.set_status(Service.RESTORE, Status.DONE)
    await run_clean(stage, clean(stage))
    assert json.loads(stage.store.objects["reports/run/final.json"])["outside"] is None
