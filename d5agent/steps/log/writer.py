"""Writes the log: segments first, then the commit that publishes them. Nobody else moves the position (ADR 2)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.log.chain import Commit, Link, Total, WriterIdentity, decode_commit, digest, encode_commit, grown
from d5agent.core.log.segment import compressed
from d5agent.errors import CorruptDataError, LogHeldError, OperatorError, TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from d5agent.core.log.operation import ClusterTime, Position
    from d5agent.core.log.segment import Segment, SegmentRef
    from d5agent.ports import Clock, ObjectStore

_LARGE_BYTES: Final = 256 * 1024
_MOST_ORDINALS: Final = 10_000  # a key taken so often is no crash's orphan: something writes in a loop


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
    writer: WriterIdentity
    last: Link | None
    compresses: bool = False
    _begins_after: ClusterTime | None = None
    _begins_with: int = 0

    @property
    def total(self) -> Total:
        """What the log holds."""
        return Total() if self.last is None else self.last.commit.total

    @property
    def begins_after(self) -> ClusterTime | None:
        """The source's time when the log was begun; None: a log of an earlier version."""
        return self._begins_after if self.last is None else self.last.commit.begins_after

    async def begin(self, position: Position, *, after: ClusterTime, sequence: int = 0) -> Commit:
        """Publish the first commit, with this number: the stream was opened at this position.

        The log begins after the time `after`.
        """
        self._begins_after, self._begins_with = after, sequence
        return await self.publish((), position)

    async def store_segment(self, segment: Segment) -> SegmentRef:
        """Store a segment; what the commit will say of it. Until a commit does, it does not exist."""
        if self.compresses:
            segment = await asyncio.to_thread(compressed, segment)  # it lets the loop go on, and the other core work
        for ordinal in range(1, _MOST_ORDINALS):
            key = segment.key(ordinal=ordinal)
            if await self.store.put_once(key, segment.body):
                if len(segment.body) < _LARGE_BYTES:
                    return segment.ref(key)
                return await asyncio.to_thread(segment.ref, key)  # hashing needs no lock: the loop goes on
        raise OperatorError(
            "a segment's name is taken too often",
            hint="something stores in a loop: stop the agent and look at the bucket",
            key=segment.key(),
        )

    async def publish(
        self, stored: Iterable[Awaitable[SegmentRef]], position: Position, *, renames_within: bool = False
    ) -> Commit:
        """Wait until segments are stored, then publish them and move the position, as one write-once object.

        The order is the promise: store first, then remember. A crash in between leaves orphans, which nobody reads.
        LogHeldError: another agent has written this sequence number. What was stored stays an orphan.
        """
        refs = tuple([await upload for upload in stored])
        before = self.last
        commit = Commit(
            sequence=self._begins_with if before is None else before.commit.sequence + 1,
            writer=self.writer,
            written_at=self.clock.now().isoformat(timespec="milliseconds"),
            previous=None if before is None else before.digest,
            segments=refs,
            position=_not_before(position, before),
            total=grown(self.total, refs),
            begins_after=self.begins_after,
            renames_within=renames_within,
        )
        body = encode_commit(commit)
        if not await self.store.put_once(commit.key, body):
            await self._check_ours(commit.key, body)
        self.last = Link(commit=commit, digest=digest(body))
        return commit

    async def _check_ours(self, key: str, body: bytes) -> None:
        # A put that timed out may have been stored; its repetition then finds the key taken, by ourselves.
        stored = await self.store.get(key)
        if stored is None:
            raise CorruptDataError("a commit has vanished", hint="who deletes objects in the bucket?", key=key)
        if stored == body:
            return
        other = decode_commit(stored, key=key)
        if (other.writer.agent_id, other.writer.host) == (self.writer.agent_id, self.writer.host):
            # Sent by our last try, and stored after this one had looked for the log's end.
            raise TransientError("an earlier commit of this agent has arrived late", hint="it is read on from", key=key)
        raise held_by(other)


def _not_before(position: Position, before: Link | None) -> Position:
    """Return the position with a time that does not go back; its token, where the stream goes on, stays.

    The time beside a silence is the reply's operationTime, which may be later than events that come next.
    """
    if before is None:
        return position
    return replace(position, cluster_time=max(position.cluster_time, before.commit.position.cluster_time))
