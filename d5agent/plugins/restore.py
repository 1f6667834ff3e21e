"""restore: replays the stored operations into the target, settles what is in doubt, then verifies."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.outside import OFF
from d5agent.core.log.naming import reports_folder
from d5agent.core.replay.collation import Collated
from d5agent.core.replay.pace import Pace
from d5agent.core.replay.specification import ttl_of, with_ttl_held
from d5agent.core.reports.certificate import proved_fence
from d5agent.core.run.services import ACTIVE, Service, Verified
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.steps.backups import wait_for_backup
from d5agent.steps.compare.generations import COMPARED, Generations
from d5agent.steps.compare.held_reader import HeldReader
from d5agent.steps.compare.outside import forget_comparison
from d5agent.steps.compare.overwritten import OverwrittenKeeper
from d5agent.steps.compare.target_watch import TargetWatch
from d5agent.steps.late.report import LateReporter
from d5agent.steps.late.restore import LateRestore
from d5agent.steps.log.reader import LogReader, link_of, no_log
from d5agent.steps.parallel import beside
from d5agent.steps.probes import require_place
from d5agent.steps.replay.checkpoint import Checkpoint, load_checkpoint
from d5agent.steps.replay.dead_letters import DEAD_LETTERS
from d5agent.steps.replay.keeper import Keeper, recorded
from d5agent.steps.replay.progress import ReplayReporter
from d5agent.steps.replay.replayer import Replayer
from d5agent.steps.reports import store_report
from d5agent.steps.restore_run import ClosedTarget, RestoreRun

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import Operation
    from d5agent.core.servers import ServerFacts
    from d5agent.ports import (
        Clock,
        DocumentReader,
        ObjectStore,
        StateStore,
        Target,
        TargetChanges,
        TargetGuard,
        TargetSpecifications,
    )
    from d5agent.service import Coordinator
    from d5agent.steps.certificate import Certifier
    from d5agent.steps.compare.outside import Outside
    from d5agent.steps.replay.target_hold import TargetHold
    from d5agent.steps.servers import Servers

_SHOWN: Final = 3
_UNSTABLE: Final = "is its collection capped, has it a TTL index, does somebody write there? "


@dataclass(slots=True, kw_only=True)
class Restore:
    """Makes the target what the source is. `lanes` connections write; windows and comparisons are bounded in bytes.

    `is_live`: it begins while applications write to the source, and follows the log until the cutover draws the fence.
    `outside`: compares what the log does not touch, beside it; None: nobody does.
    """

    source: DocumentReader
    target: Target
    target_reader: DocumentReader
    store: ObjectStore
    states: StateStore
    clock: Clock
    lanes: int
    window_bytes: int
    waiting_bytes: int
    certifier: Certifier
    target_changes: TargetChanges
    servers: Servers
    hold: TargetHold
    guard: TargetGuard
    specifications: TargetSpecifications
    keeps_indexes: bool = True
    max_operations_per_second: float | None = None
    url_of: Callable[[str], str] = str
    is_live: bool = False
    outside: Outside | None = None
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Check the log, replay it, settle, verify; again while operations came in meanwhile.

        Once that is proved applications trust the target: from then on a restore is about late operations (ADR 35).
        Beside it, what the log does not touch is compared.
        """
        await self._require_places(coordinator.state.run_id)
        if await self._is_proved(coordinator):
            await self._require_certified_target(coordinator)
            await self.hold.give_back(coordinator.journal, guard=self.guard)
            await self._late_restore().run(coordinator)
            return
        await self._forget_other_comparisons(coordinator.state.run_id)
        async with self._outside_compared(coordinator):
            run = await self._begin(coordinator)
            if self.is_live:
                await run.follow()
            report = await run.bring_to_the_end()
            await self._conclude(run, report)

    def _outside_compared(self, coordinator: Coordinator) -> AbstractAsyncContextManager[None]:
        if self.outside is None:
            return nullcontext()
        return beside(self.outside.keep_comparing(coordinator, is_held=lambda: self._is_hurried(coordinator)))

    def _is_hurried(self, coordinator: Coordinator) -> bool:
        """Whether nothing but the restore may load the databases: a cutover is under way, or somebody has paused it."""
        state = coordinator.state
        is_cutover = state.fence is not None or state.status(Service.MONITOR_REPLICATION) in ACTIVE
        return state.is_paused or (self.is_live and is_cutover)

    async def _begin(self, coordinator: Coordinator) -> RestoreRun:
        """Check the log and both clusters, close the target, and open what replays and compares."""
        if self.is_live:
            await wait_for_backup(coordinator, self.store, "target")
        if not self.is_live or coordinator.state.fence is not None:
            proved_fence(coordinator.state)
        reader = LogReader(store=self.store)
        last, collated = await self._check_log(coordinator, reader)
        both = await self.servers.tell_apart()
        await self.servers.require_own_log(reader, coordinator.state.fence)
        checkpoint = await self._checkpoint(coordinator, both.target)
        # The chain is checked: what is applied need not be read again, nor compared where it was.
        is_begun = 0 <= checkpoint.sequence <= last.commit.sequence
        applied = await link_of(self.store, checkpoint.sequence) if is_begun else None
        closed = await self._close_target(coordinator, checkpoint, both.target)
        pace = Pace(lanes=self.lanes)
        reporter = ReplayReporter(coordinator=coordinator, clock=self.clock, checkpoint=checkpoint, pace=pace)
        replayer = self._replayer(reader, reporter)
        replayer.collated, replayer.keeper = collated, closed.keeper
        return RestoreRun(
            coordinator=coordinator,
            store=self.store,
            clock=self.clock,
            servers=both,
            closed=closed,
            replayer=replayer,
            reporter=reporter,
            generations=await self._generations(replayer, closed.overwritten),
            applied=applied,
            outside=self.outside,
            is_live=self.is_live,
        )

    async def _checkpoint(self, coordinator: Coordinator, target: ServerFacts) -> Checkpoint:
        """Return the checkpoint of this run and this target; of another target, the beginning: that is always right."""
        checkpoint = await load_checkpoint(self.states, coordinator.state.run_id)
        if checkpoint.target is not None and not checkpoint.target.is_same(target):
            names = {"before": checkpoint.target.hosts, "now": target.hosts}
            coordinator.journal.warning("target_is_another", what="restore begins again", **names)
            checkpoint = Checkpoint(run_id=coordinator.state.run_id)
        checkpoint.target = target
        return checkpoint

    async def _forget_other_comparisons(self, run_id: str) -> None:
        """Let everything be compared again unless the checkpoint says that it was with this very target.

        Without a checkpoint nothing is known: the run was begun again, or its first write is still to come.
        """
        before, target = (await load_checkpoint(self.states, run_id)).target, await self.servers.target.facts()
        if before is None or not before.is_same(target):
            await self.states.delete(COMPARED)
            await forget_comparison(self.store, run_id)

    async def _require_certified_target(self, coordinator: Coordinator) -> None:
        """Raise OperatorError if a cluster is not the one that the certificate is about: the target may be in use."""
        await self.servers.require_certified(coordinator.state, again="d5agent start monitor-restore")
        await self.servers.tell_apart()

    async def _is_proved(self, coordinator: Coordinator) -> bool:
        """Whether the run has its proof: in the state, or in a certificate that a daemon died over."""
        if coordinator.state.verified is None:
            issued = await self.certifier.issued(coordinator.state)
            if issued is not None:
                await coordinator.update(lambda state: replace(state, verified=issued))
                coordinator.journal.info("certificate_found", certificate=issued.certificate, issued_at=issued.at)
        return coordinator.state.verified is not None

    def _late_restore(self) -> LateRestore:
        reporter = LateReporter(
            store=self.store,
            source=self.source,
            target=self.target_reader,
            servers=self.servers,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
        )
        return LateRestore(reporter=reporter, target=self.target, states=self.states)

    async def _close_target(
        self, coordinator: Coordinator, checkpoint: Checkpoint, target: ServerFacts
    ) -> ClosedTarget:
        """Record the target's indexes and options, then close it to others, and keep what no dump holds."""
        run_id = coordinator.state.run_id
        at = self.clock.now().isoformat(timespec="seconds")
        key, specifications = await recorded(self.store, self.specifications, run_id=run_id, server=target, at=at)
        kept = ttl_of(specifications) if self.keeps_indexes else ()
        held = await self.hold.take(run_id, coordinator.journal, guard=self.guard, kept=kept)
        coordinator.progress.restore = replace(coordinator.progress.restore, target_write_block=held.block)
        overwritten = OverwrittenKeeper(
            store=self.store,
            changes=self.target_changes,
            target=self.target_reader,
            clock=self.clock,
            run_id=run_id,
            server=target,
        )
        await overwritten.keep_all(coordinator, self.hold, held, has_begun=checkpoint.sequence >= 0)
        keeper = Keeper(
            target=self.specifications,
            specifications={name: with_ttl_held(one, held.ttl) for name, one in specifications.items()},
            lost=checkpoint.lost,
            journal=coordinator.journal,
        )
        return ClosedTarget(
            keeper=keeper if self.keeps_indexes else None, overwritten=overwritten, specifications_key=key
        )

    async def _require_places(self, run_id: str) -> None:
        await require_place(self.store, reports_folder(run_id), what="the certificate")
        await require_place(self.store, f"{DEAD_LETTERS}{run_id}/", what="a document that the target refuses")

    async def _check_log(self, coordinator: Coordinator, reader: LogReader) -> tuple[Link, Collated]:
        """Refuse a broken log, and one that the target's collations forbid to apply, before anything is written."""
        coordinator.begin_step("checking the log")
        collated = Collated(dict(await self.servers.target.collations()))

        def look(operation: Operation) -> None:
            if operation.document_id is not None:
                collated.see(operation.namespace, [operation.document_id])
            elif operation.rename_to is not None:
                collated.rename(operation.namespace, operation.rename_to)

        summary = await reader.check(look=look)
        if summary.last is None:
            raise no_log(self.url_of(""))
        fence = coordinator.state.fence
        if fence is not None and summary.last.commit.sequence < fence.sequence:
            raise CorruptDataError(
                "the log ends before its fence",
                hint="bring its last commits back (bucket versioning), then type: d5agent start restore",
                last=summary.last.commit.sequence,
                fence=fence.sequence,
            )
        total = summary.last.commit.total
        coordinator.progress.restore = replace(
            coordinator.progress.restore, log_operations=total.operations, log_bytes=total.bytes
        )
        coordinator.journal.info(
            "log_checked",
            sequence=summary.last.commit.sequence,
            operations=total.operations,
            segments=total.segments,
            orphans=len(summary.orphans),
        )
        collated.require_none()
        return summary.last, collated

    def _replayer(self, reader: LogReader, reporter: ReplayReporter) -> Replayer:
        return Replayer(
            reader=reader,
            target=self.target,
            target_reader=self.target_reader,
            source=self.source,
            states=self.states,
            journal=reporter.coordinator.journal,
            checkpoint=reporter.checkpoint,
            clock=self.clock,
            pace=reporter.pace,
            busy=reporter.busy,
            window_bytes=self.window_bytes,
            max_operations_per_second=self.max_operations_per_second,
            on_progress=reporter.advance,
        )

    async def _generations(self, replayer: Replayer, overwritten: OverwrittenKeeper) -> Generations:
        hold = await self.hold.current()
        generations = Generations(
            reader=replayer.reader,
            states=self.states,
            source=self.source,
            target=HeldReader(reader=self.target_reader, held=() if hold is None else hold.ttl),
            repair_into=self.target,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            run_id=replayer.checkpoint.run_id,
            watch=TargetWatch(changes=self.target_changes, clock=self.clock, journal=replayer.journal),
            keep=overwritten.keep,
        )
        await generations.load(applied=replayer.checkpoint.sequence)
        return generations

    async def _hold_so_far(self, coordinator: Coordinator, report: VerifyReport) -> dict[str, object] | None:
        """Return how others were kept from writing to the target; where they were not, name what they wrote."""
        held = await self.hold.certificate(guard=self.guard)
        if held is not None and held["was_open"] and (found := report.note_open_target()):
            coordinator.journal.warning(
                "foreign_writes_found",
                documents=found,
                hint="document_repaired names each: find out who writes there; docs/privileges.md: d5agentWriteBlock",
            )
        return held

    def _proof(self, checkpoint: Checkpoint, report: VerifyReport) -> Verified:
        return Verified(
            sequence=checkpoint.sequence,
            operations=checkpoint.operations,
            compared=report.compared,
            at=self.clock.now().isoformat(timespec="seconds"),
        )

    async def _conclude(self, run: RestoreRun, report: VerifyReport) -> None:
        """Store the report, certify what it proves, and give the target back. OperatorError: both are not equal."""
        coordinator, evidence, proof = run.coordinator, await run.evidence(), self._proof(run.checkpoint, report)
        held = await self._hold_so_far(coordinator, report)
        report.overwritten = run.closed.overwritten.summary(report, held)
        key = await store_report(self.store, report, at=proof.at)
        for repaired in report.repaired:
            coordinator.journal.warning("document_repaired", **repaired.to_json())
        if report.refused:
            await run.letters.bury(report.refused)
        self._require_equal(report, key)
        outside = OFF if self.outside is None else self.outside.summary(sequence=proof.sequence)
        evidence = replace(evidence, target_hold=held, outside=outside, overwritten=report.overwritten)
        certified = await self.certifier.certify(coordinator.state, proof, report, evidence)
        await coordinator.update(lambda state: replace(state, verified=certified))
        coordinator.journal.info(
            "restore_verified",
            compared=report.compared,
            repaired=report.repairs,
            report=self.url_of(key),
            certificate=self.url_of(certified.certificate),
            outside=outside["state"],
        )
        await self.hold.give_back(coordinator.journal, guard=self.guard)

    def _require_equal(self, report: VerifyReport, key: str) -> None:
        """Raise OperatorError if the databases differ. `key`: where the report is."""
        if not report.is_equal:
            raise OperatorError(
                "the target did not stay equal" if report.is_unstable else "source and target are not equal",
                hint=(_UNSTABLE if report.is_unstable else "")
                + f"the report names each difference: {self.url_of(key)}; then type: d5agent start restore",
                different=report.different,
                first=[difference.to_json() for difference in report.differences[:_SHOWN]],
            )
