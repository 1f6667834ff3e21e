"""Compares the documents that the log does not touch, beside a restore, and to the end before clean (ADR 42).

A difference counts only once the log, read up to its end, does not touch its document: what the log touches is replayed
and compared by restore itself. So whatever is in motion on either side is no false difference.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from d5agent.core.compare.compare import DifferenceKind
from d5agent.core.compare.outside import MOST_BYTES, Differences, OutsideReport, cost_of, decode_outside, outside_key
from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.operation import ClusterTime
from d5agent.core.log.segment import touches_of
from d5agent.core.replay.replay import Unresolved
from d5agent.core.replay.ttl import has_expired
from d5agent.core.run.progress import OutsideProgress
from d5agent.errors import AgentError, LogHeldError, OperatorError, TooManyBytesError, TransientError
from d5agent.steps.compare.paced_reader import PacedReader
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.compare.written_since import written_since
from d5agent.steps.log.reader import LogReader
from d5agent.steps.parallel import beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from d5agent.core.compare.compare import Difference
    from d5agent.core.compare.repair import LastEvent
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.ttl import TtlIndex
    from d5agent.ports import Clock, DocumentReader, ObjectStore, Server, TargetChanges
    from d5agent.service import Coordinator
    from d5agent.steps.log.reader import StoredSegment

_REST_BESIDE: Final = 3.0  # times as long as a page took: a quarter of the pace beside a restore
_REST_ALONE: Final = 1.0
_RETRY_SECONDS: Final = 30.0
_SAVE_SECONDS: Final = 10.0
_EVENTS_A_TURN: Final = 500
_FETCH: Final = 50  # documents read at a time
_FETCH_BYTES: Final = 8 * 1024 * 1024  # of these, but for a single one: nobody knows their sizes


class TooManyDifferError(Exception):
    """A collection has more differences than memory is given to them."""


async def forget_comparison(store: ObjectStore, run_id: str) -> None:
    """Forget what an earlier start has compared: it was with another target, or this one was put back since."""
    await store.delete([outside_key(run_id)])


@dataclass(slots=True, kw_only=True)
class _Found(VerifyReport):
    """A comparison's report that keeps the differences, up to `room` bytes."""

    scope: str = "outside"
    room: int
    kept: list[Difference] = field(default_factory=list)

    @override
    def add(self, difference: Difference, event: LastEvent | None = None) -> None:
        """Keep a difference."""
        self.room -= cost_of(difference)
        if self.room < 0:
            raise TooManyDifferError
        self.kept.append(difference)


@dataclass(slots=True, kw_only=True)
class Outside:
    """The comparison of one run. What it has found is stored, so that a restart goes on with the next collection.

    `server`: the target that it is made with. What was found with another one is not taken for this one's.
    `most_bytes`: what its differences may hold in memory.
    """

    source: DocumentReader
    target: DocumentReader
    server: Server
    changes: TargetChanges
    store: ObjectStore
    clock: Clock
    waiting_bytes: int
    most_bytes: int = MOST_BYTES
    _report: OutsideReport | None = None
    _is_replayed: bool = False
    _replayed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_alone: bool = False
    _at_rest: asyncio.Event = field(default_factory=asyncio.Event)
    _saving: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last: Link | None = None
    _saved_at: float = float("-inf")
    _is_saved: bool = False
    _coordinator: Coordinator = field(init=False)
    _readers: tuple[PacedReader, PacedReader] = field(init=False)

    async def keep_comparing(self, coordinator: Coordinator, *, is_held: Callable[[], bool]) -> None:
        """Compare beside a restore until cancelled. The restore never waits for it, nor fails because of it.

        `is_held`: while it says so, neither database is read.
        """
        self._begin(coordinator, rest=_REST_BESIDE, is_held=is_held)
        self._is_replayed = self._is_alone = False
        async with beside(self._keep_position()):
            await self._compare_again_and_again()

    async def _compare_again_and_again(self) -> None:
        while True:
            self._replayed.clear()
            try:
                await self._advance()
                await self._replayed.wait()
            except TransientError as error:
                self._tell_interrupted(error)
                await self.clock.sleep(_RETRY_SECONDS)
            except AgentError as error:  # clean will say so again, and end with it
                self._tell_interrupted(error)
                return

    async def finish(self, coordinator: Coordinator) -> OutsideReport:
        """Compare what is left, ask the log about all that differs, up to its end, and return the report."""
        self._begin(coordinator, rest=_REST_ALONE, is_held=lambda: False)
        self._is_alone = True
        self.note_replayed()
        await self._advance()
        return await self._known()

    def note_replayed(self) -> None:
        """Take note that the target has been brought up to the log's end: what differs now is looked at again."""
        self._is_replayed = True
        self._replayed.set()
        self._at_rest.set()

    async def _keep_position(self) -> None:
        """Keep where the target's change stream was when the replay had ended last: applications write there later."""
        while True:
            await self._at_rest.wait()
            self._at_rest.clear()
            try:
                report = await self._known()
                report.target_position = await self.changes.position()
                await self._save(report)
            except AgentError as error:  # clean then takes what applications wrote for differences
                self._tell_interrupted(error)

    def summary(self, *, sequence: int) -> dict[str, Any]:
        """Return what is known at this moment, for a certificate of the log up to a commit."""
        report = self._report or OutsideReport(run_id=self._coordinator.state.run_id)
        return report.summary(sequence=sequence)

    def _begin(self, coordinator: Coordinator, *, rest: float, is_held: Callable[[], bool]) -> None:
        self._coordinator = coordinator
        source, target = (
            PacedReader(reader=side, clock=self.clock, rest=rest, is_held=is_held)
            for side in (self.source, self.target)
        )
        self._readers = source, target

    async def _known(self) -> OutsideReport:
        if self._report is None:
            run_id = self._coordinator.state.run_id
            body = await self.store.get(outside_key(run_id))
            new = await self._new(run_id)
            found = new if body is None else decode_outside(body, run_id=run_id)
            if not found.is_of(new.target):
                self._require_restore(found, new)
                found = new
            found.target = new.target  # an earlier version did not note it
            self._report = found
        return self._report

    async def _new(self, run_id: str) -> OutsideReport:
        return OutsideReport(run_id=run_id, began_at=self._now(), target=await self.server.facts())

    def _require_restore(self, found: OutsideReport, new: OutsideReport) -> None:
        """Raise OperatorError unless this is a restore, which begins with another target anew: clean is about one."""
        if self._is_alone:
            raise OperatorError(
                "the comparison of documents that the log does not touch was made with another target",
                hint="nothing was deleted; correct [target] uri, then type: d5agent start clean",
                before=() if found.target is None else found.target.hosts,
                now=() if new.target is None else new.target.hosts,
            )

    async def _advance(self) -> None:
        report = await self._known()
        if not report.ended_at:
            await self._compare(report, await self._left(report))
            while not self._is_replayed:
                await self._replayed.wait()
            await self._look_again(report)
            await self._compare(report, await self._left(report))
            await self._count_extra_collections(report)
            await self._ask_log(report, after=None)
            self._is_saved = False
        elif report.differences:
            await self._ask_log(report, after=self._last)
        if not self._is_saved:
            await self._save(report)
        self._tell(report)

    async def _left(self, report: OutsideReport) -> list[Namespace]:
        """Return the source's collections that are not compared yet; what only the target has is counted, not read."""
        found = await self._readers[0].collections()
        report.total = len({*map(str, found), *report.collections})
        return [namespace for namespace in found if str(namespace) not in report.collections]

    async def _compare(self, report: OutsideReport, namespaces: Iterable[Namespace]) -> None:
        for namespace in namespaces:
            # Half of what is left: one collection must not hide the differences of all others.
            held = report.suspects.bytes + report.differences.bytes + report.expired.bytes
            found = _Found(room=(self.most_bytes - held) // 2)
            try:
                await self._verifier(found, on_progress=lambda seen: self._tell(report, seen.compared)).whole(
                    [namespace]
                )
            except TooManyDifferError:
                if not self._is_replayed:
                    continue  # it is compared once they are replayed
                report.is_cut = True
            report.suspects.add(found.kept)
            report.collections[str(namespace)] = found.compared
            self._is_saved = False
            if self.clock.monotonic() - self._saved_at >= _SAVE_SECONDS:
                await self._save(report)

    async def _look_again(self, report: OutsideReport) -> None:
        """Look up again what differed: what was replayed since is equal now."""
        found = _Found(room=2 * self.most_bytes)
        doubts = Unresolved(documents=report.suspects.by_namespace())
        await self._verifier(found).compare_again(doubts)
        report.suspects = Differences()
        report.suspects.add(found.kept)

    async def _count_extra_collections(self, report: OutsideReport) -> None:
        source, target = self._readers
        names = {*await target.collections()} - {*await source.collections()}
        report.extra_collections = {
            str(namespace): await target.count(namespace, exactly=False) for namespace in sorted(names, key=str)
        }

    async def _ask_log(self, report: OutsideReport, *, after: Link | None) -> None:
        """Forget what commits touch: those after `after`, or all of them, as suspects need; the rest differs."""
        before = len(report.differences)
        if report.suspects or report.differences:  # else there is nothing to ask the log for
            await self._read_log(report, after=after)
        if len(report.differences) != before:
            self._is_saved = False
        await self._set_expired_aside(report)
        if self._is_alone and report.has_new and report.target_position is not None:
            await self._ask_target(report, report.target_position)
        report.conclude(now=self._now(), sequence=-1 if self._last is None else self._last.commit.sequence)

    async def _set_expired_aside(self, report: OutsideReport) -> None:
        """Set aside what the target's TTL indexes have deleted, or would at once: DMS copies none of them."""
        at = ClusterTime(int(self.clock.now().timestamp()), 0)
        for namespace, missing in report.missing().items():
            ttl = (await self._readers[1].facts(namespace)).ttl
            if not any(index.deletes for index in ttl):
                continue
            ids = sorted(missing)
            for begin in range(0, len(ids), _FETCH):
                expired = await self._expired(namespace, ids[begin : begin + _FETCH], ttl, at)
                report.set_expired_aside(namespace, expired)

    async def _expired(
        self, namespace: Namespace, ids: Sequence[DocumentId], ttl: Sequence[TtlIndex], at: ClusterTime
    ) -> list[DocumentId]:
        """Return those documents whose version in the source has expired."""
        try:
            versions = await self._readers[0].fetch(namespace, ids, most_bytes=_FETCH_BYTES)
        except TooManyBytesError:
            versions = None  # no more of it here: the error's traceback would be kept
        if versions is not None:
            return [id_ for id_, document in versions.items() if has_expired(ttl, document, at)]
        middle = len(ids) // 2
        return [id_ for half in (ids[:middle], ids[middle:]) for id_ in await self._expired(namespace, half, ttl, at)]

    async def _read_log(self, report: OutsideReport, *, after: Link | None) -> None:
        reader = LogReader(store=self.store)
        async with aclosing(reader.segments_of(reader.links(after=after))) as segments:
            async for link, segment in segments:
                if segment is None:
                    self._last = link
                    continue
                began = self.clock.monotonic()
                await self._forget_touched(report, segment)
                if after is None:
                    await self._readers[0].pause(self.clock.monotonic() - began)

    async def _ask_target(self, report: OutsideReport, position: bytes) -> None:
        """Set aside what was written in the target since the replay: it is no loss of DMS's, nor of the stream's."""
        try:
            report.set_aside(await written_since(self.changes, position, clock=self.clock))
        except LogHeldError:
            raise
        except OperatorError as error:
            self._coordinator.journal.warning(
                "writes_in_target_not_known", error=str(error), hint="what applications wrote there is named too"
            )

    async def _forget_touched(self, report: OutsideReport, segment: StoredSegment) -> None:
        for number, touch in enumerate(touches_of(*segment), 1):
            if number % _EVENTS_A_TURN == 0:
                await self.clock.sleep(0)
            for known in (report.suspects, report.differences, report.expired):
                if touch.document_id is not None:
                    known.touch(touch.namespace, touch.document_id)
                    continue
                for moved in (touch.namespace, touch.rename_to):
                    if moved is not None:
                        known.move(moved)

    def _verifier(self, found: _Found, on_progress: Callable[[VerifyReport], None] = lambda _: None) -> Verifier:
        source, target = self._readers
        return Verifier(
            source=source,
            target=target,
            repair_into=None,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            rounds=1,
            on_progress=on_progress,
            report=found,
        )

    async def _save(self, report: OutsideReport) -> None:
        async with self._saving:
            self._saved_at, self._is_saved = self.clock.monotonic(), True
            try:
                await self.store.put(outside_key(report.run_id), report.encode())
            except AgentError:
                self._is_saved = False
                raise

    def _tell(self, report: OutsideReport, under_way: int = 0) -> None:
        counts, progress = report.counts(), self._coordinator.progress
        found = OutsideProgress(
            is_complete=bool(report.ended_at),
            collections=report.total,
            collections_compared=len(report.collections),
            compared=report.compared + under_way,
            missing=counts[DifferenceKind.MISSING],
            different=counts[DifferenceKind.DIFFERENT],
            extra=counts[DifferenceKind.EXTRA],
            unchecked=len(report.suspects),
        )
        if self._is_alone:  # which clean finishes
            progress.clean = replace(progress.clean, outside=found)
        else:
            progress.restore = replace(progress.restore, outside=found)

    def _tell_interrupted(self, error: AgentError) -> None:
        self._coordinator.journal.warning("outside_comparison_interrupted", error=str(error), hint=error.hint)

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="milliseconds")
