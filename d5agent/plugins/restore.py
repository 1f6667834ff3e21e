"""restore: replays the stored operations into the target, settles what is in doubt, then verifies."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.naming import id_to_text
from d5agent.core.phase import Verified
from d5agent.core.report import VerifyReport
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.steps.late import late_operations
from d5agent.steps.log_reader import LogReader
from d5agent.steps.replayer import Checkpoint, Replayer, load_checkpoint
from d5agent.steps.reports import store_report
from d5agent.steps.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.replay import Failure
    from d5agent.ports import Clock, Coordinator, DocumentReader, ObjectStore, StateStore, Target

DEAD_LETTERS: Final = "dead-letter/"
_SHOWN: Final = 3


@dataclass(slots=True, kw_only=True)
class Restore:
    """Makes the target what the source is. `lanes` connections write; windows and comparisons are bounded in bytes."""

    source: DocumentReader
    target: Target
    target_reader: DocumentReader
    store: ObjectStore
    states: StateStore
    clock: Clock
    lanes: int
    window_bytes: int
    waiting_bytes: int
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Check the log, replay it, settle, verify; again while operations came in meanwhile."""
        reader = LogReader(store=self.store)
        self._check_fence(coordinator)
        checkpoint = await load_checkpoint(self.states, coordinator.state.run_id)
        await self._check_log(coordinator, reader)
        while True:
            await self._replay(coordinator, reader, checkpoint)
            await self._create_empty_collections(coordinator)
            report = await self._verify(coordinator, reader, checkpoint)
            proof = self._proof(checkpoint, report)
            late = await late_operations(self.store, proof)
            if late == 0:
                break
            coordinator.journal.warning("operations_after_fence", operations=late)
        await self._conclude(coordinator, proof, report)

    def _check_fence(self, coordinator: Coordinator) -> None:
        if coordinator.state.fence is None:
            raise OperatorError(
                "restore has no fence: it is not proved that the stream is drained",
                hint="type: d5agent start restore, which starts monitor-replication first",
            )

    async def _check_log(self, coordinator: Coordinator, reader: LogReader) -> None:
        """Refuse a broken log before anything is written."""
        coordinator.report(step="checking the log")
        summary = await reader.check()
        if summary.last is None:
            raise OperatorError("the log is empty", hint="is [store] bucket and prefix what replication wrote to?")
        fence = coordinator.state.fence
        if fence is not None and summary.last.commit.sequence < fence.sequence:
            raise CorruptDataError(
                "the log ends before its fence",
                hint="bring its last commits back (bucket versioning), then type: d5agent start restore",
                last=summary.last.commit.sequence,
                fence=fence.sequence,
            )
        total = summary.last.commit.total
        coordinator.report(operations_total=total.operations)
        coordinator.journal.info(
            "log_checked",
            sequence=summary.last.commit.sequence,
            operations=total.operations,
            segments=total.segments,
            orphans=len(summary.orphans),
        )

    async def _replay(self, coordinator: Coordinator, reader: LogReader, checkpoint: Checkpoint) -> None:
        began, before = self.clock.monotonic(), checkpoint.operations

        def on_progress() -> None:
            total = int(str(coordinator.facts.get("operations_total", 0)))
            rate = (checkpoint.operations - before) / max(self.clock.monotonic() - began, 1e-3)
            left = max(0, total - checkpoint.operations)
            coordinator.report(
                operations_applied=checkpoint.operations,
                documents_written=checkpoint.written,
                eta_seconds=round(left / rate, 1) if rate else None,
            )

        replayer = Replayer(
            reader=reader,
            target=self.target,
            source=self.source,
            states=self.states,
            journal=coordinator.journal,
            checkpoint=checkpoint,
            lanes=self.lanes,
            window_bytes=self.window_bytes,
            on_progress=on_progress,
        )
        coordinator.report(step="replaying")
        await replayer.apply_log(reader.links())
        coordinator.report(step="settling doubts", in_doubt=len(checkpoint.doubts))
        await self._bury(coordinator, await replayer.settle())
        coordinator.report(in_doubt=0)
        coordinator.journal.info(
            "log_applied",
            sequence=checkpoint.sequence,
            operations=checkpoint.operations,
            written=checkpoint.written,
            seconds=round(self.clock.monotonic() - began, 3),
        )

    async def _bury(self, coordinator: Coordinator, failures: Sequence[Failure]) -> None:
        """Write what the target refuses to `dead-letter/`; restore then fails, and takes them up when started again."""
        folder = f"{DEAD_LETTERS}{coordinator.state.run_id}/"
        await self.store.delete([found.key async for page in self.store.list_objects(folder) for found in page])
        for number, failure in enumerate(failures, 1):
            letter = {
                "namespace": str(failure.namespace),
                "id": id_to_text(failure.write.id),
                "reason": failure.reason,
                "index": failure.index,
            }
            await self.store.put(f"{folder}{number:06d}.json", json.dumps(letter, ensure_ascii=False).encode())
        if failures:
            raise OperatorError(
                f"the target refuses {len(failures)} documents",
                hint=f"mend the cause (each is in {folder}), then type: d5agent start restore",
                refused="; ".join(
                    f"{failure.namespace} {id_to_text(failure.write.id)}: {failure.reason}"
                    for failure in failures[:_SHOWN]
                ),
            )

    async def _create_empty_collections(self, coordinator: Coordinator) -> None:
        """Make the collections that the source has and the target lacks: creating one leaves no event."""
        there = set(await self.target_reader.collections())
        for namespace in await self.source.collections():
            if namespace not in there:
                await self.target.create_collection(namespace)
                coordinator.journal.info("collection_created", namespace=str(namespace))

    async def _verify(self, coordinator: Coordinator, reader: LogReader, checkpoint: Checkpoint) -> VerifyReport:
        def on_progress(report: VerifyReport) -> None:
            coordinator.report(compared=report.compared, different=report.different)

        coordinator.report(step="verifying")
        verifier = Verifier(
            source=self.source,
            target=self.target_reader,
            repair_into=self.target,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            on_progress=on_progress,
            report=VerifyReport(scope="touched", run_id=coordinator.state.run_id),
        )
        report = await verifier.touched(reader, reader.links(), checkpoint.doubts.whole)
        report.sequence, report.operations = checkpoint.sequence, checkpoint.operations
        on_progress(report)
        return report

    def _proof(self, checkpoint: Checkpoint, report: VerifyReport) -> Verified:
        return Verified(
            sequence=checkpoint.sequence,
            operations=checkpoint.operations,
            compared=report.compared,
            at=self.clock.now().isoformat(timespec="seconds"),
        )

    async def _conclude(self, coordinator: Coordinator, proof: Verified, report: VerifyReport) -> None:
        key = await store_report(self.store, report, at=proof.at)
        for repaired in report.repaired:
            coordinator.journal.warning("document_repaired", **repaired.to_json())
        if not report.is_equal:
            raise OperatorError(
                "source and target are not equal",
                hint=f"the report names each difference: {key}; then type: d5agent start restore",
                different=report.different,
                first=[difference.to_json() for difference in report.differences[:_SHOWN]],
            )
        await coordinator.update(lambda state: replace(state, verified=proof))
        coordinator.journal.info(
            "restore_verified", compared=report.compared, repaired=len(report.repaired), report=key
        )
