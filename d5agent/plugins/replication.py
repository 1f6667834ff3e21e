"""replication: change stream → segments in S3 → position."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.log import Commit, Link, Writer, is_rollup_due, token_to_json
from d5agent.core.operation import Position, glance, parse_event
from d5agent.core.phase import ACTIVE, Service
from d5agent.core.segmenter import Cut, Segmenter
from d5agent.errors import AgentError, LogHeldError, OperatorError, TransientError
from d5agent.steps.log_reader import LogReader
from d5agent.steps.log_writer import LogWriter
from d5agent.steps.marks import mark_document_id, new_mark_id
from d5agent.steps.parallel import beside
from d5agent.steps.pipeline import Pipeline, Room, read_ahead
from d5agent.steps.roll_ups import RollUps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from d5agent.core.operation import Event, Operation
    from d5agent.core.phase import PhaseState
    from d5agent.core.raw import DocumentId
    from d5agent.ports import ChangeSource, Clock, Coordinator, EventBatch, ObjectStore, StateStore

TOKEN: Final = "data_resume_token"  # noqa: S105 -- the name of a state, as operators know it
_IDLE_SECONDS: Final = 60
_IDLE_SECONDS_BEFORE_FENCE: Final = 1
_MIRROR_SECONDS: Final = 60  # of the position's copy: whoever carries on reads the commits
_WATCH_SECONDS: Final = 10
_LOOKS_A_CHECK: Final = 6
_AFTER_FENCE_LINES: Final = 1000  # one line in the journal for so many operations after the fence
_BATCHES_TO_SEAL: Final = 3  # read after the request to stop, so that what is in hand can be committed


@dataclass(slots=True, kw_only=True)
class Replication:
    """Captures every operation. `agent_id` and `host` say who writes the log.

    `ahead_bytes` may be read and wait to be worked on, `upload_bytes` be on their way to the store.
    """

    source: ChangeSource
    store: ObjectStore
    states: StateStore
    clock: Clock
    agent_id: str
    host: str
    max_segment_bytes: int
    max_segment_seconds: float
    ahead_bytes: int
    upload_bytes: int
    compresses: bool = False
    drains: bool = True

    async def run(self, coordinator: Coordinator) -> None:
        """Open the log and the stream, become ready, and capture until stopped."""
        last = await self._last_commit(coordinator)
        # Enabled now, after operations were captured, it would not tell of those in between.
        await self.source.check(may_enable=last is None)
        if last is not None:
            last = await self._claim(coordinator, last)
        # Asked before the stream opens: what happens in between is then in the stream, not before it.
        start = Position(cluster_time=await self.source.now(), token=None) if last is None else last.commit.position
        async with self.source.stream(start) as batches:
            first = await anext(batches)
            capture = _Capture(self, coordinator, self._writer(coordinator, last))
            if last is None:
                await capture.begin(first.position or start)
            async with capture.at_work():
                await capture.become_ready()
                failure = await capture.follow(batches, first)
        if failure is not None:
            raise failure

    async def _last_commit(self, coordinator: Coordinator) -> Link | None:
        last = await LogReader(store=self.store).last()
        if last is not None and last.commit.writer.run_id != coordinator.state.run_id:
            raise OperatorError(
                "the bucket holds the log of another run",
                hint="clean that run first (its state is under state/), or choose another [store] prefix",
                run_id=last.commit.writer.run_id,
                host=last.commit.writer.host,
                since=last.commit.writer.since,
            )
        return last

    async def _claim(self, coordinator: Coordinator, last: Link) -> Link:
        """Publish a commit of our own after another agent's: wherever that one wakes up, its next number is taken.

        It may have woken up before, and commit in between: then that is where we go on.
        """
        while last.commit.writer.agent_id != self.agent_id:
            writer = self._writer(coordinator, last)
            try:
                await writer.publish((), last.commit.position)
            except LogHeldError:
                newer = await self._last_commit(coordinator)
                if newer is None or newer == last:
                    raise
                last = newer
                continue
            coordinator.journal.info(
                "log_claimed", sequence=last.commit.sequence + 1, host_before=last.commit.writer.host
            )
            return writer.last or last
        return last

    def _writer(self, coordinator: Coordinator, last: Link | None) -> LogWriter:
        who = Writer(
            run_id=coordinator.state.run_id,
            agent_id=self.agent_id,
            host=self.host,
            since=self.clock.now().isoformat(timespec="seconds"),
        )
        return LogWriter(store=self.store, clock=self.clock, writer=who, last=last, compresses=self.compresses)


def position_to_json(sequence: int, position: Position) -> dict[str, object]:
    """Return the content of `data_resume_token.json`: a copy for operators; the commit is the position."""
    return {
        "version": 1,
        "sequence": sequence,
        "cluster_time": position.cluster_time,
        "token": token_to_json(position.token),
    }


class _Capture:
    """One stretch of capturing, from one open stream."""

    def __init__(self, service: Replication, coordinator: Coordinator, writer: LogWriter) -> None:
        self._service = service
        self._coordinator = coordinator
        self._writer = writer
        self._segmenter = Segmenter(max_bytes=service.max_segment_bytes, max_age_seconds=service.max_segment_seconds)
        self._ahead = Room(max_bytes=service.ahead_bytes)
        self._uploading = Room(max_bytes=service.upload_bytes)
        self._pipeline = Pipeline(writer=writer, room=self._uploading, on_commit=self._note)
        self._committed_at = service.clock.monotonic()
        self._mirrored_at: float | None = None
        self._rollup_due = asyncio.Event()
        self._rollup_due.set()  # a crash may have left one out
        self._mark: DocumentId | None = None
        self._after_fence = 0

    async def begin(self, position: Position) -> None:
        """Note where the log begins, as its first commit."""
        await self._note(await self._writer.publish((), position))

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """Store, publish, roll up and watch beside the block; at its end all that was taken is published."""
        async with beside(self._roll_up(), self._watch()), self._pipeline.open():
            yield

    async def become_ready(self) -> None:
        """Write a mark that must come out of the stream; without the right to write, be ready at once."""
        mark_id = new_mark_id("ready")
        if await self._service.source.mark(mark_id):
            self._mark = mark_document_id(mark_id)
        else:
            self._coordinator.journal.warning("mark_not_written", hint="grant the agent's user insert on d5agent")
            await self._set_ready()

    async def follow(self, batches: AsyncGenerator[EventBatch], first: EventBatch) -> AgentError | None:
        """Capture batches until the service is to stop, or the stream fails; return why it failed.

        In both cases what is in hand is stored: the server may have forgotten it when somebody reads again.
        """
        failure: AgentError | None = None
        try:
            await self._handle(first)
            async with read_ahead(batches, self._ahead) as inbox:
                await self._follow(aiter(inbox))
        except AgentError as error:
            failure = error
        last = self._segmenter.drain()
        if last is not None:
            await self._pipeline.take(last)
        return failure

    async def _follow(self, batches: AsyncIterator[EventBatch]) -> None:
        left = _BATCHES_TO_SEAL
        async for batch in batches:
            await self._handle(batch)
            if self._coordinator.stopping.is_set():
                left -= 1
                if self._segmenter.is_empty or self._segmenter.is_sealed or left == 0:
                    return

    async def _handle(self, batch: EventBatch) -> None:
        now = self._service.clock.monotonic()
        segmenter, fence = self._segmenter, self._coordinator.state.fence
        for event in batch.events:
            operation = glance(event)
            for cut in segmenter.add(operation, now=now):
                await self._pipeline.take(cut)
            if operation.is_ours:
                await self._look_for_mark(operation)
            elif fence is not None and operation.cluster_time > fence.cluster_time:
                self._tell_after_fence(operation)
            if batch.is_reduced:
                self._tell_reduced(parse_event(event))
        if not batch.events:
            segmenter.seal(batch.position)
            await self._handle_silence(batch)
        self._report(is_caught_up=not batch.events)

    async def _handle_silence(self, batch: EventBatch) -> None:
        now = self._service.clock.monotonic()
        due = self._segmenter.tick(now=now)
        if due is not None:
            await self._pipeline.take(due)
        elif self._segmenter.is_empty and now - self._committed_at >= self._idle_seconds() and batch.position:
            # An old position makes the server read its log from there, and one day it is too old.
            self._committed_at = now
            await self._pipeline.take(Cut(segments=(), position=batch.position))

    def _idle_seconds(self) -> float:
        # Without a mark, the fence is a position that has passed a time: it must not take a minute to see it.
        fencing = self._coordinator.state.status(Service.MONITOR_REPLICATION) in ACTIVE
        return _IDLE_SECONDS_BEFORE_FENCE if fencing else _IDLE_SECONDS

    async def _note(self, commit: Commit) -> None:
        """Let the local copy of the position follow a commit, and say what it holds."""
        for ref in commit.segments:
            self._coordinator.journal.info("segment_stored", key=ref.key, operations=ref.count, bytes=ref.bytes)
        self._committed_at = now = self._service.clock.monotonic()
        mirrors = self._mirrored_at is None or now - self._mirrored_at >= _MIRROR_SECONDS
        position = position_to_json(commit.sequence, commit.position)
        await self._service.states.save(TOKEN, position, mirrors=mirrors)
        if mirrors:
            self._mirrored_at = now
        if is_rollup_due(commit.sequence):
            self._rollup_due.set()

    async def _roll_up(self) -> None:
        rollups = RollUps(store=self._service.store)
        while True:
            await self._rollup_due.wait()
            self._rollup_due.clear()
            last = self._writer.last
            try:
                written = await rollups.write_missing(0 if last is None else last.commit.sequence + 1)
            except TransientError as error:  # a reader does without; the next one writes both
                self._coordinator.journal.warning("rollup_not_written", error=str(error), hint=error.hint)
                continue
            if written:
                self._coordinator.journal.info("rollup_written", rollups=written)

    async def _watch(self) -> None:
        """Look after what the stream itself does not tell: that it was switched off, it passes over in silence."""
        for look in itertools.count(1):
            await self._service.clock.sleep(_WATCH_SECONDS)
            if self._uploading.held:  # a slow store is waited for; each request to it has its time, so this is life
                self._report(is_caught_up=False)
            if look % _LOOKS_A_CHECK == 0:
                with suppress(TransientError):  # the stream meets the same, and has its own patience
                    await self._service.source.check(may_enable=False)

    async def _look_for_mark(self, operation: Event) -> None:
        if self._mark is not None and operation.document_id == self._mark:
            self._mark = None
            await self._set_ready()

    def _tell_after_fence(self, operation: Event) -> None:
        """Make an application's write after the fence known; it is not lost."""
        self._after_fence += 1
        if self._after_fence % _AFTER_FENCE_LINES == 1:
            self._coordinator.journal.warning(
                "operation_after_fence",
                namespace=str(operation.namespace),
                cluster_time=str(operation.cluster_time),
                count=self._after_fence,
            )

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
            now = self._service.clock.now().isoformat(timespec="seconds")
            return state if state.ready_at else replace(state, ready_at=now)

        await self._coordinator.update(ready)
        self._coordinator.journal.info(
            "replication_ready", sequence=self._writer.last.commit.sequence if self._writer.last else 0
        )

    def _report(self, *, is_caught_up: bool) -> None:
        total, last = self._writer.total, self._writer.last
        if last is None:
            return
        self._coordinator.report(
            operations=total.operations,
            bytes=total.bytes,
            segments=total.segments,
            last_cluster_time=list(last.commit.position.cluster_time),
            is_caught_up=is_caught_up,
            operations_after_fence=self._after_fence,
            queue_bytes=self._ahead.held + self._segmenter.bytes + self._uploading.held,
        )
