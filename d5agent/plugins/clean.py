"""clean: closes the change stream, deletes or archives the stored operations and the position; after the proof."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.backup import DUMPS
from d5agent.core.compare.outside import NEEDS_WORD, outside_key, stored_summary
from d5agent.core.compare.verdicts import FULL, red_verdicts
from d5agent.core.log.naming import SEGMENTS, reports_folder
from d5agent.core.log.owners import check_owner
from d5agent.core.reports.certificate import check_certificate
from d5agent.core.reports.final_report import Clearing, encode_report, final_report, final_report_key
from d5agent.core.run.late import check_late_carried_out, covered_sequence
from d5agent.core.run.phase import finish
from d5agent.core.run.services import ACTIVE, Service, Status
from d5agent.core.run.words import accepts_differences
from d5agent.errors import AgentError, CorruptDataError, OperatorError
from d5agent.steps.capture.expiries import Expiries
from d5agent.steps.capture.fence import draw_fence, operations_to_marker
from d5agent.steps.log.archive import LogArchive, archive_prefix
from d5agent.steps.log.owners import owners_of_log
from d5agent.steps.log.reader import LogReader, link_of
from d5agent.steps.probes import require_deleting, require_place
from d5agent.steps.reports import verdicts_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from d5agent.core.compare.outside import OutsideReport
    from d5agent.core.log.chain import Link
    from d5agent.core.run.services import PhaseState
    from d5agent.ports import ChangeSource, Clock, LargeObjectStore, ObjectStore, StateStore
    from d5agent.service import Coordinator
    from d5agent.steps.capture.kept_changes import KeptChanges
    from d5agent.steps.compare.outside import Outside
    from d5agent.steps.replay.target_hold import TargetHold
    from d5agent.steps.servers import Servers

CLEARING: Final = "clearing"
"""The state that holds what is being removed, and how far that is."""
_AGAIN: Final = "d5agent start clean"
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedClusters:
    """Both clusters, while clean compares them. `outside`: what compares what the log does not touch; None: nobody."""

    servers: Servers
    outside: Outside | None = None


@dataclass(slots=True, kw_only=True)
class Clean:
    """Removes what a finished failback leaves; dumps and reports stay. `state_names`: the state files that go.

    `timeout_seconds`: how long it waits for the fence. `keep_log_days`: the log goes to `archive/`; None: it goes.
    `url_of`: where an object is, in an operator's words.
    `open_clusters`: opens the target, once and for all comparisons; a run that is given up may have none.
    """

    source: ChangeSource
    store: ObjectStore
    uploads: LargeObjectStore
    states: StateStore
    kept: KeptChanges
    state_names: tuple[str, ...]
    clock: Clock
    timeout_seconds: float
    hold: TargetHold
    open_clusters: Callable[[], AbstractAsyncContextManager[ComparedClusters]]
    keep_log_days: int | None = None
    url_of: Callable[[str], str] = str
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """See that the log holds all and the proof covers it, then remove; each step may be done again."""
        if coordinator.state.forced_at:
            coordinator.journal.warning("clean_is_forced", at=coordinator.state.forced_at, proof="not asked for")
        await self._check_owner(coordinator)
        await self._give_target_back(coordinator)
        if not coordinator.state.is_clearing:
            await self._check_proof(coordinator)
            await require_place(self.store, reports_folder(coordinator.state.run_id), what="the final report")
            await require_deleting(self.store, SEGMENTS)
            async with self.open_clusters() as clusters:
                await clusters.servers.require_certified(coordinator.state, again=_AGAIN)
                link = await self._compare_and_read(coordinator, clusters.outside)
                await self._stop_replication(coordinator, link, clusters.servers)
            await coordinator.update(lambda state: replace(state, is_clearing=True))
        clearing = await self._clearing(coordinator)
        await self._close_stream(coordinator, clearing)
        await self._archive(coordinator, clearing)
        await self._delete_log(coordinator, clearing)
        await self._abort_uploads(coordinator, clearing)
        await self._write_report(coordinator, clearing)
        await self.hold.forget()
        for name in (*self.state_names, CLEARING):
            await self.states.delete(name)
        if coordinator.state.forced_at:  # a restore that was given up has no end of its own
            await coordinator.update(lambda state: finish(state, now=self._now(), last=Service.CLEAN))

    async def _check_owner(self, coordinator: Coordinator) -> None:
        """Raise unless the log is this run's, by its own commits. Once its deletion has begun, that is known."""
        run_id = coordinator.state.run_id
        begun = await self.states.load(CLEARING)
        if begun is not None and Clearing.from_json(begun).is_deleting_of(run_id):
            return
        try:
            check_owner(await owners_of_log(self.store), run_id)
        except OperatorError:
            # A run that is given up must not keep replication from starting for a log that is not its own.
            await coordinator.update(lambda state: replace(state, is_clearing=False, forced_at=""))
            raise

    async def _check_proof(self, coordinator: Coordinator) -> None:
        """Raise unless the certificate of the restore is in the store, unaltered, and belongs to this log.

        A word on late operations must be carried out, and what it left different accepted.
        """
        check_late_carried_out(coordinator.state)
        proof = coordinator.state.verified
        if proof is None:
            raise _not_verified("all of them")
        certificate = await self.store.get(proof.certificate) if proof.certificate else None
        check_certificate(certificate, await link_of(self.store, proof.sequence))
        await self._check_verdicts(coordinator.state, since=proof.at)

    async def _check_verdicts(self, state: PhaseState, *, since: str) -> None:
        """Raise while a comparison after the proof has found differences that nobody has accepted."""
        for red in red_verdicts(await verdicts_of(self.store, state.run_id, since=since), since=since):
            if accepts_differences(state, found_at=red.at):
                continue
            again = "d5agent verify --full" if red.scope == FULL else "d5agent verify"
            raise OperatorError(
                "a comparison after the certificate has found differences",
                hint=f"nothing was deleted; the report names each difference: {self.url_of(red.key)}. Remove their"
                f" causes, type: {again}, and once it ends with 0: d5agent start clean. To leave the differences, type:"
                f" d5agent start clean --accept-differences {state.run_id}",
                different=red.different,
            )

    async def _compare_and_read(self, coordinator: Coordinator, outside: Outside | None) -> Link:
        """Read to the end of the log, and compare what it does not touch: it tells what that is, and is about to go."""
        if outside is None:
            return await self._read_to_the_end(coordinator)
        coordinator.begin_step("comparing what the log does not touch")
        await outside.finish(coordinator)
        link = await self._read_to_the_end(coordinator)
        # Once more: the log holds all up to a marker by now, so what is in motion is known as such.
        self._check_outside(coordinator, await outside.finish(coordinator))
        return link

    def _check_outside(self, coordinator: Coordinator, found: OutsideReport) -> None:
        """Raise if the target lacks what the log does not touch, unless an operator has accepted that."""
        if not found.needs_word or accepts_differences(coordinator.state, found_at=found.found_at):
            return
        lost = [difference.to_json() for difference in found.differences if difference.kind in NEEDS_WORD]
        run_id = coordinator.state.run_id
        report = self.url_of(outside_key(run_id))
        raise OperatorError(
            "documents that the log does not touch are missing or different in the target",
            hint=f"nothing was deleted; {report} names them; correct them in the target, then type: "
            f"{_AGAIN}; or accept them as they are: {_AGAIN} --accept-differences {run_id}",
            count=f"more than {len(lost)}" if found.is_cut else len(lost),
            first=lost[:_SHOWN],
        )

    async def _read_to_the_end(self, coordinator: Coordinator) -> Link:
        """Draw a fence: replication may have stood still, and what it has not read is in no log."""
        if coordinator.state.status(Service.REPLICATION) not in ACTIVE:
            await coordinator.start(Service.REPLICATION)
        marker = await draw_fence(
            coordinator,
            source=self.source,
            reader=LogReader(store=self.store),
            clock=self.clock,
            timeout_seconds=self.timeout_seconds,
            again=_AGAIN,
        )
        await coordinator.go_on()
        return marker.link

    async def _stop_replication(self, coordinator: Coordinator, link: Link, servers: Servers) -> None:
        """Stop replication, and see that neither the log nor the stream behind it holds what is not verified.

        Until that is known nothing is deleted, and whatever fails, replication goes on.
        """
        await coordinator.stop(Service.REPLICATION)
        try:
            async for newer in LogReader(store=self.store).links(after=link):
                link = newer
            coordinator.begin_step("reading up to a last marker")
            unread = await operations_to_marker(
                self.source,
                link.commit.position,
                clock=self.clock,
                timeout_seconds=self.timeout_seconds,
                again=_AGAIN,
            )
            await self.kept.prove(coordinator.state.run_id, sequence=link.commit.sequence)
            covered = await link_of(self.store, covered_sequence(coordinator.state))
            late = await self._expiries(servers).after(covered, unread=unread)
            if late.others:
                raise _not_verified(late.total)
            if late.total:
                coordinator.journal.info(
                    "expired_after_certificate", operations=late.total, namespaces=dict(late.expired)
                )
        except AgentError:  # one that may pass, too: clean might fail for it, and capture must not stand still
            await coordinator.start(Service.REPLICATION)
            raise

    def _expiries(self, servers: Servers) -> Expiries:
        target = servers.target_reader
        return Expiries(source=servers.source_reader, open_target=lambda: nullcontext(target), store=self.store)

    async def _give_target_back(self, coordinator: Coordinator) -> None:
        """Give the target back, if restore has not: a forced clean goes on without, since the target may be lost."""
        try:
            await self.hold.give_back(coordinator.journal)
        except AgentError as error:
            if not coordinator.state.forced_at:
                raise
            coordinator.journal.warning(
                "target_not_given_back", error=str(error), hint=f"the daemon goes on trying; {error.hint}"
            )

    async def _clearing(self, coordinator: Coordinator) -> Clearing:
        """Return how far an earlier start has come; of the first, what there is to remove."""
        value = await self.states.load(CLEARING)
        run_id = coordinator.state.run_id
        if value is not None and (found := Clearing.from_json(value)).run_id == run_id:
            return found
        archive = "" if self.keep_log_days is None else archive_prefix(run_id)
        last = await LogReader(store=self.store).last_sequence()
        facts = await self._log_facts()
        clearing = Clearing(run_id=run_id, began_at=self._now(), log=facts, last_sequence=last, archive=archive)
        await self.states.save(CLEARING, clearing.to_json())
        return clearing

    async def _log_facts(self) -> dict[str, object] | None:
        try:
            reader = LogReader(store=self.store)
            last, first = await reader.last(), await reader.first_sequence()
        except CorruptDataError:  # of a log that is given up, by force
            return None
        if last is None:
            return None
        total = last.commit.total
        return {
            "commits": last.commit.sequence - first + 1,
            "sha256": last.digest,
            "operations": total.operations,
            "segments": total.segments,
            "bytes": total.bytes,
        }

    async def _close_stream(self, coordinator: Coordinator, clearing: Clearing) -> None:
        """Switch off what the agent has switched on; what somebody else has, may serve somebody else."""
        is_ours = coordinator.state.opened_stream
        if await self.source.close_stream(switches_off=is_ours):
            clearing.change_stream = "left on: the agent did not switch it on"
            coordinator.journal.warning(
                "change_stream_left_on",
                why="the agent did not switch it on",
                to_switch_it_off="docs/runbook, 'clean up'",
            )
        else:
            clearing.change_stream = "off: the agent switched it on, and off" if is_ours else "off"
            coordinator.journal.info("change_stream_closed")
        await self.states.save(CLEARING, clearing.to_json())

    async def _archive(self, coordinator: Coordinator, clearing: Clearing) -> None:
        """Copy the log, if it is to be kept, before any of it is deleted; unless some is deleted already."""
        if self.keep_log_days is None or clearing.is_deleting:
            return
        archived = 0

        async def note(sequence: int, count: int) -> None:
            nonlocal archived
            archived += count
            clearing.archived = sequence
            await self.states.save(CLEARING, clearing.to_json(), mirrors=False)
            coordinator.begin_step("archiving")
            coordinator.progress.clean = replace(coordinator.progress.clean, archived=archived)

        clearing.archive = archive_prefix(clearing.run_id)
        archive = LogArchive(store=self.store, run_id=clearing.run_id, keep_days=self.keep_log_days)
        await archive.copy(after=clearing.archived, on_copied=note)
        coordinator.journal.info(
            "log_archived", prefix=clearing.archive, objects=archived, keep_days=self.keep_log_days
        )

    async def _delete_log(self, coordinator: Coordinator, clearing: Clearing) -> None:
        if self.keep_log_days is None and not clearing.is_deleting:
            clearing.archive = ""  # the setting was taken away before the archive was whole
        clearing.is_deleting = True
        await self.states.save(CLEARING, clearing.to_json())
        # From the beginning each time: a listing that goes on while its objects vanish may pass some over.
        while keys := await self._some_keys():
            await self.store.delete(keys)
            clearing.deleted += len(keys)
            await self.states.save(CLEARING, clearing.to_json())  # mirrored: another host may write the report
            coordinator.begin_step("deleting")
            coordinator.progress.clean = replace(coordinator.progress.clean, deleted=clearing.deleted)
        coordinator.journal.info("log_deleted", objects=clearing.deleted)

    async def _some_keys(self) -> list[str]:
        async for page in self.store.list_objects(SEGMENTS):
            return [found.key for found in page]
        return []

    async def _abort_uploads(self, coordinator: Coordinator, clearing: Clearing) -> None:
        """Abort what dumps have left half-way. A dump at work is left alone: it sees to its uploads itself."""
        if coordinator.state.status(Service.BACKUP) in {Status.PENDING, *ACTIVE}:
            return
        aborted = await self.uploads.abort_uploads(DUMPS)
        if aborted:
            clearing.uploads_aborted += aborted
            await self.states.save(CLEARING, clearing.to_json(), mirrors=False)
            coordinator.journal.info("uploads_aborted", count=aborted, why="a dump had left them half-way")

    async def _write_report(self, coordinator: Coordinator, clearing: Clearing) -> None:
        """Write the final report, once: of a start after the last state is gone it would know less."""
        key = final_report_key(clearing.run_id)
        now = self._now()
        report = final_report(coordinator.state, clearing, keep_log_days=self.keep_log_days, now=now)
        report["outside"] = stored_summary(await self.store.get(outside_key(clearing.run_id)))
        await self.store.put_once(key, encode_report(report))
        coordinator.begin_step("done")
        coordinator.journal.info("final_report_stored", key=self.url_of(key))

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="seconds")


def _not_verified(operations: object) -> OperatorError:
    return OperatorError(
        "the log holds operations that restore has not verified",
        hint="nothing was deleted, and replication goes on; type: d5agent start monitor-restore, which reports them",
        operations=operations,
    )
