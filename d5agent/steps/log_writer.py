"""Writes the log: segments first, then the commit that publishes them. Nobody else moves the position (ADR 2)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from d5agent.core.log import (
    Commit,
    Link,
    Total,
    Writer,
    decode_commit,
    digest,
    due_rollup,
    encode_commit,
    encode_rollup,
    grown,
    rollup_key,
)
from d5agent.core.naming import commit_key
from d5agent.errors import CorruptDataError, LogHeldError, OperatorError
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from d5agent.core.operation import Position
    from d5agent.core.segment import Segment, SegmentRef
    from d5agent.core.segmenter import Cut
    from d5agent.ports import Clock, ObjectStore

_PARALLEL_PUTS = 16
_MOST_ORDINALS = 10_000  # a key taken so often is no crash's orphan: something writes in a loop


def held_by(commit: Commit) -> LogHeldError:
    """Return the error of the agent that lost a race for a sequence number."""
    return LogHeldError(
        "another agent writes this log",
        hint="stop one of the two agents; what is stored is whole, and this one wrote nothing after the other",
        host=commit.writer.host,
        run_id=commit.writer.run_id,
        since=commit.writer.since,
        sequence=commit.sequence,
    )


@dataclass(slots=True, kw_only=True)
class LogWriter:
    """The one writer of a log. `last` is the newest commit that it knows of; None: the log is empty."""

    store: ObjectStore
    clock: Clock
    writer: Writer
    last: Link | None
    _stored: list[SegmentRef] = field(default_factory=list)

    @property
    def total(self) -> Total:
        """What the log holds."""
        return Total() if self.last is None else self.last.commit.total

    async def take(self, cut: Cut) -> Commit | None:
        """Store what was cut and, where its position says so, commit all that was stored since the last commit.

        The order is the promise: store first, then remember. A crash in between leaves orphans, which nobody reads.
        """
        self._stored += await parallel(self._store_segment, cut.segments, limit=_PARALLEL_PUTS)
        if cut.position is None:
            return None
        commit = await self._commit(tuple(self._stored), cut.position)
        self._stored = []
        return commit

    async def _commit(self, refs: tuple[SegmentRef, ...], position: Position) -> Commit:
        """Publish stored segments and move the position, as one write-once object.

        LogHeldError: another agent has written this sequence number. What was stored stays an orphan.
        """
        before = self.last
        commit = Commit(
            sequence=0 if before is None else before.commit.sequence + 1,
            writer=self.writer,
            written_at=self.clock.now().isoformat(timespec="milliseconds"),
            previous=None if before is None else before.digest,
            segments=refs,
            position=_not_before(position, before),
            total=grown(self.total, refs),
        )
        body = encode_commit(commit)
        if not await self.store.put_once(commit.key, body):
            await self._check_ours(commit.key, body)
        self.last = Link(commit=commit, digest=digest(body))
        await self._roll_up(commit.sequence)
        return commit

    async def _check_ours(self, key: str, body: bytes) -> None:
        # A put that timed out may have been stored; its repetition then finds the key taken, by ourselves.
        stored = await self.store.get(key)
        if stored is None:
            raise CorruptDataError("a commit has vanished", hint="who deletes objects in the bucket?", key=key)
        if stored != body:
            raise held_by(decode_commit(stored, key=key))

    async def _store_segment(self, segment: Segment) -> SegmentRef:
        for ordinal in range(1, _MOST_ORDINALS):
            key = segment.key(ordinal=ordinal)
            if await self.store.put_once(key, segment.body):
                return segment.ref(key)
        raise OperatorError(
            "a segment's name is taken too often",
            hint="something stores in a loop: stop the agent and look at the bucket",
            key=segment.key(),
        )

    async def _roll_up(self, sequence: int) -> None:
        due = due_rollup(sequence)
        if due is None:
            return
        bodies = []
        for number in due:
            body = await self.store.get(commit_key(number))
            if body is None:
                raise CorruptDataError("a commit has vanished", hint="d5agent log verify", key=commit_key(number))
            bodies.append(body)
        await self.store.put_once(rollup_key(due.start), encode_rollup(bodies))


def _not_before(position: Position, before: Link | None) -> Position:
    """Return the position with a time that does not go back; its token, where the stream goes on, stays.

    The time beside a silence is the reply's operationTime, which may be later than events that come next.
    """
    if before is None:
        return position
    return replace(position, cluster_time=max(position.cluster_time, before.commit.position.cluster_time))
