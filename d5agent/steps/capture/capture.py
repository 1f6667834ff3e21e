"""Capture: the batches of an open stream become segments and commits, until it is to stop or the stream fails."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.log.chain import is_rollup_due, token_to_json
from d5agent.core.log.glance import glance
from d5agent.core.log.operation import parse_event
from d5agent.core.log.segmenter import Cut, Segmenter
from d5agent.core.run.progress import CaptureProgress
from d5agent.errors import AgentError, CorruptDataError, LogHeldError, NotKeptError, TransientError
from d5agent.steps.capture.pipeline import ByteBudget, Pipeline, read_ahead
from d5agent.steps.log.after_fence import AfterFence
from d5agent.steps.log.marks import mark_document_id, new_mark_id
from d5agent.steps.log.roll_ups import RollUps
from d5agent.steps.parallel import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.core.log.chain import Commit
    from d5agent.core.log.glance import Event
    from d5agent.core.log.operation import ClusterTime, Operation, Position
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.run.services import PhaseState
    from d5agent.ports import ChangeSource, EventBatch, StateStore
    from d5agent.service import Coordinator
    from d5agent.steps.capture.kept_changes import KeptChanges
    from d5agent.steps.capture.pipeline import Inbox
    from d5agent.steps.log.writer import LogWriter

TOKEN: Final = "data_resume_token"  # noqa: S105 -- the name of a state, as operators know it
_IDLE_SECONDS: Final = 60
_STILL_SECONDS: Final = 300
"""How long the place where the stream goes on may stay the same; the shortest retention is an hour."""
_MIRROR_SECONDS: Final = 60  # of the position's copy: whoever carries on reads the commits
_WATCH_SECONDS: Final = 10
_LOOKS_A_CHECK: Final = 6
_EVENTS_A_TURN: Final = 256
_NEXT_MARK_SECONDS: Final = 0.2
_BATCHES_TO_SEAL: Final = 3  # read after the request to stop, beside those in the inbox, so that a drain ends


def position_to_json(sequence: int, position: Position) -> dict[str, object]:
    """Return the content of `data_resume_token.json`: a copy for operators; the commit is the position."""
    return {
        "version": 1,
        "sequence": sequence,
        "cluster_time": position.cluster_time,
        "token": token_to_json(position.token),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When segments are cut, and how much may wait: read ahead, and on its way to the store.

    `own_segments`: quiet collections of a cut that get a segment each.
    """

    max_segment_bytes: int
    max_segment_seconds: float
    own_segments: int
    ahead_bytes: int
    upload_bytes: int


class Capture:
    """One stretch of capturing, from one open stream."""

    def __init__(
        self,
        *,
        source: ChangeSource,
        states: StateStore,
        kept: KeptChanges,
        coordinator: Coordinator,
        writer: LogWriter,
        limits: Limits,
    ) -> None:
        self._source = source
        self._kept = kept
        self._states = states
        self._coordinator = coordinator
        self._writer = writer
        self._clock = writer.clock
        self._segmenter = Segmenter(
            max_bytes=limits.max_segment_bytes,
            max_age_seconds=limits.max_segment_seconds,
            own_segments=limits.own_segments,
        )
        self._ahead = ByteBudget(max_bytes=limits.ahead_bytes)
        self._uploading = ByteBudget(max_bytes=limits.upload_bytes)
        self._pipeline = Pipeline(writer=writer, room=self._uploading, on_commit=self._note)
        self._committed_at = self._moved_at = self._clock.monotonic()
        self._token: bytes | None = None
        self._mirrored_at: float | None = None
        self._rollup_due = asyncio.Event()
        self._rollup_due.set()  # a crash may have left one out
        self._mark: DocumentId | None = None
        self._after_fence = AfterFence(coordinator=coordinator, writer=writer)
        self._is_caught_up = False
        self._waits_since: float | None = None
        self._not_kept: NotKeptError | None = None
        self._holds_operations = writer.total.operations > 0
        self.is_drained = False
        """Whether capture was stopped with nothing left, neither in the segmenter nor in the inbox."""

    async def begin(self, position: Position, *, after: ClusterTime, sequence: int) -> None:
        """Note where the log begins, as its first commit, whose number is `sequence`.

        `after` is the source's time before the stream was opened.
        """
        await self._note(await self._writer.begin(position, after=after, sequence=sequence))

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """Store, publish, roll up and watch beside the block; at its end all that was taken is published."""
        async with beside(self._roll_up(), self._watch()), self._pipeline.open():
            yield

    async def become_ready(self) -> None:
        """Write a marker that must come out of the stream.

        Without the right to write, capture is ready at once: its beginning is stored, and capturing loses nothing. Its
        end cannot be proved then, so neither restore nor clean goes on before the right is there.
        """
        mark_id = new_mark_id("ready")
        if await self._source.mark(mark_id):
            self._mark = mark_document_id(mark_id)
        else:
            self._coordinator.journal.warning(
                "marker_not_written",
                hint="restore, cutover and clean are refused: grant the agent's user insert on the database d5agent",
            )
            await self._set_ready()

    async def follow(self, batches: AsyncGenerator[EventBatch], first: EventBatch) -> AgentError | None:
        """Capture batches until the service is to stop, or the stream fails; return why it failed.

        In both cases what is in hand is stored: the server may have forgotten it when somebody reads again.
        """
        failure: AgentError | None = None
        try:
            await self._handle(first)
            async with read_ahead(batches, self._ahead) as inbox:
                self._waits_since = self._clock.monotonic()
                await self._follow(inbox)
        except AgentError as error:
            failure = error
        last = self._segmenter.drain()
        if last is not None:
            await self._pipeline.take(last)
        return failure

    async def _follow(self, inbox: Inbox) -> None:
        """Work on batches until the service is to stop and nothing is left, or as many as can be waited for."""
        left: int | None = None
        async for batch in inbox:
            self._waits_since = None
            await self._handle(batch)
            self._waits_since = self._clock.monotonic()
            if self._not_kept is not None:
                raise self._not_kept
            if self._coordinator.stopping.is_set():
                left = (len(inbox) + _BATCHES_TO_SEAL if left is None else left) - 1
                # An open transaction can be committed only once it is read whole; a busy stream never ends.
                self.is_drained = not inbox and (self._segmenter.is_empty or self._segmenter.is_sealed)
                if self.is_drained or left == 0:
                    return

    async def _handle(self, batch: EventBatch) -> None:
        now = self._clock.monotonic()
        segmenter = self._segmenter
        await self._after_fence.look()
        for number, event in enumerate(await self._belonging(batch.events), 1):
            if number % _EVENTS_A_TURN == 0:
                await self._clock.sleep(0)  # the next reply is read, and the one after it asked for, meanwhile
            operation = glance(event)
            for cut in segmenter.add(operation, now=now):
                await self._pipeline.take(cut)
            if operation.is_ours:
                await self._look_for_mark(operation)
            else:
                self._after_fence.add(operation)
            if batch.is_reduced:
                self._tell_reduced(parse_event(event))
        if not batch.events:
            segmenter.seal(batch.position)
            await self._handle_silence(batch)
        self._is_caught_up = not batch.events
        self._report()

    async def _belonging(self, events: Sequence[bytes]) -> Sequence[bytes]:
        """Return the events that belong to the log: a stream that is opened at a time begins with those of that time.

        Once the log holds an operation, nothing is discarded: whatever a source makes of its times, all that comes
        after the mark by which replication became ready is captured (ADR 32).
        """
        begins_after = self._writer.begins_after
        if self._holds_operations or begins_after is None or not events:
            return events
        kept = list(itertools.dropwhile(lambda event: glance(event).cluster_time <= begins_after, events))
        self._holds_operations = bool(kept)
        if len(kept) < len(events):
            await self._discard([glance(event) for event in events[: len(events) - len(kept)]])
        return kept

    async def _discard(self, operations: Sequence[Event]) -> None:
        self._coordinator.journal.info(
            "operations_before_replication_skipped",
            count=len(operations),
            namespace=str(operations[0].namespace),
            cluster_time=str(operations[0].cluster_time),
        )
        if any(operation.is_ours and operation.document_id == self._mark for operation in operations):
            # The source's time has not moved since the log was begun: what an application writes now would be skipped.
            await self._clock.sleep(_NEXT_MARK_SECONDS)
            await self.become_ready()

    async def _handle_silence(self, batch: EventBatch) -> None:
        now = self._clock.monotonic()
        due = self._segmenter.tick(now=now)
        if due is not None:
            await self._pipeline.take(due)
        elif self._segmenter.is_empty and now - self._committed_at >= _IDLE_SECONDS and batch.position:
            # An old position makes the server read its log from there, and one day it is too old.
            self._committed_at = now
            await self._pipeline.take(Cut(segments=(), position=batch.position))
        elif now - self._moved_at >= _STILL_SECONDS:
            self._moved_at = now
            await self._move_on()

    async def _move_on(self) -> None:
        """Write a marker, whose event moves the position of an idle stream: DocumentDB 4.0 names no other."""
        try:
            if await self._source.mark(new_mark_id("idle")):
                return
            reason = "a privilege is missing"
        except AgentError as error:  # nothing is lost by it yet, and the stream itself says what ends capture
            reason = str(error)
        self._coordinator.journal.warning(
            "position_not_moved",
            reason=reason,
            hint="an idle stream's position grows old: grant the agent's user insert on the database d5agent",
        )

    async def _note(self, commit: Commit) -> None:
        """Let the local copy of the position follow a commit, and say what it holds."""
        for ref in commit.segments:
            self._coordinator.journal.info("segment_stored", key=ref.key, operations=ref.count, bytes=ref.bytes)
        self._committed_at = now = self._clock.monotonic()
        if commit.position.token != self._token:
            self._token, self._moved_at = commit.position.token, now
        mirrors = self._mirrored_at is None or now - self._mirrored_at >= _MIRROR_SECONDS
        position = position_to_json(commit.sequence, commit.position)
        await self._states.save(TOKEN, position, mirrors=mirrors)
        if mirrors:
            self._mirrored_at = now
        self._coordinator.progress.failing_since = None
        if is_rollup_due(commit.sequence):
            self._rollup_due.set()
        self._report()

    async def _roll_up(self) -> None:
        rollups = RollUps(store=self._writer.store)
        while True:
            await self._rollup_due.wait()
            self._rollup_due.clear()
            last = self._writer.last
            try:
                written = await rollups.write_missing(0 if last is None else last.commit.sequence + 1)
            except (TransientError, CorruptDataError) as error:  # readers do without, or refuse; capture goes on
                self._coordinator.journal.warning("rollup_not_written", error=str(error), hint=error.hint)
                continue
            if written:
                self._coordinator.journal.info("rollup_written", rollups=written)

    async def _watch(self) -> None:
        """Look after what the stream itself does not tell: that it was switched off, it passes over in silence."""
        for look in itertools.count(1):
            await self._clock.sleep(_WATCH_SECONDS)
            if self._uploading.held:  # a slow store is waited for; each request to it has its time, so this is life
                self._report()
            elif self._waits_since is not None and self._clock.monotonic() - self._waits_since >= _WATCH_SECONDS:
                self._is_caught_up = False  # so is this: an idle stream answers twice a second, a slow one has more
                self._report()
            if look % _LOOKS_A_CHECK == 0:
                try:
                    await self.look_for_gap()
                except NotKeptError as error:
                    self._not_kept = error  # raised where the stream is followed: what is in hand is stored first

    async def look_for_gap(self) -> None:
        """Raise NotKeptError if the source has lost changes since the last look; what fails for now is reported."""
        last = self._writer.last
        try:
            await self._kept.prove(self._writer.writer.run_id, sequence=last.commit.sequence if last else None)
        except (NotKeptError, LogHeldError):
            raise
        except AgentError as error:  # the next look begins where this one did, and the certificate's must succeed
            self._coordinator.journal.warning("source_not_checked", error=str(error), hint=error.hint)

    async def _look_for_mark(self, operation: Event) -> None:
        id_ = operation.document_id
        if id_ is not None:
            self._after_fence.pass_marker(id_)
        if self._mark is not None and id_ == self._mark:
            self._mark = None
            await self._set_ready()

    def _tell_reduced(self, operation: Operation) -> None:
        self._coordinator.journal.warning(
            "event_too_large",
            namespace=str(operation.namespace),
            cluster_time=str(operation.cluster_time),
            has_document=operation.document is not None,
            hint="captured with what fits; without its document, restore reads that from the source",
        )

    async def _set_ready(self) -> None:
        def ready(state: PhaseState) -> PhaseState:
            now = self._clock.now().isoformat(timespec="seconds")
            return state if state.ready_at else replace(state, ready_at=now)

        await self._coordinator.update(ready)
        self._coordinator.journal.info(
            "replication_ready", sequence=self._writer.last.commit.sequence if self._writer.last else 0
        )

    def report_end(self) -> None:
        """Report whether capture has ended with nothing left."""
        self._report(is_drained=self.is_drained)

    def _report(self, *, is_drained: bool | None = None) -> None:
        total, last = self._writer.total, self._writer.last
        if last is None:
            return
        self._coordinator.progress.capture = CaptureProgress(
            operations=total.operations,
            bytes=total.bytes,
            segments=total.segments,
            last_cluster_time=last.commit.position.cluster_time,
            is_caught_up=self._is_caught_up,
            operations_after_fence=self._after_fence.count,
            queue_bytes=self._ahead.held + self._segmenter.bytes + self._uploading.held,
            seen_at=self._clock.monotonic(),
            is_drained=is_drained,
        )
