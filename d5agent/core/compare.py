"""Which documents differ: two streams of raw documents in, differences out, whatever order they come in.

Both sides send a collection in `_id` order, so equal documents meet at once and memory stays small. The order is not
relied upon: servers disagree on it when `_id`s are of several types, so what has not met its partner waits, and is
looked up by `_id` when too much waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from d5agent.core.naming import id_to_text
from d5agent.core.raw import DocumentId, elements

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.operation import Namespace


class DifferenceKind(StrEnum):
    """How the target's document stands to the source's."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One document that is not the same on both sides, and the top-level fields in which it differs."""

    namespace: Namespace
    id: DocumentId
    kind: DifferenceKind
    fields: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for reports."""
        return {
            "namespace": str(self.namespace),
            "id": id_to_text(self.id),
            "kind": str(self.kind),
            "fields": list(self.fields),
        }


def differing_fields(source: bytes, target: bytes) -> tuple[str, ...]:
    """Return the top-level fields in which two documents differ; `(order of fields)` when only that differs."""
    sides = [
        {element.name: (element.type, document[element.start : element.end]) for element in elements(document)}
        for document in (source, target)
    ]
    names = [name for name in {**sides[0], **sides[1]} if sides[0].get(name) != sides[1].get(name)]
    return tuple(name.decode(errors="replace") for name in names) or ("(order of fields)",)


def difference_of(
    namespace: Namespace, id_: DocumentId, source: bytes | None, target: bytes | None
) -> Difference | None:
    """Return how one document differs; None when it is the same, or absent, on both sides."""
    if source == target:
        return None
    if source is None:
        return Difference(namespace=namespace, id=id_, kind=DifferenceKind.EXTRA)
    if target is None:
        return Difference(namespace=namespace, id=id_, kind=DifferenceKind.MISSING)
    return Difference(
        namespace=namespace, id=id_, kind=DifferenceKind.DIFFERENT, fields=differing_fields(source, target)
    )


def differences_of(
    namespace: Namespace, source: Mapping[DocumentId, bytes], target: Mapping[DocumentId, bytes]
) -> list[Difference]:
    """Return the differences of two sets of documents."""
    found = (difference_of(namespace, id_, source.get(id_), target.get(id_)) for id_ in {**source, **target})
    return [difference for difference in found if difference is not None]


@dataclass(slots=True)
class Matcher:
    """Meets the documents of two sides. What is equal is forgotten, what differs or waits is named by its `_id`."""

    suspects: dict[DocumentId, int] = field(default_factory=dict)
    compared: int = 0
    _waiting: tuple[dict[DocumentId, bytes], dict[DocumentId, bytes]] = field(default_factory=lambda: ({}, {}))
    waiting_bytes: int = 0

    def add(self, side: int, id_: DocumentId, document: bytes) -> None:
        """Take a document of a side (0 source, 1 target)."""
        partner = self._waiting[1 - side].pop(id_, None)
        if partner is None:
            self._waiting[side][id_] = document
            self.waiting_bytes += len(document)
            return
        self.compared += 1
        self.waiting_bytes -= len(partner)
        if partner != document:
            self.suspects[id_] = max(len(partner), len(document))

    def take_compared(self) -> int:
        """Return how many documents met since the last call."""
        compared, self.compared = self.compared, 0
        return compared

    def take_suspects(self) -> dict[DocumentId, int]:
        """Return the documents to look up on both sides, with their sizes: what differed, and what still waits."""
        taken = dict(self.suspects)
        for waiting in self._waiting:
            for id_, document in waiting.items():
                taken[id_] = max(len(document), taken.get(id_, 0))
        self.suspects = {}
        self._waiting = ({}, {})
        self.waiting_bytes = 0
        return taken
