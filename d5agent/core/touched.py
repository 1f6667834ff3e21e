"""What a portion of the log touched: its documents with their last events, and collections whose names moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.operation import OWN_DATABASE
from d5agent.core.repair import LastEvent
from d5agent.core.segment import touches_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from d5agent.core.operation import Namespace
    from d5agent.core.raw import DocumentId
    from d5agent.core.segment import SegmentRef

_EVENTS_A_TURN: Final = 500

Events = dict["Namespace", dict["DocumentId", LastEvent]]


@dataclass(slots=True)
class Touched:
    """What some segments in a row touched: documents with their last events, and collections whose names moved."""

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
                self.moved.update({name: event for name in (namespace, rename_to) if name is not None})
                continue
            events = self.events.get(namespace)
            if events is None:
                events = self.events[namespace] = {}
            events[id_] = event
        self.operations += ref.count
