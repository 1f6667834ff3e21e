"""Why a document had to be repaired: what the log's last event of it told, and whether that explains it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from d5agent.core.log.naming import commit_key

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from d5agent.core.compare.compare import Difference
    from d5agent.core.log.operation import ClusterTime, Namespace
    from d5agent.core.log.raw import DocumentId


class Cause(StrEnum):
    """What explains a repair; the value is what a report says."""

    EVENT_WITHOUT_DOCUMENT = "event carried no document"
    NAME_MOVED = "name moved"
    CAME_LATER = "came later"
    SOURCE_MOVED_ON = "source moved on"
    NOT_LOOKED_INTO = "not looked into"
    FOREIGN_WRITE = "foreign write"
    UNEXPLAINED = "unexplained"


EXPLANATIONS: Final = {
    Cause.EVENT_WITHOUT_DOCUMENT: "its last event carried no document: it was gone or renamed before the look-up",
    Cause.NAME_MOVED: "its collection was dropped or renamed, so events of single documents do not tell all of it",
    Cause.CAME_LATER: "its last event came after the replay; it is replayed next",
    Cause.SOURCE_MOVED_ON: "the source holds another version than its last event told: a later event is still to come",
    Cause.NOT_LOOKED_INTO: "its last event has its document; of many repairs, only the first are looked into further",
    Cause.FOREIGN_WRITE: "no event explains it, and others could write to the target while restore was at"
    " work: somebody else wrote to the target, or a defect of the agent",
    Cause.UNEXPLAINED: "no event explains it: a defect of the agent, or somebody else wrote to the target",
}


class LastEvent(NamedTuple):
    """The last event of a document (or of its collection's name) in the log; `size` in bytes.

    `has_document`: whether it says what the document is now; a delete does.
    """

    sequence: int
    cluster_time: ClusterTime
    kind: str
    has_document: bool
    size: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "commit": commit_key(self.sequence),
            "cluster_time": list(self.cluster_time),
            "kind": self.kind,
            "has_document": self.has_document,
        }


@dataclass(slots=True, kw_only=True)
class Repair:
    """A document that was written into the target from the source, because the two differed after the replay.

    `written_hash`: Python's hash of what the source had; None: nothing. `event`: the document's last event in the log;
    `moved`: the last one of its collection's name. `applied`: the last commit that was replayed. `segment`,
    `event_hash`: where that event is stored, and the hash of the document it carried, once it has been looked up.
    `is_open`: others could write to the target.
    """

    difference: Difference
    written_hash: int | None
    event: LastEvent | None = None
    moved: LastEvent | None = None
    applied: int | None = None
    segment: str = ""
    event_hash: int | None = None
    is_open: bool = False

    @property
    def cause(self) -> Cause:
        """What explains it. Several may be true: the one that the log proves comes first."""
        event = self.event
        if event is not None and self.applied is not None and event.sequence > self.applied:
            return Cause.CAME_LATER
        if event is not None and not event.has_document:
            return Cause.EVENT_WITHOUT_DOCUMENT
        if self.moved is not None:
            return Cause.NAME_MOVED
        if event is not None and not self.segment:
            return Cause.NOT_LOOKED_INTO
        if event is not None and self.event_hash != self.written_hash:
            return Cause.SOURCE_MOVED_ON
        return Cause.FOREIGN_WRITE if self.is_open else Cause.UNEXPLAINED

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values: the difference, its cause, and the event that the cause points at."""
        cause = self.cause
        event, segment = (self.moved, "") if cause is Cause.NAME_MOVED else (self.event, self.segment)
        return {
            **self.difference.to_json(),
            "cause": str(cause),
            "explanation": EXPLANATIONS[cause],
            "last_event": None if event is None else {**event.to_json(), "segment": segment or None},
        }


_MANY: Final = 50_000


@dataclass(slots=True)
class KnownEvents:
    """What the log told of documents that differ or were repaired: it may go on telling of them.

    `moved`: the last drop or rename of a collection, or of its database.
    """

    moved: dict[Namespace, LastEvent] = field(default_factory=dict)
    repairs: dict[Namespace, dict[DocumentId, Repair]] = field(default_factory=dict)
    _events: dict[Namespace, dict[DocumentId, LastEvent]] = field(default_factory=dict)
    _count: int = 0

    def of(self, namespace: Namespace) -> Mapping[DocumentId, LastEvent]:
        """Return the last events of documents that differed."""
        return self._events.get(namespace, {})

    def move_of(self, namespace: Namespace) -> LastEvent | None:
        """Return the last drop or rename of a collection."""
        return self.moved.get(namespace) or self.moved.get(namespace._replace(collection=None))

    def keep_only(self, there: Container[Namespace]) -> None:
        """Forget the moves of collections and databases that are on neither side: nothing there is repaired."""
        self.moved = {name: event for name, event in self.moved.items() if name in there}

    def remember(self, difference: Difference, event: LastEvent | None) -> None:
        """Keep a document's last event: it may be compared, and repaired, later. Of very many, some are not kept."""
        if event is not None and self._count < _MANY:
            self._count += 1
            self._events.setdefault(difference.namespace, {})[difference.id] = event

    def tell_later(self, namespace: Namespace, events: Mapping[DocumentId, LastEvent]) -> None:
        """Take events that come after those known: a document's last one is what explains its repair."""
        repairs, known = self.repairs.get(namespace, {}), self._events.get(namespace, {})
        for id_ in repairs.keys() & events.keys():
            repairs[id_].event, repairs[id_].segment = events[id_], ""
        for id_ in known.keys() & events.keys():
            known[id_] = events[id_]
