"""Brings the target up to date with the log: windows, conflicts, barriers, doubts, checkpoint."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.replay import (
    Doubts,
    Failure,
    Window,
    Write,
    WriteBatch,
    again,
    barrier_of,
    conflict_rounds,
    parked,
    split_deletes,
)
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from d5agent.core.log import Commit, Link
    from d5agent.core.operation import Namespace, Operation
    from d5agent.core.raw import DocumentId
    from d5agent.ports import DocumentReader, Journal, StateStore, Target
    from d5agent.steps.log_reader import LogReader

CHECKPOINT: Final = "restore_checkpoint"
_VERSION: Final = 1
_FETCH: Final = 50  # documents read from the source at a time, to settle doubts: nobody knows their sizes
_MANY_FAILURES: Final = 10_000  # beyond it the target refuses as a rule, and reading on only hides it


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """How far the target is: everything up to commit `sequence` is applied, but for what is in doubt."""

    run_id: str
    sequence: int = -1
    operations: int = 0
    written: int = 0
    doubts: Doubts = field(default_factory=Doubts)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "version": _VERSION,
            "run_id": self.run_id,
            "sequence": self.sequence,
            "operations": self.operations,
            "written": self.written,
            "doubts": self.doubts.to_json(),
        }


async def load_checkpoint(states: StateStore, run_id: str) -> Checkpoint:
    """Return the checkpoint of this run; of another run, or none at all: the beginning.

    OperatorError: it was written by a newer version.
    """
    value = await states.load(CHECKPOINT)
    if value is None or ("run_id" in value and value["run_id"] != run_id):
        return Checkpoint(run_id=run_id)
    if value["version"] != _VERSION:
        raise OperatorError(
            "the restore checkpoint is of another version",
            hint="run the d5agent version that wrote it, or a newer one",
            version=value["version"],
        )
    try:
        return Checkpoint(
            run_id=value["run_id"],
            sequence=value["sequence"],
            operations=value["operations"],
            written=value["written"],
            doubts=Doubts.from_json(value["doubts"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            "the restore checkpoint is damaged",
            hint="move restore_checkpoint.json aside, on disk and under state/: restore begins anew, which is safe",
            reason=type(error).__name__,
        ) from error


@dataclass(slots=True, kw_only=True)
class Replayer:
    """Applies the log to the target. `lanes` write at the same time; a window holds about `window_bytes`."""

    reader: LogReader
    target: Target
    source: DocumentReader
    states: StateStore
    journal: Journal
    checkpoint: Checkpoint
    lanes: int
    window_bytes: int
    on_progress: Callable[[], None] = lambda: None
    _window: Window = field(default_factory=Window)
    _reached: int = -1
    _operations: int = 0
    _has_barrier: bool = False
    _is_due: bool = False
    """Whether a window was written that the checkpoint does not know of yet."""
    _failed: int = 0

    async def apply_log(self, links: AsyncIterator[Link]) -> None:
        """Apply commits, in order; the checkpoint is saved after each window that the target has acknowledged.

        Commits that the checkpoint covers are passed over.
        """
        async with aclosing(self.reader.operations_of(self._beyond(links))) as operations:
            async for link, operation in operations:
                if operation is None:
                    await self._end_commit(link.commit)
                else:
                    await self._apply(operation)
        await self._flush()
        await self._save()

    async def _beyond(self, links: AsyncIterator[Link]) -> AsyncGenerator[Link]:
        """Yield the commits that the checkpoint does not cover."""
        reached = self.checkpoint.sequence
        async for link in links:
            if link.commit.sequence > reached:
                yield link

    async def settle(self) -> Sequence[Failure]:
        """Make each document in doubt what the source has, which is the truth now; return what the target refuses."""
        doubts = self.checkpoint.doubts
        while True:
            before, refused = len(doubts), []
            for namespace, ids in list(doubts.documents.items()):
                ordered = sorted(ids)
                for at in range(0, len(ordered), _FETCH):
                    refused += await self._settle(namespace, ordered[at : at + _FETCH])
            await self._save()
            # What one document gave up, another may have now: go round while that settles any.
            if not doubts.documents or len(doubts) == before:
                return refused

    async def _settle(self, namespace: Namespace, ids: Sequence[DocumentId]) -> list[Failure]:
        found = await self.source.fetch(namespace, ids)
        writes = tuple(Write(id=id_, document=found.get(id_)) for id_ in ids)
        failures = await self._write([WriteBatch(namespace=namespace, writes=writes)])
        for id_ in set(ids) - {failure.write.id for failure in failures}:
            self.checkpoint.doubts.remove(namespace, id_)
        return failures

    async def _end_commit(self, commit: Commit) -> None:
        self._reached, self._operations = commit.sequence, commit.total.operations
        if self._is_due:
            await self._flush()  # what is left of the commit: a checkpoint covers whole ones
            await self._save()
            self._is_due = False
        elif self._has_barrier:
            await self._save()
        self._has_barrier = False

    async def _apply(self, operation: Operation) -> None:
        if operation.is_ours:
            return
        if operation.is_barrier:
            await self._apply_barrier(operation)
            return
        self._window.add(operation)
        if self._window.bytes >= self.window_bytes:
            await self._flush()  # within a commit there is no checkpoint: it is read again from its beginning
            self._is_due = True

    async def _apply_barrier(self, operation: Operation) -> None:
        # Checkpoints on both sides: repeated after a crash, it meets the target as it left it, and nothing later.
        await self._flush()
        await self._save()
        await self.target.apply(barrier_of(operation))
        self.checkpoint.doubts.apply_barrier(operation)
        self._has_barrier = True

    async def _flush(self) -> None:
        window, self._window = self._window, Window()
        if not window.operations:
            return
        failures = await self._write(window.batches(self.lanes))
        window.settle(self.checkpoint.doubts)
        for failure in failures:
            self.checkpoint.doubts.add(failure.namespace, failure.write.id)
            self._note(failure)
        self.on_progress()

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

    async def _save(self) -> None:
        if self._reached > self.checkpoint.sequence:
            self.checkpoint.sequence, self.checkpoint.operations = self._reached, self._operations
        await self.states.save(CHECKPOINT, self.checkpoint.to_json())
        self.on_progress()

    async def _write(self, batches: Sequence[WriteBatch]) -> list[Failure]:
        """Write batches; what fails for a unique value is tried again, and cycles are broken. Returns the rest."""
        self.checkpoint.written += sum(len(batch.writes) for batch in batches)
        deletes, rest = split_deletes(batches)
        failures = await self._write_all(deletes)
        conflicts, final = conflict_rounds(failures + await self._write_all(rest))
        while conflicts:
            before = len(conflicts)
            conflicts, refused = conflict_rounds(await self._write_all(again(conflicts)))
            final += refused
            if len(conflicts) == before:
                break
        if not conflicts:
            return final
        await self._write_all(parked(conflicts))
        return final + await self._write_all(again(conflicts))

    async def _write_all(self, batches: Sequence[WriteBatch]) -> list[Failure]:
        results = await parallel(self.target.write, batches, limit=self.lanes)
        return [failure for failures in results for failure in failures]
