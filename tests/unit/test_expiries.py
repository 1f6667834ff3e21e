"""Deletes by the source's TTL indexes: told from an application's, applied before the certificate, listed after it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest
from typing_extensions import override

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.operation import ClusterTime
from d5agent.core.replay.ttl import TtlIndex
from d5agent.core.run.services import Service
from d5agent.errors import OperatorError
from d5agent.plugins.monitor_restore import MonitorRestore
from d5agent.steps.log.reader import LogReader
from tests.fakes.cluster import Op, delete, insert
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeReader
from tests.unit.test_plugin_monitors import clean, log_of, run_clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import Namespace
    from d5agent.steps.capture.expiries import Late

LONG_AGO: Final = datetime(2026, 1, 1, tzinfo=UTC)
LATER: Final = datetime(2027, 1, 1, tzinfo=UTC)
AT: Final = ClusterTime(1_793_600_000, 0)
TTL: Final = TtlIndex(namespace=ORDERS, name="at_1", field="at", seconds=60)


async def proved(*before: dict[str, object], ttl: tuple[TtlIndex, ...] = (TTL,)) -> Stage:
    """A stage whose source has a TTL index, and whose target holds what the source holds."""
    stage = Stage()
    stage.cluster.database.ttl[ORDERS] = ttl
    for document in before:
        for database in (stage.cluster.database, stage.target.database):
            database.put(ORDERS, raw_id(document["_id"]), raw_document(document))
    await stage.capture(insert(ORDERS, {"_id": "touched", "at": LONG_AGO}))
    stage.target.database.put(ORDERS, raw_id("touched"), raw_document({"_id": "touched", "at": LONG_AGO}))
    await stage.prove()
    return stage


async def late(stage: Stage, *ops: Op) -> Late:
    """Let operations come after the proof, and look at them."""
    before = await last_link(stage)
    await stage.capture(*ops)
    return await stage.expiries().after(before)


async def last_link(stage: Stage) -> Link | None:
    return await LogReader(store=stage.store).last()


async def test_a_delete_of_what_had_expired_in_the_target_is_an_expiry() -> None:
    stage = await proved({"_id": 1, "at": LONG_AGO}, {"_id": 2, "at": LATER})
    found = await late(stage, delete(ORDERS, 1))
    assert (found.total, found.others, dict(found.expired)) == (1, 0, {"shop.orders": 1})
    found = await late(stage, delete(ORDERS, 2))
    assert (found.total, found.others) == (1, 1)  # nobody but an application deletes that


async def test_the_logs_last_version_counts_where_applications_have_changed_the_targets() -> None:
    stage = await proved({"_id": "untouched", "at": LONG_AGO})
    for id_ in ("touched", "untouched"):
        stage.target.database.put(ORDERS, raw_id(id_), raw_document({"_id": id_, "at": LATER}))
    assert (await late(stage, delete(ORDERS, "touched"))).others == 0
    assert (await late(stage, delete(ORDERS, "untouched"))).others == 1  # nobody can say


async def test_a_delete_of_what_the_target_lacks_as_well_is_done_already() -> None:
    stage = await proved({"_id": 1, "at": LATER})
    stage.target.database.remove(ORDERS, raw_id(1))
    assert (await late(stage, delete(ORDERS, 1))).others == 0


@pytest.mark.parametrize("ttl", [(), (replace(TTL, field="other"),), (replace(TTL, is_partial=True),)])
async def test_without_a_ttl_index_that_tells_it_a_delete_is_an_applications(ttl: tuple[TtlIndex, ...]) -> None:
    stage = await proved({"_id": 1, "at": LONG_AGO}, ttl=ttl)
    assert (await late(stage, delete(ORDERS, 1))).others == 1


async def test_one_write_of_an_application_makes_all_of_it_an_applications() -> None:
    stage = await proved({"_id": 1, "at": LONG_AGO})
    found = await late(stage, delete(ORDERS, 1), insert(ORDERS, {"_id": "new"}))
    assert (found.total, found.others) == (2, 2)


class Expiring(FakeReader):
    """A source in which a document expires whenever somebody asks for its collections."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.cluster)
        self._stage = stage
        self.expired = 0

    @override
    async def collections(self) -> Sequence[Namespace]:
        self.expired += 1
        document = {"_id": self.expired, "at": LONG_AGO}
        for database in (self._stage.cluster.database, self._stage.target.database):
            database.put(ORDERS, raw_id(self.expired), raw_document(document))
        await self._stage.capture(delete(ORDERS, self.expired))
        return await super().collections()


async def test_a_steady_expiry_does_not_keep_a_restore_from_its_end() -> None:
    stage = await proved()
    stage.coordinator.state = replace(stage.coordinator.state, verified=None)
    del stage.store.objects["reports/run/certificate.json"]
    source = Expiring(stage)
    await stage.restore(source=source).run(stage.coordinator)
    turns = stage.coordinator.journal.facts_of("expired_after_fence")
    assert len(turns) == 4
    assert stage.coordinator.state.verified is not None
    assert stage.target.database.find(ORDERS, raw_id(1)) is None  # applied before the certificate
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    assert certificate["result"]["expired"]["shop.orders"] > 0  # and that is not


async def test_monitor_restore_lists_what_has_expired_and_starts_clean() -> None:
    stage = await proved({"_id": 1, "at": LONG_AGO})
    await stage.capture(delete(ORDERS, 1))
    await MonitorRestore(late=stage.reporter()).run(stage.coordinator)
    (facts,) = stage.coordinator.journal.facts_of("expired_after_certificate")
    assert facts == {"operations": 1, "namespaces": {"shop.orders": 1}}
    assert stage.target.database.find(ORDERS, raw_id(1)) is not None  # listed, not applied
    assert stage.coordinator.started == [Service.CLEAN, Service.MONITOR_CLEAN]


async def test_clean_ends_although_documents_expire() -> None:
    stage = await proved({"_id": 1, "at": LONG_AGO}, {"_id": 2, "at": LONG_AGO})
    await stage.capture(delete(ORDERS, 1))
    await run_clean(stage)
    assert log_of(stage) == []
    (facts,) = stage.coordinator.journal.facts_of("expired_after_certificate")
    assert facts["namespaces"] == {"shop.orders": 1}


@pytest.mark.parametrize(
    ("op", "is_refused"), [(delete(ORDERS, 1), False), (delete(ORDERS, 2), True), (insert(ORDERS, {"_id": 3}), True)]
)
async def test_what_the_log_does_not_hold_yet_is_told_apart_too(op: Op, *, is_refused: bool) -> None:
    stage = await proved({"_id": 1, "at": LONG_AGO}, {"_id": 2, "at": LATER})

    async def happen_and_end() -> None:
        await end()
        stage.cluster.apply(op)  # replication has ended: only the stream holds it

    async with stage.running(stage.replication()) as replication:

        async def end() -> None:
            stage.coordinator.stopping.set()
            await replication

        stage.coordinator.on_stop = happen_and_end
        if is_refused:
            with pytest.raises(OperatorError, match="has not verified"):
                await clean(stage).run(stage.coordinator)
        else:
            await clean(stage).run(stage.coordinator)
    assert bool(log_of(stage)) is is_refused


@pytest.mark.parametrize(
    ("target", "is_passed_over"),
    [({"_id": 1, "at": LONG_AGO}, True), ({"_id": 1, "at": LATER}, False), ({"_id": 1}, False), (None, False)],
)
async def test_only_what_has_expired_is_passed_over(target: dict[str, object] | None, *, is_passed_over: bool) -> None:
    stage = await proved()
    report = VerifyReport(scope="touched")
    await stage.expiries().pass_over(report, at=AT)
    report.add(Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.EXTRA))
    if target is not None:
        stage.target.database.put(ORDERS, raw_id(1), raw_document(target))
    await stage.expiries().pass_over(report, at=AT)
    assert report.is_equal is is_passed_over
    assert report.expired == ({"shop.orders": 1} if is_passed_over else {})


async def test_a_document_that_the_source_has_is_not_passed_over() -> None:
    stage = await proved({"_id": 1, "at": LONG_AGO})
    report = VerifyReport(scope="touched")
    report.add(Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.DIFFERENT))
    await stage.expiries().pass_over(report, at=AT)
    assert not report.is_equal
