"""restore: replays the stored operations into the target, settles what is in doubt, then verifies."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.outside import OFF
from d5agent.core.log.naming import id_to_text, reports_folder
from d5agent.core.log.operation import ClusterTime
from d5agent.core.replay.collation import Collated
from d5agent.core.replay.pace import Pace
from d5agent.core.replay.specification import ttl_of, with_ttl_held
from d5agent.core.reports.certificate import Evidence, proved_fence
from d5agent.core.run.cutover import held_up_by, is_ready, lag_seconds
from d5agent.core.run.progress import ComparisonProgress
from d5agent.core.run.services import ACTIVE, Service, Verified
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.steps.backups import wait_for_backup
from d5agent.steps.capture.expiries import Expiries
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
from d5agent.steps.replay.conflicts import Holders
from d5agent.steps.replay.dead_letters import DEAD_LETTERS, DeadLetters
from d5agent.steps.replay.keeper import Keeper, recorded
from d5agent.steps.replay.progress import ReplayReporter
from d5agent.steps.replay.rates import keep_rate
from d5agent.steps.replay.replayer import Replayer
from d5agent.steps.reports import store_report

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import Operation
    from d5agent.core.replay.replay import Failure
    from d5agent.core.run.hold import Hold
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
_WORTH_A_LINE: Final = 10_000  # operations in one turn; a live restore takes a turn every second
_UNSTABLE: Final = "is its collection capped, has it a TTL index, does somebody write there? "
_MOMENTS: Final = 10
_URGENT_MOMENTS: Final = 2
_EXPIRY_TURNS: Final = 3  # in which nothing but expired documents is restored


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
    _applied: Link | None = None
    _begins_at: Link | None = None
    _specifications_key: str = ""
    _refused: list[str] = field(default_factory=list)
    """What holds the cutover up, in words."""
    _expiry_turns: int = 0
    _overwritten: OverwrittenKeeper | None = None

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
        if self.outside is None:
            await self._restore(coordinator)
            return
        comparison = self.outside.keep_comparing(coordinator, is_held=lambda: self._is_hurried(coordinator))
        async with beside(comparison):
            await self._restore(coordinator)

    def _is_hurried(self, coordinator: Coordinator) -> bool:
        """Whether nothing but the restore may load the databases: a cutover is under way, or somebody has paused it."""
        state = coordinator.state
        is_cutover = state.fence is not None or state.status(Service.MONITOR_REPLICATION) in ACTIVE
        return state.is_paused or (self.is_live and is_cutover)

    async def _restore(self, coordinator: Coordinator) -> None:
        reader = LogReader(store=self.store)
        self._applied = self._begins_at = None  # after a failure: what was read ahead then was not applied
        if self.is_live:
            await wait_for_backup(coordinator, self.store, "target")
        if not self.is_live or coordinator.state.fence is not None:
            proved_fence(coordinator.state)
        last, collated = await self._check_log(coordinator, reader)
        both = await self.servers.tell_apart()
        await self.servers.require_own_log(reader, coordinator.state.fence)
        checkpoint = await self._checkpoint(coordinator, both.target)
        if 0 <= checkpoint.sequence <= last.commit.sequence:
            # The chain is checked: what is applied need not be read again, nor compared where it was.
            self._applied = self._begins_at = await link_of(self.store, checkpoint.sequence)
        keeper = await self._close_target(coordinator, checkpoint, both.target)
        replayer, progress = self._replayer(coordinator, reader, checkpoint)
        replayer.collated, replayer.keeper = collated, keeper
        generations = await self._generations(coordinator, reader, checkpoint)
        if self.is_live:
            await self._follow(coordinator, replayer, progress, generations)
        report = await self._bring_to_the_end(coordinator, replayer, progress, generations)
        report.operations = checkpoint.operations
        report.specifications = _told_of(keeper, self._specifications_key)
        _report_comparison(coordinator, report, total=report.compared)
        first = await anext(reader.links())
        evidence = Evidence(source=both.source, target=both.target, first=first, comparison=generations.comparison)
        await self._conclude(coordinator, self._proof(checkpoint, report), report, evidence)

    async def _bring_to_the_end(
        self, coordinator: Coordinator, replayer: Replayer, progress: ReplayReporter, generations: Generations
    ) -> VerifyReport:
        """Replay, settle and compare until no operation came in meanwhile; return the comparison's report."""
        checkpoint = replayer.checkpoint
        while True:
            await self._replay(coordinator, replayer, progress)
            await self._settle(coordinator, replayer)
            await self._create_empty_collections(coordinator)
            await self._build_lost_indexes(replayer.keeper)
            coordinator.begin_step("verifying")
            report = await generations.conclude(checkpoint.doubts.whole, applied=checkpoint.sequence)
            if not await self._has_more(coordinator, report):
                return report

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

    async def _has_more(self, coordinator: Coordinator, report: VerifyReport) -> bool:
        """Whether the log holds operations that are not applied yet.

        What expires on the source is applied too, but it never ends: after some turns the rest is left to expire, and
        is listed after the certificate.
        """
        expiries = Expiries(source=self.source, open_target=lambda: nullcontext(self.target_reader), store=self.store)
        late = await expiries.after(self._applied)
        if late.others:
            coordinator.journal.warning("operations_after_fence", operations=late.total)
        elif late.total:
            self._expiry_turns += 1
            coordinator.journal.info("expired_after_fence", operations=late.total, namespaces=dict(late.expired))
        if late.others or (late.total and self._expiry_turns <= _EXPIRY_TURNS):
            return True
        await expiries.pass_over(report, at=ClusterTime(int(self.clock.now().timestamp()), 0))
        return False

    async def _close_target(
        self, coordinator: Coordinator, checkpoint: Checkpoint, target: ServerFacts
    ) -> Keeper | None:
        """Record the target's indexes and options, then close it to others, and keep what no dump holds.

        Return what builds the indexes again.
        """
        run_id = coordinator.state.run_id
        at = self.clock.now().isoformat(timespec="seconds")
        self._specifications_key, specifications = await recorded(
            self.store, self.specifications, run_id=run_id, server=target, at=at
        )
        kept = ttl_of(specifications) if self.keeps_indexes else ()
        held = await self.hold.take(run_id, coordinator.journal, guard=self.guard, kept=kept)
        coordinator.progress.restore = replace(coordinator.progress.restore, target_write_block=held.block)
        await self._keep_overwritten(coordinator, held, checkpoint, target)
        if not self.keeps_indexes:
            return None
        return Keeper(
            target=self.specifications,
            specifications={name: with_ttl_held(one, held.ttl) for name, one in specifications.items()},
            lost=checkpoint.lost,
            journal=coordinator.journal,
        )

    async def _keep_overwritten(
        self, coordinator: Coordinator, held: Hold, checkpoint: Checkpoint, target: ServerFacts
    ) -> None:
        self._overwritten = OverwrittenKeeper(
            store=self.store,
            changes=self.target_changes,
            target=self.target_reader,
            clock=self.clock,
            run_id=coordinator.state.run_id,
            server=target,
        )
        has_begun = checkpoint.sequence >= 0
        await self._overwritten.keep_all(coordinator, self.hold, held, has_begun=has_begun)

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

    def _replayer(
        self, coordinator: Coordinator, reader: LogReader, checkpoint: Checkpoint
    ) -> tuple[Replayer, ReplayReporter]:
        pace = Pace(lanes=self.lanes)
        progress = ReplayReporter(coordinator=coordinator, clock=self.clock, checkpoint=checkpoint, pace=pace)
        replayer = Replayer(
            reader=reader,
            target=self.target,
            target_reader=self.target_reader,
            source=self.source,
            states=self.states,
            journal=coordinator.journal,
            checkpoint=checkpoint,
            clock=self.clock,
            pace=pace,
            busy=progress.busy,
            window_bytes=self.window_bytes,
            max_operations_per_second=self.max_operations_per_second,
            on_progress=progress.advance,
            gate=lambda: self._wait_while_paused(coordinator),
        )
        return replayer, progress

    async def _generations(self, coordinator: Coordinator, reader: LogReader, checkpoint: Checkpoint) -> Generations:
        def on_progress(report: VerifyReport) -> None:
            # What was written is about what is touched; a live restore compares some of it more than once.
            _report_comparison(coordinator, report, total=max(report.compared, checkpoint.written))

        hold = await self.hold.current()
        generations = Generations(
            reader=reader,
            states=self.states,
            source=self.source,
            target=HeldReader(reader=self.target_reader, held=() if hold is None else hold.ttl),
            repair_into=self.target,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            run_id=coordinator.state.run_id,
            watch=TargetWatch(changes=self.target_changes, clock=self.clock, journal=coordinator.journal),
            on_progress=on_progress,
            keep=None if self._overwritten is None else self._overwritten.keep,
        )
        await generations.load(applied=checkpoint.sequence)
        return generations

    async def _follow(
        self, coordinator: Coordinator, replayer: Replayer, progress: ReplayReporter, generations: Generations
    ) -> None:
        """Replay and compare what comes, until the fence is drawn."""
        while coordinator.state.fence is None:
            await self._wait_while_paused(coordinator)
            began = self.clock.monotonic()
            await self._replay(coordinator, replayer, progress)
            refused = [_line_of(failure) for failure in await replayer.try_refused()]
            if replayer.keeper is not None:
                await replayer.keeper.build(list(replayer.keeper.refused), again=True)
                refused += replayer.keeper.obstacles()
            self._report_refused(coordinator, refused)
            if self._applied is not None:
                coordinator.begin_step("comparing")
                await generations.compare(self._applied, replayer.checkpoint.doubts.whole)
                self._note_replayed()
            self._report_turn(coordinator, generations, turn_seconds=self.clock.monotonic() - began)
            await self._rest(coordinator)

    def _report_refused(self, coordinator: Coordinator, refused: Sequence[str]) -> None:
        """Say which documents and indexes hold the cutover up: behind it they would fail restore."""
        lines = list(refused[:_SHOWN])
        if lines and lines != self._refused:
            coordinator.journal.warning(
                "cutover_held_up",
                refused=len(refused),
                first=lines,
                hint="mend the cause on MongoDB; each is tried again within seconds",
            )
        self._refused = lines
        progress = coordinator.progress
        progress.restore = replace(progress.restore, refused_documents=len(refused), refused=tuple(lines))

    def _report_turn(self, coordinator: Coordinator, generations: Generations, *, turn_seconds: float) -> None:
        lag = self._report_lag(coordinator)
        ready = not self._refused and is_ready(
            turn_seconds=turn_seconds, carried=generations.carried, carries_whole=generations.carries_whole, lag=lag
        )
        before = coordinator.progress.restore
        if ready and not before.can_cutover:
            coordinator.journal.info("restore_caught_up", next="d5agent cutover")
        coordinator.begin_step("following")
        coordinator.progress.restore = replace(
            before, can_cutover=ready, generation=generations.number, carried=generations.carried
        )

    async def _rest(self, coordinator: Coordinator) -> None:
        """Wait a second for operations, or less once somebody waits for the fence."""
        is_urgent = coordinator.state.status(Service.MONITOR_REPLICATION) in ACTIVE
        for _ in range(_URGENT_MOMENTS if is_urgent else _MOMENTS):
            if coordinator.state.fence is not None:
                break
            await coordinator.wait(
                held_up_by(self._refused) if self._refused else "d5agent cutover, following the log meanwhile"
            )

    def _report_lag(self, coordinator: Coordinator) -> float:
        if self._applied is None:
            return 0.0
        capture, horizon = coordinator.progress.capture, coordinator.progress.horizon
        lag = lag_seconds(
            self._applied.commit.position.cluster_time,
            None if capture is None else capture.last_cluster_time,
            None if horizon is None else horizon.lag_seconds,
        )
        coordinator.progress.restore = replace(coordinator.progress.restore, lag_seconds=lag)
        return lag

    async def _replay(self, coordinator: Coordinator, replayer: Replayer, progress: ReplayReporter) -> None:
        began, before, written = self.clock.monotonic(), replayer.checkpoint.operations, replayer.checkpoint.written
        coordinator.begin_step("replaying")
        async with beside(progress.keep_telling()):
            await replayer.apply_log(progress.watched(self._links(coordinator, replayer.reader)))
        await keep_rate(
            self.store,
            run_id=coordinator.state.run_id,
            at=self.clock.now().isoformat(timespec="seconds"),
            documents=replayer.checkpoint.written - written,
            seconds=self.clock.monotonic() - began,
        )
        if replayer.checkpoint.operations - before > _WORTH_A_LINE or coordinator.state.fence is not None:
            coordinator.journal.info(
                "log_applied",
                sequence=replayer.checkpoint.sequence,
                operations=replayer.checkpoint.operations,
                written=replayer.checkpoint.written,
                seconds=round(self.clock.monotonic() - began, 3),
            )

    async def _links(self, coordinator: Coordinator, reader: LogReader) -> AsyncGenerator[Link]:
        """Yield the commits that this start has not applied yet, and first the one that the checkpoint had reached."""
        if self._begins_at is not None:
            yield self._begins_at
            self._begins_at = None
        async for link in reader.links(after=self._applied):
            yield link
            self._applied = link
            if self.is_live:
                self._report_lag(coordinator)

    async def _wait_while_paused(self, coordinator: Coordinator) -> None:
        has_waited = False
        while coordinator.state.is_paused:
            has_waited = True
            coordinator.progress.restore = replace(coordinator.progress.restore, can_cutover=False)
            await coordinator.wait("d5agent resume restore: an operator has paused it")
        if has_waited:
            await coordinator.go_on()

    async def _settle(self, coordinator: Coordinator, replayer: Replayer) -> None:
        """Ask the source for what the log could not tell: it is the truth now that nobody writes."""
        coordinator.begin_step("settling doubts")
        doubts = len(replayer.checkpoint.doubts)
        coordinator.progress.restore = replace(coordinator.progress.restore, in_doubt=doubts)
        await self._letters(coordinator).bury(await replayer.settle())
        coordinator.progress.restore = replace(coordinator.progress.restore, in_doubt=0)
        self._note_replayed()

    def _note_replayed(self) -> None:
        if self.outside is not None:
            self.outside.note_replayed()

    def _letters(self, coordinator: Coordinator) -> DeadLetters:
        return DeadLetters(
            store=self.store,
            reader=LogReader(store=self.store),
            source=self.source,
            holders=Holders(target=self.target_reader),
            run_id=coordinator.state.run_id,
        )

    async def _build_lost_indexes(self, keeper: Keeper | None) -> None:
        """Build what drops and renames have taken and is not built again yet. OperatorError: the target refuses it."""
        if keeper is None:
            return
        await keeper.build(await self.source.collections(), again=True)
        if keeper.refused:
            raise OperatorError(
                "indexes or options of the target cannot be built again on a collection that took their name",
                hint="mend what is named, or set [restore] keep_indexes = false; then type: d5agent start restore",
                refused=keeper.obstacles()[:_SHOWN],
            )

    async def _create_empty_collections(self, coordinator: Coordinator) -> None:
        """Make the collections that the source has and the target lacks: creating one leaves no event."""
        there = set(await self.target_reader.collections())
        for namespace in await self.source.collections():
            if namespace not in there:
                await self.target.create_collection(namespace)
                coordinator.journal.info("collection_created", namespace=str(namespace))

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

    async def _conclude(
        self, coordinator: Coordinator, proof: Verified, report: VerifyReport, evidence: Evidence
    ) -> None:
        held = await self._hold_so_far(coordinator, report)
        overwritten = None if self._overwritten is None else self._overwritten.summary(report, held)
        report.overwritten = overwritten
        key = await store_report(self.store, report, at=proof.at)
        for repaired in report.repaired:
            coordinator.journal.warning("document_repaired", **repaired.to_json())
        if report.refused:
            await self._letters(coordinator).bury(report.refused)
        if not report.is_equal:
            raise OperatorError(
                "the target did not stay equal" if report.is_unstable else "source and target are not equal",
                hint=(_UNSTABLE if report.is_unstable else "")
                + f"the report names each difference: {self.url_of(key)}; then type: d5agent start restore",
                different=report.different,
                first=[difference.to_json() for difference in report.differences[:_SHOWN]],
            )
        outside = OFF if self.outside is None else self.outside.summary(sequence=proof.sequence)
        evidence = replace(evidence, target_hold=held, outside=outside, overwritten=overwritten)
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


def _report_comparison(coordinator: Coordinator, report: VerifyReport, *, total: int) -> None:
    comparison = ComparisonProgress(compared=report.compared, compared_total=total, different=report.different)
    coordinator.progress.restore = replace(coordinator.progress.restore, comparison=comparison)


def _line_of(failure: Failure) -> str:
    return f"{failure.namespace} {id_to_text(failure.write.id)}: {failure.reason}"


def _told_of(keeper: Keeper | None, key: str) -> dict[str, object]:
    """Return what the certificate says of the target's indexes and options. `key`: where they were recorded."""
    built = sorted(map(str, keeper.built)) if keeper is not None else []
    return {"key": key, "kept": keeper is not None, "built_again": built}
