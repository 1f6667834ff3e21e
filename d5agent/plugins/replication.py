"""replication: change stream → segments in S3 → position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from d5agent.core.log.chain import Link, WriterIdentity
from d5agent.core.log.operation import Position
from d5agent.core.log.owners import advice_on
from d5agent.errors import LogHeldError, OperatorError
from d5agent.steps.capture.capture import Capture, Limits
from d5agent.steps.log.numbering import first_number
from d5agent.steps.log.reader import LogReader, no_log
from d5agent.steps.log.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.ports import ChangeSource, Clock, ObjectStore, StateStore
    from d5agent.service import Coordinator
    from d5agent.steps.capture.kept_changes import KeptChanges


@dataclass(slots=True, kw_only=True)
class Replication:
    """Captures every operation. `agent_id` and `host` say who writes the log.

    `ahead_bytes` may be read and wait to be worked on, `upload_bytes` be on their way to the store.
    """

    source: ChangeSource
    store: ObjectStore
    states: StateStore
    kept: KeptChanges
    clock: Clock
    agent_id: str
    host: str
    max_segment_bytes: int
    max_segment_seconds: float
    own_segments: int
    ahead_bytes: int
    upload_bytes: int
    compresses: bool = False
    url_of: Callable[[str], str] = str
    drains: bool = True

    async def run(self, coordinator: Coordinator) -> None:
        """Open the log and the stream, become ready, and capture until stopped."""
        await self.kept.refuse_gap(coordinator.state.run_id)
        last = await self._last_commit(coordinator)
        await self._check_source(coordinator, may_enable=last is None)
        # Before the stream is opened: the last commit may stand behind a gap that nobody has noticed yet (ADR 38).
        await self._prove_kept(coordinator, last)
        if last is not None:
            last = await self._claim(coordinator, last)
        # Asked before the stream opens: what happens after it is captured, what happened up to it is not (ADR 32).
        start = Position(cluster_time=await self.source.now(), token=None) if last is None else last.commit.position
        sequence = await first_number(self.store, coordinator.journal) if last is None else 0
        async with self.source.stream(start) as batches:
            first = await anext(batches)
            capture = self._capture(coordinator, last)
            if last is None:
                await capture.begin(first.position or start, after=start.cluster_time, sequence=sequence)
            async with capture.at_work():
                await capture.become_ready()
                failure = await capture.follow(batches, first)
        if failure is not None:
            raise failure
        await capture.look_for_gap()
        capture.report_end()

    async def _prove_kept(self, coordinator: Coordinator, last: Link | None) -> None:
        since = await self.kept.prove(coordinator.state.run_id, sequence=last.commit.sequence if last else None)
        if since is not None:
            coordinator.journal.warning(
                "stream_not_proved_before",
                cluster_time=str(since),
                hint="an earlier version began the log; whether its stream had a gap before that time is not known."
                ' Keep [verify] outside = "full": restore compares what the log does not touch, too',
            )

    async def _check_source(self, coordinator: Coordinator, *, may_enable: bool) -> None:
        """See that changes are kept, and note beforehand if the agent switches that on: then `clean` switches it off.

        After the first commit it is not switched on: it would not tell of the operations in between.
        """

        async def note() -> None:
            await coordinator.update(lambda state: replace(state, opened_stream=True))
            coordinator.journal.info("change_stream_enabled")

        was_opened = coordinator.state.opened_stream
        try:
            await self.source.check(before_enabling=note if may_enable else None)
        except OperatorError:  # it could not be switched on: whoever does it now is somebody else
            await coordinator.update(lambda state: replace(state, opened_stream=was_opened))
            raise

    async def _last_commit(self, coordinator: Coordinator) -> Link | None:
        last = await LogReader(store=self.store).last()
        if last is None and coordinator.state.ready_at:
            raise no_log(self.url_of(""))  # captured from now on, a new log would hide what is lost
        if last is not None and last.commit.writer.run_id != coordinator.state.run_id:
            raise OperatorError(
                "the bucket holds the log of another run",
                hint=advice_on(last.commit.writer.run_id),
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
        who = WriterIdentity(
            run_id=coordinator.state.run_id,
            agent_id=self.agent_id,
            host=self.host,
            since=self.clock.now().isoformat(timespec="seconds"),
        )
        return LogWriter(store=self.store, clock=self.clock, writer=who, last=last, compresses=self.compresses)

    def _capture(self, coordinator: Coordinator, last: Link | None) -> Capture:
        limits = Limits(
            max_segment_bytes=self.max_segment_bytes,
            max_segment_seconds=self.max_segment_seconds,
            own_segments=self.own_segments,
            ahead_bytes=self.ahead_bytes,
            upload_bytes=self.upload_bytes,
        )
        writer = self._writer(coordinator, last)
        return Capture(
            source=self.source,
            states=self.states,
            kept=self.kept,
            coordinator=coordinator,
            writer=writer,
            limits=limits,
        )
