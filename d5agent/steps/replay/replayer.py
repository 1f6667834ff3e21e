"""Brings the target up to date with the log: windows, conflicts, barriers, doubts, checkpoint."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.identity import identity_of
from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import document_id
from d5agent.core.replay.collation import Collated
from d5agent.core.replay.pace import RateLimit
from d5agent.core.replay.replay import (
    Failure,
    Window,
    Write,
    WriteBatch,
    barrier_of,
    split_conflicts,
    waiting_for_later,
)
from d5agent.core.replay.tangle import untangle
from d5agent.core.run.replay_progress import BusyLanes
from d5agent.errors import OperatorError
from d5agent.steps.parallel import beside, task_group
from d5agent.steps.replay.checkpoint import CHECKPOINT
from d5agent.steps.replay.conflicts import ConflictResolver, Parked, without_document
from d5agent.steps.replay.lanes import Lanes
from d5agent.steps.replay.windows import ReplayStep, Windows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from d5agent.core.log.chain import Link
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.pace import Pace
    from d5agent.core.replay.replay import Barrier
    from d5agent.core.replay.tangle import RefusedWrite
    from d5agent.ports import Clock, DocumentReader, StateStore, Target
    from d5agent.service import Journal
    from d5agent.steps.log.reader import LogReader
    from d5agent.steps.replay.checkpoint import Checkpoint
    from d5agent.steps.replay.keeper import Keeper

_FETCH: Final = 50  # documents read from the source at a time, to settle doubts: nobody knows their sizes
_WAITING_PART: Final = 8  # of the windows' bytes, for documents that wait for a later window
_MANY_FAILURES: Final = 10_000  # beyond it the target refuses as a rule, and reading on only hides it
_MIRROR_SECONDS: Final = 1.0  # between two mirrors of the checkpoint: the local one is what a restart goes on from
_MOST_AT_RISK: Final = 1_000  # documents renamed since: a host without its disk would copy them from the source again


@dataclass(slots=True, kw_only=True)
class Replayer:
    """Applies the log to the target, over as many lanes as `pace` allows; windows hold about `window_bytes`.

    What is repeated from an earlier checkpoint ends the same, drops too: all that a collection holds after its drop is
    repeated as well. A rename does not: the old name may have been taken again, and is renamed once more. So the
    checkpoint is saved on both sides of a rename, and nothing else is written in between (ADR 41).
    """

    reader: LogReader
    target: Target
    target_reader: DocumentReader
    source: DocumentReader
    states: StateStore
    journal: Journal
    checkpoint: Checkpoint
    clock: Clock
    pace: Pace
    window_bytes: int
    collated: Collated = field(default_factory=Collated)
    busy: BusyLanes = field(default_factory=BusyLanes)
    max_operations_per_second: float | None = None
    on_progress: Callable[[], None] = lambda: None
    keeper: Keeper | None = None
    """Gives indexes and options back to collections that take a name again; None: they stay lost."""
    gate: Callable[[], Awaitable[None]] | None = None
    """Awaited before each window or barrier is written: whoever wants a pause does not return."""
    _lanes: Lanes = field(init=False)
    _resolver: ConflictResolver = field(init=False)
    _waiting: list[Failure] = field(default_factory=list)
    """Writes that the next window tries again. They are in doubt too: a kill forgets them, and does no harm."""
    _failed: int = 0
    _group: asyncio.TaskGroup = field(init=False)
    _saving: asyncio.Task[None] | None = None
    _mirrored_at: float | None = None
    _is_mirrored: bool = True
    _last_saved: dict[str, Any] = field(default_factory=dict)
    _saves: asyncio.Lock = field(default_factory=asyncio.Lock)
    _at_risk: int = 0

    def __post_init__(self) -> None:
        """Open the lanes."""
        self._lanes = Lanes(
            target=self.target,
            clock=self.clock,
            journal=self.journal,
            pace=self.pace,
            busy=self.busy,
            limit=RateLimit(per_second=self.max_operations_per_second),
        )
        self._resolver = ConflictResolver(lanes=self._lanes, target=self.target_reader)

    async def apply_log(self, links: AsyncIterator[Link]) -> None:
        """Apply commits, in order; the checkpoint is saved after each window that the target has acknowledged.

        Commits that the checkpoint covers are passed over. While one window's checkpoint is saved the next is written.
        When this returns, the checkpoint is mirrored too.
        """
        windows = Windows(reader=self.reader, window_bytes=self.window_bytes, skipped=self.checkpoint.within)
        self._saving = None  # of an earlier call, which may have failed
        async with task_group() as self._group, windows.of(self._beyond(links)) as steps:
            async with beside(self._keep_mirrored()):
                async for step in steps:
                    await self._apply(step)
            await self._saved()
            if not self._is_mirrored:
                await self._save(self.checkpoint.to_json(), mirrors=True)

    async def _beyond(self, links: AsyncIterator[Link]) -> AsyncGenerator[Link]:
        """Yield the commits that the checkpoint does not cover."""
        reached = self.checkpoint.sequence
        async for link in links:
            if link.commit.sequence > reached:
                yield link

    async def try_refused(self) -> Sequence[Failure]:
        """Write what was refused as the source has it now; return what is refused for good: no later event settles it.

        While applications write, the source's version is newer than all that was applied, and what comes later is
        applied over it. The document stays in doubt to the end.
        """
        refusals = self.checkpoint.refusals
        for namespace, ids in refusals.documents():
            for at in range(0, len(ids), _FETCH):
                found = await self.source.fetch(namespace, ids[at : at + _FETCH])
                writes = tuple(Write(id=id_, document=document) for id_, document in found.items())
                failures = await self._write([WriteBatch(namespace=namespace, writes=writes)]) if writes else []
                refusals.tried(namespace, found, failures)
        return refusals.unsettled()

    async def settle(self) -> Sequence[Failure]:
        """Make each document in doubt what the source has, which is the truth now; return what the target refuses.

        In a namespace that is compared whole, a conflict is left to that: the holder may be what a rename left behind.
        """
        doubts, parked = self.checkpoint.doubts, Parked()
        self._waiting = []
        while True:
            before = len(doubts)
            conflicts, refused = await self._settle_once()
            # What one document gave up, another may have now: go round while that settles any. A circle may be larger
            # than what is read from the source at a time.
            is_over = not doubts.documents or len(doubts) == before
            if is_over and not await self._resolver.park(untangle(conflicts).parked, parked):
                break
        await self._resolver.put_back([*refused, *(conflict.failure for conflict in conflicts)], parked)
        left = [conflict.failure for conflict in conflicts if not self._forget(conflict.failure)]
        return refused + left

    async def _settle_once(self) -> tuple[list[RefusedWrite], list[Failure]]:
        """Go once through what is in doubt; return what was refused for a unique value, and for another reason."""
        conflicts: list[RefusedWrite] = []
        refused: list[Failure] = []
        for namespace, ids in list(self.checkpoint.doubts.documents.items()):
            ordered = sorted(ids)
            for at in range(0, len(ordered), _FETCH):
                held, others = split_conflicts(await self._settle(namespace, ordered[at : at + _FETCH]))
                # Without their documents: there may be many.
                conflicts += [
                    replace(c, failure=without_document(c.failure)) for c in await self._resolver.holders.of(held)
                ]
                refused += map(without_document, others)
        await self._save(self.checkpoint.to_json(), mirrors=True)
        return conflicts, refused

    async def _settle(self, namespace: Namespace, ids: Sequence[DocumentId]) -> list[Failure]:
        found = {identity_of(id_): document for id_, document in (await self.source.fetch(namespace, ids)).items()}
        writes = tuple(write for id_ in ids for write in _settled(id_, found.get(identity_of(id_))))
        failures = await self._write([WriteBatch(namespace=namespace, writes=writes)])
        refused = {identity_of(failure.write.id) for failure in failures}
        for id_ in ids:
            if identity_of(id_) not in refused:
                self.checkpoint.doubts.remove(namespace, id_)
        return failures

    def _forget(self, failure: Failure) -> bool:
        """Whether the refused document's namespace is compared whole; then it is in doubt no more by itself."""
        doubts, namespace = self.checkpoint.doubts, failure.namespace
        is_whole = not doubts.whole.isdisjoint({namespace, Namespace(namespace.database)})
        if is_whole:
            doubts.remove(namespace, failure.write.id)
        return is_whole

    async def _apply(self, step: ReplayStep) -> None:
        if self.gate is not None:
            await self.gate()
        self._refuse_collations(step)
        if step.barrier is not None:
            await self._rename(barrier_of(step.barrier), step)
            return
        await self._flush(step.window)
        reached = step.reached
        if step.window.operations or (reached is not None and reached.sequence > self.checkpoint.sequence):
            await self._saved()
            self._reach(step)
            self._saving = self._group.create_task(self._save(self.checkpoint.to_json(), mirrors=self._is_mirror_due()))

    async def _rename(self, barrier: Barrier, step: ReplayStep) -> None:
        """Apply a rename between two checkpoints: repeated after a crash, it meets the target as it left it.

        They are mirrored now and then only. A host that has lost its disk may repeat a rename whose old name has been
        taken again. The new name is compared whole at the end; only so much is to be copied again then.
        """
        await self._saved()
        self._at_risk += await self.target_reader.count(barrier.namespace, exactly=False)
        mirrors = self._at_risk > _MOST_AT_RISK
        if mirrors and not self._is_mirrored:
            await self._save(self.checkpoint.to_json(), mirrors=True)
        await self.target.apply(barrier)
        await self._keep([barrier], [] if barrier.rename_to is None else [barrier.rename_to])
        self.checkpoint.doubts.apply_barrier(barrier)
        self.checkpoint.refusals.apply_barrier(barrier)
        self._waiting = [failure for failure in self._waiting if failure.namespace not in _names_of(barrier)]
        self._reach(step)
        await self._save(self.checkpoint.to_json(), mirrors=mirrors or self._is_mirror_due())

    def _refuse_collations(self, step: ReplayStep) -> None:
        """Raise before what came into the log meanwhile is written to a collection with a collation."""
        barrier = step.barrier
        if barrier is not None and barrier.rename_to is not None:
            self.collated.rename(barrier.namespace, barrier.rename_to)
        for namespace, ids in step.window.touched() if self.collated.locales else ():
            self.collated.see(namespace, ids)
        self.collated.require_none()

    async def _keep(self, barriers: Iterable[Barrier], taken: Iterable[Namespace]) -> None:
        """Note what barriers have taken from their names, and give it to those names that are taken again."""
        if self.keeper is not None:
            for barrier in barriers:
                self.keeper.lose(barrier)
            await self.keeper.build(taken)

    async def _flush(self, window: Window) -> None:
        if not window.operations:
            return
        await self._lanes.remove(window.removals())
        window.take_up(self._waiting)
        batches = window.batches(self.pace.lanes)
        await self._keep(window.removals(), [b.namespace for b in batches if any(w.document for w in b.writes)])
        failures = await self._write(batches)
        window.settle(self.checkpoint.doubts)
        self.checkpoint.refusals.follow(window)
        self.checkpoint.refusals.note(failures)
        for failure in failures:
            self.checkpoint.doubts.add(failure.namespace, failure.write.id)
            self._note(failure)
        self._waiting = waiting_for_later(failures, max_bytes=self.window_bytes // _WAITING_PART)

    def _note(self, failure: Failure) -> None:
        if failure.is_conflict:
            return  # nothing to see: the holder of the value gives it up in a later event
        self._failed += 1
        self.journal.warning("write_refused", namespace=str(failure.namespace), reason=failure.reason)
        if self._failed > _MANY_FAILURES:
            raise OperatorError(
                "the target refuses writes",
                hint="mend the cause, then type: d5agent start restore",
                refused=self._failed,
                namespace=str(failure.namespace),
                reason=failure.reason,
            )

    async def _write(self, batches: Sequence[WriteBatch]) -> list[Failure]:
        self.checkpoint.written += sum(len(batch.writes) for batch in batches)
        return await self._resolver.write(batches)

    def _reach(self, step: ReplayStep) -> None:
        reached, checkpoint = step.reached, self.checkpoint
        if reached is None or reached.sequence == checkpoint.sequence:
            checkpoint.within = max(checkpoint.within, step.within)
        elif reached.sequence > checkpoint.sequence:
            checkpoint.sequence, checkpoint.operations = reached.sequence, reached.total.operations
            checkpoint.within = step.within

    async def _save(self, checkpoint: dict[str, Any], *, mirrors: bool) -> None:
        async with self._saves:
            await self.states.save(CHECKPOINT, checkpoint, mirrors=mirrors)
            self._last_saved, self._is_mirrored = checkpoint, mirrors
            if mirrors:
                self._mirrored_at, self._at_risk = self.clock.monotonic(), 0
        self.on_progress()

    async def _keep_mirrored(self) -> None:
        """Mirror what is on disk where the next save is long in coming: a target may keep a write waiting."""
        while True:
            await self.clock.sleep(_MIRROR_SECONDS)
            async with self._saves:
                if not self._is_mirrored:
                    await self.states.save(CHECKPOINT, self._last_saved, mirrors=True)
                    self._is_mirrored, self._mirrored_at = True, self.clock.monotonic()

    def _is_mirror_due(self) -> bool:
        return self._mirrored_at is None or self.clock.monotonic() - self._mirrored_at >= _MIRROR_SECONDS

    async def _saved(self) -> None:
        """Return when the newest checkpoint is saved."""
        if self._saving is not None:
            await self._saving
            self._saving = None


def _names_of(barrier: Barrier) -> set[Namespace | None]:
    return {barrier.namespace, barrier.rename_to}


def _settled(id_: DocumentId, document: bytes | None) -> Iterator[Write]:
    """Yield what makes a document what the source has. Its `_id` may be of another type by now, and one place still."""
    found = id_ if document is None else document_id(document)
    if found != id_:
        yield Write(id=id_, document=None)
    yield Write(id=found, document=document)
