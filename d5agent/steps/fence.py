"""The fence: the proof that all that happened on the source until now is stored in the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.glance import glance
from d5agent.core.services import Service, Status
from d5agent.errors import OperatorError
from d5agent.steps.marks import mark_document_id, new_mark_id

if TYPE_CHECKING:
    from d5agent.core.log import Link
    from d5agent.core.operation import ClusterTime, Position
    from d5agent.core.raw import DocumentId
    from d5agent.ports import ChangeSource, Clock
    from d5agent.service import Coordinator
    from d5agent.steps.log_reader import LogReader

_SILENT_COMMITS: Final = 2  # without a mark: positions past the fence that told of nothing new
_ENDED: Final = frozenset({Status.FAILED, Status.STOPPED})


async def draw_fence(
    coordinator: Coordinator, *, source: ChangeSource, reader: LogReader, clock: Clock, timeout_seconds: float
) -> Link:
    """Return the commit by which all that happened on the source before this call is stored.

    The agent writes a mark and waits until that very event is stored: what came before it is stored then. Without the
    right to write, the cluster's time takes its place. OperatorError: replication has ended, or the time is over.
    """
    last = await reader.last()
    mark_id = new_mark_id("fence")
    is_fence: _HasMark | _IsPast
    if await source.mark(mark_id):
        is_fence = _HasMark(mark_document_id(mark_id), reader)
    else:
        coordinator.journal.warning("mark_not_written", hint="grant the agent's user insert on d5agent")
        is_fence = _IsPast(await source.now())
    began = clock.monotonic()
    while True:
        async for link in reader.links(after=last):
            if await is_fence.holds(link):
                return link
            last = link
        _check(coordinator, waited=clock.monotonic() - began, timeout_seconds=timeout_seconds)
        await coordinator.wait("the fence to come out of the stream and be stored")


async def operations_to_marker(source: ChangeSource, after: Position, *, clock: Clock, timeout_seconds: float) -> int:
    """Write a marker, read the stream up to it, and return how many operations of others come before it.

    For when nobody captures any more: what the log does not hold yet is counted, not stored. OperatorError: the marker
    does not come out of the stream in time.
    """
    mark_id = new_mark_id("end")
    await source.mark(mark_id)
    marker, count, began = mark_document_id(mark_id), 0, clock.monotonic()
    async with source.stream(after) as batches:
        while True:
            batch = await anext(batches)
            for event in map(glance, batch.events):
                if not event.is_ours:
                    count += 1
                elif event.document_id == marker:
                    return count
            _check_patience(clock.monotonic() - began, timeout_seconds)


def _check(coordinator: Coordinator, *, waited: float, timeout_seconds: float) -> None:
    """Raise when there is nothing more to wait for."""
    status = coordinator.state.status(Service.REPLICATION)
    if status in _ENDED:
        row = coordinator.state.services[Service.REPLICATION]
        raise OperatorError(
            f"the fence cannot be drawn: replication is {status}",
            hint=row.hint or "type: d5agent start replication; then start this again",
            replication=row.error or row.reason,
        )
    _check_patience(waited, timeout_seconds)


def _check_patience(waited: float, timeout_seconds: float) -> None:
    if waited > timeout_seconds:
        raise OperatorError(
            "the fence marker did not come out of the stream",
            hint="is replication running? does the stream lag? see d5agent status",
            after_seconds=timeout_seconds,
        )


@dataclass(slots=True)
class _HasMark:
    """The fence with a mark: the commit that holds the mark's event."""

    mark: DocumentId
    reader: LogReader

    async def holds(self, link: Link) -> bool:
        """Whether the mark is among the agent's own operations of a commit."""
        async for operation in self.reader.operations(link.commit, only_own=True):
            if operation.document_id == self.mark:
                return True
        return False


@dataclass(slots=True)
class _IsPast:
    """The fence without a mark: an event at or after a time, or positions past it that told of nothing new."""

    time: ClusterTime
    silent: int = 0

    async def holds(self, link: Link) -> bool:
        """Whether the stream has passed the time for certain."""
        commit = link.commit
        if commit.position.cluster_time < self.time:
            return False
        if any(ref.last >= self.time for ref in commit.segments):
            return True
        # Older operations come late: what is between them and the time may be on its way as well.
        self.silent = 0 if commit.segments else self.silent + 1
        return self.silent >= _SILENT_COMMITS
