"""One run of restore: replays, settles what is in doubt and compares, until the log holds nothing more."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.naming import id_to_text
from d5agent.core.log.operation import ClusterTime
from d5agent.core.reports.certificate import Evidence
from d5agent.core.run.cutover import held_up_by, is_ready, lag_seconds
from d5agent.core.run.progress import ComparisonProgress
from d5agent.core.run.services import ACTIVE, Service
from d5agent.errors import OperatorError
from d5agent.steps.capture.expiries import Expiries
from d5agent.steps.parallel import beside
from d5agent.steps.replay.conflicts import Holders
from d5agent.steps.replay.dead_letters import DeadLetters
from d5agent.steps.replay.rates import keep_rate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.log.chain import Link
    from d5agent.core.replay.replay import Failure
    from d5agent.ports import Clock, ObjectStore
    from d5agent.service import Coordinator
    from d5agent.steps.compare.generations import Generations
    from d5agent.steps.compare.outside import Outside
    from d5agent.steps.compare.overwritten import OverwrittenKeeper
    from d5agent.steps.replay.checkpoint import Checkpoint
    from d5agent.steps.replay.keeper import Keeper
    from d5agent.steps.replay.progress import ReplayReporter
    from d5agent.steps.replay.replayer import Replayer
    from d5agent.steps.servers import Both

_SHOWN: Final = 3
_WORTH_A_LINE: Final = 10_000  # operations in one turn; a live restore takes a turn every second
_MOMENTS: Final = 10
_URGENT_MOMENTS: Final = 2
_EXPIRY_TURNS: Final = 3  # in which nothing but expired documents is restored


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedTarget:
    """What restore keeps of a target before its first write there.

    `keeper`: builds lost indexes again; None: nobody does. `specifications_key`: where they were recorded.
    """

    keeper: Keeper | None
    overwritten: OverwrittenKeeper
    specifications_key: str

    def specifications(self) -> dict[str, Any]:
        """Return what the certificate says of the target's indexes and options."""
        built = [] if self.keeper is None else sorted(map(str, self.keeper.built))
        return {"key": self.specifications_key, "kept": self.keeper is not None, "built_again": built}


@dataclass(slots=True, kw_only=True)
class RestoreRun:
    """The parts of a run whose log is checked and whose target is closed to others.

    `applied`: the last commit that the target holds; None: none is known. `outside`: compares what the log does not
    touch; None: nobody does.
    """

    coordinator: Coordinator
    store: ObjectStore
    clock: Clock
    servers: Both
    closed: ClosedTarget
    replayer: Replayer
    reporter: ReplayReporter
    generations: Generations
    applied: Link | None
    outside: Outside | None
    is_live: bool
    _begins_at: Link | None = field(init=False)
    _refused: list[str] = field(default_factory=list)
    """What holds the cutover up, in words."""
    _expiry_turns: int = 0

    def __post_init__(self) -> None:
        """Have the parts report here."""
        self._begins_at = self.applied
        self.replayer.gate = self._wait_while_paused
        # What was written is about what is touched; a live restore compares some of it more than once.
        self.generations.on_progress = lambda report: self._report_comparison(
            report, total=max(report.compared, self.checkpoint.written)
        )

    @property
    def checkpoint(self) -> Checkpoint:
        """How far the target is."""
        return self.replayer.checkpoint

    @property
    def letters(self) -> DeadLetters:
        """Where documents that the target refuses are stored."""
        return DeadLetters(
            store=self.store,
            reader=self.replayer.reader,
            source=self.replayer.source,
            holders=Holders(target=self.replayer.target_reader),
            run_id=self.checkpoint.run_id,
        )

    async def follow(self) -> None:
        """Replay and compare what comes, until the fence is drawn."""
        while self.coordinator.state.fence is None:
            await self._wait_while_paused()
            began = self.clock.monotonic()
            await self._replay()
            self._report_refused(await self._try_refused())
            await self._compare()
            self._report_turn(turn_seconds=self.clock.monotonic() - began)
            await self._rest()

    async def bring_to_the_end(self) -> VerifyReport:
        """Replay, settle and compare until no operation came in meanwhile; return the comparison's report."""
        while True:
            await self._replay()
            await self._settle()
            await self._create_empty_collections()
            await self._build_lost_indexes()
            self.coordinator.begin_step("verifying")
            report = await self.generations.conclude(self.checkpoint.doubts.whole, applied=self.checkpoint.sequence)
            if not await self._has_more(report):
                break
        report.operations = self.checkpoint.operations
        report.specifications = self.closed.specifications()
        self._report_comparison(report, total=report.compared)
        return report

    async def evidence(self) -> Evidence:
        """Return what a certificate rests on, as far as this run knows it."""
        first = await anext(self.replayer.reader.links())
        return Evidence(
            source=self.servers.source,
            target=self.servers.target,
            first=first,
            comparison=self.generations.comparison,
        )

    async def _replay(self) -> None:
        checkpoint = self.checkpoint
        began, before, written = self.clock.monotonic(), checkpoint.operations, checkpoint.written
        self.coordinator.begin_step("replaying")
        async with beside(self.reporter.keep_telling()):
            await self.replayer.apply_log(self.reporter.watched(self._links()))
        await keep_rate(
            self.store,
            run_id=checkpoint.run_id,
            at=self.clock.now().isoformat(timespec="seconds"),
            documents=checkpoint.written - written,
            seconds=self.clock.monotonic() - began,
        )
        if checkpoint.operations - before > _WORTH_A_LINE or self.coordinator.state.fence is not None:
            self.coordinator.journal.info(
                "log_applied",
                sequence=checkpoint.sequence,
                operations=checkpoint.operations,
                written=checkpoint.written,
                seconds=round(self.clock.monotonic() - began, 3),
            )

    async def _links(self) -> AsyncGenerator[Link]:
        """Yield the commits that this start has not applied yet, and first the one that the checkpoint had reached."""
        if self._begins_at is not None:
            yield self._begins_at
            self._begins_at = None
        async for link in self.replayer.reader.links(after=self.applied):
            yield link
            self.applied = link
            if self.is_live:
                self._report_lag()

    async def _wait_while_paused(self) -> None:
        has_waited = False
        while self.coordinator.state.is_paused:
            has_waited = True
            self.coordinator.progress.restore = replace(self.coordinator.progress.restore, can_cutover=False)
            await self.coordinator.wait("d5agent resume restore: an operator has paused it")
        if has_waited:
            await self.coordinator.go_on()

    async def _try_refused(self) -> list[str]:
        """Try what the target has refused once more; return what holds the cutover up, in words."""
        refused = [_line_of(failure) for failure in await self.replayer.try_refused()]
        keeper = self.closed.keeper
        if keeper is not None:
            await keeper.build(list(keeper.refused), again=True)
            refused += keeper.obstacles()
        return refused

    async def _compare(self) -> None:
        if self.applied is None:
            return
        self.coordinator.begin_step("comparing")
        await self.generations.compare(self.applied, self.checkpoint.doubts.whole)
        self._note_replayed()

    def _report_refused(self, refused: Sequence[str]) -> None:
        """Say which documents and indexes hold the cutover up: behind it they would fail restore."""
        lines = list(refused[:_SHOWN])
        if lines and lines != self._refused:
            self.coordinator.journal.warning(
                "cutover_held_up",
                refused=len(refused),
                first=lines,
                hint="mend the cause on MongoDB; each is tried again within seconds",
            )
        self._refused = lines
        progress = self.coordinator.progress
        progress.restore = replace(progress.restore, refused_documents=len(refused), refused=tuple(lines))

    def _report_turn(self, *, turn_seconds: float) -> None:
        lag, generations = self._report_lag(), self.generations
        ready = not self._refused and is_ready(
            turn_seconds=turn_seconds, carried=generations.carried, carries_whole=generations.carries_whole, lag=lag
        )
        before = self.coordinator.progress.restore
        if ready and not before.can_cutover:
            self.coordinator.journal.info("restore_caught_up", next="d5agent cutover")
        self.coordinator.begin_step("following")
        self.coordinator.progress.restore = replace(
            before, can_cutover=ready, generation=generations.number, carried=generations.carried
        )

    def _report_lag(self) -> float:
        if self.applied is None:
            return 0.0
        progress = self.coordinator.progress
        capture, horizon = progress.capture, progress.horizon
        lag = lag_seconds(
            self.applied.commit.position.cluster_time,
            None if capture is None else capture.last_cluster_time,
            None if horizon is None else horizon.lag_seconds,
        )
        progress.restore = replace(progress.restore, lag_seconds=lag)
        return lag

    async def _rest(self) -> None:
        """Wait a second for operations, or less once somebody waits for the fence."""
        is_urgent = self.coordinator.state.status(Service.MONITOR_REPLICATION) in ACTIVE
        for _ in range(_URGENT_MOMENTS if is_urgent else _MOMENTS):
            if self.coordinator.state.fence is not None:
                break
            await self.coordinator.wait(
                held_up_by(self._refused) if self._refused else "d5agent cutover, following the log meanwhile"
            )

    async def _settle(self) -> None:
        """Ask the source for what the log could not tell: it is the truth now that nobody writes."""
        self.coordinator.begin_step("settling doubts")
        self._report_doubts(len(self.checkpoint.doubts))
        await self.letters.bury(await self.replayer.settle())
        self._report_doubts(0)
        self._note_replayed()

    def _report_doubts(self, in_doubt: int) -> None:
        self.coordinator.progress.restore = replace(self.coordinator.progress.restore, in_doubt=in_doubt)

    def _note_replayed(self) -> None:
        if self.outside is not None:
            self.outside.note_replayed()

    async def _create_empty_collections(self) -> None:
        """Make the collections that the source has and the target lacks: creating one leaves no event."""
        there = set(await self.replayer.target_reader.collections())
        for namespace in await self.replayer.source.collections():
            if namespace not in there:
                await self.replayer.target.create_collection(namespace)
                self.coordinator.journal.info("collection_created", namespace=str(namespace))

    async def _build_lost_indexes(self) -> None:
        """Build what drops and renames have taken and is not built again yet. OperatorError: the target refuses it."""
        keeper = self.closed.keeper
        if keeper is None:
            return
        await keeper.build(await self.replayer.source.collections(), again=True)
        if keeper.refused:
            raise OperatorError(
                "indexes or options of the target cannot be built again on a collection that took their name",
                hint="mend what is named, or set [restore] keep_indexes = false; then type: d5agent start restore",
                refused=keeper.obstacles()[:_SHOWN],
            )

    async def _has_more(self, report: VerifyReport) -> bool:
        """Whether the log holds operations that are not applied yet.

        What expires on the source is applied too, but it never ends: after some turns the rest is left to expire, and
        is listed after the certificate.
        """
        target = self.replayer.target_reader
        expiries = Expiries(source=self.replayer.source, open_target=lambda: nullcontext(target), store=self.store)
        late = await expiries.after(self.applied)
        if late.others:
            self.coordinator.journal.warning("operations_after_fence", operations=late.total)
        elif late.total:
            self._expiry_turns += 1
            self.coordinator.journal.info("expired_after_fence", operations=late.total, namespaces=dict(late.expired))
        if late.others or (late.total and self._expiry_turns <= _EXPIRY_TURNS):
            return True
        await expiries.pass_over(report, at=ClusterTime(int(self.clock.now().timestamp()), 0))
        return False

    def _report_comparison(self, report: VerifyReport, *, total: int) -> None:
        comparison = ComparisonProgress(compared=report.compared, compared_total=total, different=report.different)
        self.coordinator.progress.restore = replace(self.coordinator.progress.restore, comparison=comparison)


def _line_of(failure: Failure) -> str:
    return f"{failure.namespace} {id_to_text(failure.write.id)}: {failure.reason}"
