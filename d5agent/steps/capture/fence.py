"""The fence: the proof that all that happened on the source until now is stored in the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.log.glance import glance
from d5agent.core.log.operation import parse_event
from d5agent.core.run.services import Service, Status
from d5agent.errors import OperatorError
from d5agent.steps.capture.expiries import Unread
from d5agent.steps.log.marks import mark_document_id, new_mark_id

if TYPE_CHECKING:
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import ClusterTime, Position
    from d5agent.ports import ChangeSource, Clock
    from d5agent.service import Coordinator
    from d5agent.steps.log.reader import LogReader

_ENDED: Final = frozenset({Status.FAILED, Status.STOPPED})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMarker:
    """A marker that came out of the stream and is stored: its `_id`, its event's time, the commit that holds it."""

    id: str
    cluster_time: ClusterTime
    link: Link


async def write_marker(source: ChangeSource, purpose: str, *, again: str) -> str:
    """Write a marker to the source; its `_id`. `again`: what to type when the agent's user has no right to.

    Without a marker nobody knows that the stream is drained. The time beside an empty reply proves nothing: it is the
    server's own, and the stream may be behind it (ADR 34).
    """
    mark_id = new_mark_id(purpose)
    if not await source.mark(mark_id):
        raise OperatorError(
            "the fence marker cannot be written: the end of the stream cannot be proved",
            hint="replication goes on; grant the agent's user insert on the database d5agent (docs/privileges.md), "
            f"then type: {again}",
        )
    return mark_id


async def draw_fence(
    coordinator: Coordinator,
    *,
    source: ChangeSource,
    reader: LogReader,
    clock: Clock,
    timeout_seconds: float,
    again: str,
) -> StoredMarker:
    """Return the marker by which all that happened on the source before this call is stored.

    The agent writes it and waits until that very event is stored: what came before it is stored then. OperatorError:
    it cannot be written, replication has ended, or the time is over.
    """
    last = await reader.last()
    mark_id = await write_marker(source, "fence", again=again)
    began = clock.monotonic()
    while True:
        async for link in reader.links(after=last):
            async for operation in reader.operations(link.commit, only_own=True):
                if operation.document_id == mark_document_id(mark_id):
                    return StoredMarker(id=mark_id, cluster_time=operation.cluster_time, link=link)
            last = link
        _check(coordinator, waited=clock.monotonic() - began, timeout_seconds=timeout_seconds)
        await coordinator.wait("the fence to come out of the stream and be stored")


async def operations_to_marker(
    source: ChangeSource, after: Position, *, clock: Clock, timeout_seconds: float, again: str
) -> Unread:
    """Write a marker, read the stream up to it, and return the operations of others that come before it.

    For when nobody captures any more: what the log does not hold yet is looked at, not stored. OperatorError: the
    marker cannot be written, or does not come out of the stream in time.
    """
    mark_id = await write_marker(source, "end", again=again)
    marker, unread, began = mark_document_id(mark_id), Unread(), clock.monotonic()
    async with source.stream(after) as batches:
        while True:
            batch = await anext(batches)
            for event in map(glance, batch.events):
                if not event.is_ours:
                    unread.add(parse_event(event.raw))
                elif event.document_id == marker:
                    return unread
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
