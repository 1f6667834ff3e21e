"""What a portion of the log touched: its documents with their last events, and collections whose names moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.repair import LastEvent
from d5agent.core.log.operation import OWN_DATABASE, Namespace
from d5agent.core.log.segment import touches_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from d5agent.core.log.raw import DocumentId
    from d5agent.core.log.segment import SegmentRef

_EVENTS_A_TURN: Final = 500

Events = dict["Namespace", dict["DocumentId", LastEvent]]


@dataclass(slots=True)
class Touched:
    """What some segments in a row touched: documents with their last events, and collections whose names moved.

    Those are compared whole, so their documents are left out: of a collection that comes and goes, none is looked up.
    """

    events: Events = field(default_factory=dict)
    moved: dict[Namespace, LastEvent] = field(default_factory=dict)
    operations: int = 0

    def add(self, sequence: int, ref: SegmentRef, body: bytes) -> Iterator[None]:
        """Take a segment of the commit of that number; yields where others may have their turn."""
        count = 0
        for namespace, id_, kind, time, has_document, size, rename_to in touches_of(ref, body):
            event = LastEvent(sequence, time, kind, has_document, size)
            count += 1
            if count % _EVENTS_A_TURN == 0:
                yield
            if namespace.database == OWN_DATABASE:
                continue
            if id_ is None:
                self._move(namespace, event)
                self._move(rename_to, event)
                continue
            if self.moved and self._has_moved(namespace):
                continue
            events = self.events.get(namespace)
            if events is None:
                events = self.events[namespace] = {}
            events[id_] = event
        self.operations += ref.count

    def _has_moved(self, namespace: Namespace) -> bool:
        return namespace in self.moved or Namespace(namespace.database) in self.moved

    def _move(self, name: Namespace | None, event: LastEvent) -> None:
        if name is None:
            return
        self.moved[name] = event
        hits = [name] if name.collection else [n for n in self.events if n.database == name.database]
        for hit in hits:
            self.events.pop(hit, None)
