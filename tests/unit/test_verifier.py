"""The comparison as others drive it: in portions, again, and with repair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from d5agent.core.compare.repair import Cause
from d5agent.core.compare.report import VerifyReport
from d5agent.core.replay.replay import Unresolved
from d5agent.errors import TooManyBytesError
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.log.reader import LogReader
from tests.fakes.cluster import delete, drop, insert, rename, update
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.events import ITEMS
from tests.fakes.indexes import sparse
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeReader, FakeTarget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.ports import Target

MIB = 1024 * 1024


def verifier(
    stage: Stage,
    *,
    rounds: int = 4,
    repair_into: Target | None = None,
    report: VerifyReport | None = None,
    source: FakeReader | None = None,
) -> Verifier:
    return Verifier(
        source=source or FakeReader(stage.cluster),
        target=stage.target,
        repair_into=repair_into,
        clock=stage.clock,
        waiting_bytes=10_000,
        rounds=rounds,
        report=report or VerifyReport(scope="touched", run_id="run"),
    )


async def captured(stage: Stage, count: int) -> LogReader:
    await stage.capture(*[insert(ORDERS, {"_id": number, "n": 0}) for number in range(count)])
    return LogReader(store=stage.store)


async def test_differences_can_be_taken_out_and_compared_again() -> None:
    stage = Stage()
    reader = await captured(stage, 5)
    subject = verifier(stage, rounds=1)
    report = await subject.touched(reader, reader.links(), ())
    assert (report.compared, report.different, report.is_equal) == (5, 5, False)
    taken = report.take_differences()
    assert (report.different, report.differences, report.is_equal) == (0, [], True)
    assert taken.documents == {ORDERS: {raw_id(number) for number in range(5)}}
    for number in range(4):
        stage.target.database.put(ORDERS, raw_id(number), raw_document({"_id": number, "n": 0}))
    await subject.compare_again(taken)
    assert (report.compared, report.different) == (5, 1)
    assert report.differences[0].id == raw_id(4)


async def test_what_is_compared_again_may_be_whole_collections() -> None:
    stage = Stage()
    await captured(stage, 3)
    subject = verifier(stage)
    taken = subject.report.take_differences()
    taken.whole.add(ORDERS)
    report = await subject.compare_again(taken)
    assert (report.compared, report.different) == (0, 3)


async def test_a_verifier_goes_on_with_later_commits() -> None:
    stage = Stage()
    reader = await captured(stage, 2)
    stage.target = FakeTarget(stage.database.copy())
    subject = verifier(stage, rounds=1)
    await subject.touched(reader, reader.links(), (), with_facts=False)
    last = await reader.last()
    await stage.capture(update(ORDERS, {"_id": 1, "n": 1}), insert(ORDERS, {"_id": 7}))
    report = await subject.touched(reader, reader.links(after=last), (), with_facts=False)
    assert (report.compared, report.different) == (4, 2)
    assert {difference.id for difference in report.differences} == {raw_id(1), raw_id(7)}


async def test_facts_are_compared_when_they_are_asked_for_and_told_once() -> None:
    stage = Stage()
    reader = await captured(stage, 1)
    stage.target = FakeTarget(stage.database.copy())
    stage.database.unique[ORDERS] = sparse("u")
    subject = verifier(stage)
    report = await subject.touched(reader, reader.links(), (), with_facts=False)
    assert report.indexes == []
    for _ in range(2):
        await subject.touched(reader, reader.links(), ())
        assert len(report.indexes) == 1


async def test_one_round_tells_and_does_not_repair_and_more_repair() -> None:
    stage = Stage()
    reader = await captured(stage, 2)
    report = await verifier(stage, rounds=1, repair_into=stage.target).touched(reader, reader.links(), ())
    assert (report.different, report.repaired) == (2, [])
    report = await verifier(stage, repair_into=stage.target).touched(reader, reader.links(), ())
    assert (report.different, len(report.repaired)) == (0, 2)
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_a_dropped_collection_is_compared_whole() -> None:
    stage = Stage()
    reader = await captured(stage, 1)
    await stage.capture(drop(ORDERS))
    stage.target.database.put(ORDERS, raw_id("left"), raw_document({"_id": "left"}))
    report = await verifier(stage).touched(reader, reader.links(), ())
    assert [str(difference.kind) for difference in report.differences] == ["extra"]


async def test_each_repair_points_at_the_event_that_explains_it() -> None:
    stage = Stage()
    await stage.capture(
        insert(ORDERS, {"_id": "gone", "n": 1}),
        insert(ORDERS, {"_id": "whole", "n": 1}),
        delete(ORDERS, "gone"),
        insert(ITEMS, {"_id": 1}),
    )
    stage.target = FakeTarget(stage.database.copy())
    stage.target.database.put(ORDERS, raw_id("gone"), raw_document({"_id": "gone", "n": 1}))
    stage.target.database.put(ORDERS, raw_id("whole"), raw_document({"_id": "whole", "n": 2}))
    stage.database.put(ITEMS, raw_id(1), raw_document({"_id": 1, "n": "written, and its event is still to come"}))
    reader = LogReader(store=stage.store)
    report = await verifier(stage, repair_into=stage.target).touched(reader, reader.links(), ())
    assert {repair.to_json()["id"]: repair.cause for repair in report.repaired} == {
        "gone": Cause.UNEXPLAINED,
        "whole": Cause.UNEXPLAINED,
        "1": Cause.SOURCE_MOVED_ON,
    }
    events = {r.to_json()["id"]: r.to_json()["last_event"] for r in report.repaired}
    assert events["gone"]["kind"] == "delete"
    assert events["whole"]["segment"].startswith("replication/")
    assert events["whole"]["commit"] in stage.store.objects


async def test_a_moved_name_is_the_cause_of_its_repairs() -> None:
    stage = Stage()
    moved = (insert(ORDERS, {"_id": 1, "n": 0}), update(ORDERS, {"_id": 1, "n": 1}), rename(ORDERS, ITEMS))
    await stage.capture(*moved)
    stage.target.database.put(ORDERS, raw_id(1), raw_document({"_id": 1, "n": 0}))
    reader = LogReader(store=stage.store)
    report = await verifier(stage, repair_into=stage.target).touched(reader, reader.links(), ())
    assert report.is_equal
    assert {str(r.difference.namespace): r.cause for r in report.repaired} == {
        "shop.orders": Cause.NAME_MOVED,
        "shop.items": Cause.NAME_MOVED,
    }


async def test_a_generation_with_repair_knows_the_events_of_earlier_ones() -> None:
    stage = Stage()
    reader = await captured(stage, 2)
    report = VerifyReport(scope="touched", run_id="run")
    await verifier(stage, rounds=1, report=report).touched(reader, reader.links(), ())
    again = report.take_differences()
    second = verifier(stage, repair_into=stage.target, report=report)
    await second.compare_again(again)
    await second.touched(reader, reader.links(after=await reader.last()), ())
    assert [r.event is not None and r.event.kind for r in report.repaired] == ["insert", "insert"]
    assert {r.cause for r in report.repaired} == {Cause.UNEXPLAINED}


async def test_a_large_document_is_compared_by_itself() -> None:
    stage = Stage()
    large = [insert(ORDERS, {"_id": number, "f": "x" * 3_000_000}) for number in range(2)]
    await stage.capture(*large, insert(ORDERS, {"_id": 9}))
    reader = LogReader(store=stage.store)
    report = await verifier(stage).touched(reader, reader.links(), ())
    assert (report.compared, report.different) == (3, 3)


async def test_each_of_few_documents_is_compared_once_however_many_operations_touched_it() -> None:
    stage = Stage()
    await stage.capture(*[insert(ORDERS, {"_id": number % 7, "n": number}) for number in range(7)])
    many = [update(ORDERS, {"_id": number % 7, "n": number}) for number in range(1200)]
    await stage.capture(*many)
    stage.target = FakeTarget(stage.database.copy())
    reader = LogReader(store=stage.store)
    report = await verifier(stage).touched(reader, reader.links(), ())
    assert (report.compared, report.different) == (7, 0)


class Weighed(FakeReader):
    """Counts the documents' bytes that its answers hold at the same time."""

    most = 0
    calls = 0
    refused = 0

    @override
    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        self.calls += 1
        try:
            found = await super().fetch(namespace, ids, most_bytes=most_bytes)
        except TooManyBytesError:
            self.refused += 1
            raise
        self.most = max(self.most, sum(map(len, found.values())))
        return found


async def test_documents_of_unknown_size_are_never_all_held_at_once() -> None:
    stage = Stage()
    large = {number: "x" * (3 * MIB if number < 10 else 100) for number in range(100)}
    await stage.capture(*[insert(ORDERS, {"_id": number, "t": text}) for number, text in large.items()])
    reader = Weighed(stage.cluster)
    subject = verifier(stage, rounds=1, source=reader)
    doubts = Unresolved(documents={ORDERS: set(map(raw_id, large))})
    report = await subject.compare_again(doubts)
    assert (report.different, len(report.differences)) == (100, 100)
    assert reader.refused > 0
    assert reader.most < 8 * MIB
    assert reader.calls < 40


async def test_what_was_repaired_is_told_though_documents_are_too_large_to_be_held_at_once() -> None:
    stage = Stage()
    await stage.capture(*[insert(ORDERS, {"_id": number, "t": "x" * 3 * MIB}) for number in range(8)])
    subject = verifier(stage, repair_into=stage.target)
    report = await subject.compare_again(Unresolved(documents={ORDERS: set(map(raw_id, range(8)))}))
    assert (report.different, report.repairs) == (0, 8)
    assert stage.target.database.collections[ORDERS] == stage.database.collections[ORDERS]
