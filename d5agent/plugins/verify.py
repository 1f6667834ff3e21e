"""verify: compares on demand, and writes nothing but its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.naming import reports_folder
from d5agent.core.run.progress import ComparisonProgress
from d5agent.errors import OperatorError
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.log.reader import LogReader, no_log
from d5agent.steps.probes import require_place
from d5agent.steps.replay.checkpoint import load_checkpoint
from d5agent.steps.reports import store_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.ports import Clock, DocumentReader, ObjectStore, StateStore
    from d5agent.service import Coordinator
    from d5agent.steps.servers import Servers


@dataclass(slots=True, kw_only=True)
class Verify:
    """Compares source and target, as a service or for the command line. `url_of`: where an object is, in words."""

    source: DocumentReader
    target_reader: DocumentReader
    store: ObjectStore
    states: StateStore
    servers: Servers
    clock: Clock
    waiting_bytes: int
    url_of: Callable[[str], str] = str
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Compare every touched document; OperatorError when one differs, or a cluster is not the certificate's."""
        await self.servers.require_certified(coordinator.state, again="d5agent start verify")

        def on_progress(report: VerifyReport) -> None:
            total = None if report.expected is None else max(report.expected, report.compared)
            coordinator.progress.verify = ComparisonProgress(
                compared=report.compared, compared_total=total, different=report.different
            )

        report, key = await self.compare(coordinator.state.run_id, is_full=False, on_progress=on_progress)
        on_progress(report)
        if not report.is_equal:
            raise OperatorError(
                "source and target are not equal",
                hint=f"the report names each difference: {self.url_of(key)}",
                different=report.different,
            )

    async def _documents(self) -> int:
        """Return how many documents the source has, as it has written it down."""
        return sum([await self.source.count(namespace, exactly=False) for namespace in await self.source.collections()])

    async def compare(
        self, run_id: str, *, is_full: bool, on_progress: Callable[[VerifyReport], None]
    ) -> tuple[VerifyReport, str]:
        """Return the report, and the key that it is stored under. Full: whole collections, else what was touched.

        OperatorError, before anything is read: the report could not be stored, or there is no log, and so nothing that
        was touched.
        """
        await require_place(self.store, reports_folder(run_id), what="the report of the comparison")
        verifier = Verifier(
            source=self.source,
            target=self.target_reader,
            repair_into=None,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            on_progress=on_progress,
            report=VerifyReport(scope="full" if is_full else "touched", run_id=run_id),
        )
        if is_full:
            verifier.report.expected = await self._documents()
            report = await verifier.full()
        else:
            reader = LogReader(store=self.store)
            if await reader.last() is None:
                raise no_log(self.url_of(""))
            checkpoint = await load_checkpoint(self.states, run_id)
            verifier.report.expected = checkpoint.written or None  # about one write a touched document
            report = await verifier.touched(reader, reader.links(), checkpoint.doubts.whole)
        report.expected = report.compared
        at = self.clock.now().isoformat(timespec="seconds")
        return report, await store_report(self.store, report, at=at)
