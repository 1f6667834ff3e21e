"""Which documents differ: two streams of raw documents in, differences out, whatever order they come in.

Both sides send a collection in `_id` order, so equal documents meet at once and memory stays small. The order is not
relied upon: servers disagree on it when `_id`s are of several types, so what has not met its partner waits, and is
looked up by `_id` when too much waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.naming import id_to_text
from d5agent.core.log.raw import DocumentId, elements

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import Element


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


_ORDER: Final = "(order of fields)"
_MOST_FIELDS: Final = 50  # that a difference names
_NAMES: Final = (
    *("double", "string", "document", "array", "binary", "undefined", "ObjectId", "boolean", "date", "null", "regex"),
    *("DBPointer", "code", "symbol", "code with scope", "int32", "timestamp", "int64", "decimal128"),
)
_TYPES: Final = {**dict(enumerate(_NAMES, 1)), 0x7F: "MaxKey", 0xFF: "MinKey"}
"""BSON's types, by their byte (bsonspec.org)."""
_NESTING: Final = frozenset({0x03, 0x04})


def differing_fields(source: bytes, target: bytes) -> tuple[str, ...]:
    """Return the fields in which two documents differ, `a.b` for one inside another, and how where it is not the value.

    `n (int32 became double)` where the type differs, `(order of fields)` where only that does. Never a value: it may
    be somebody's secret. At most 50 are named.
    """
    found = list(_differing(source, target, ""))
    more = len(found) - _MOST_FIELDS
    return tuple(found if more <= 0 else [*found[:_MOST_FIELDS], f"and {more} more"])


def _differing(source: bytes, target: bytes, path: str) -> Iterator[str]:
    ours, theirs = ({e.name: e for e in elements(document)} for document in (source, target))
    has_named = False
    for name in {**ours, **theirs}:
        here = path + name.decode(errors="backslashreplace")
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None:
            has_named = True
            yield f"{here} ({'only in' if one is None else 'missing in'} the target)"
            continue
        values = source[one.start : one.end], target[other.start : other.end]
        if (one.type, values[0]) == (other.type, values[1]):
            continue
        has_named = True
        if one.type != other.type:
            yield f"{here} ({_type(one)} became {_type(other)})"
        elif one.type in _NESTING:
            yield from _differing(*values, f"{here}.")
        else:
            yield here
    if not has_named:
        yield f"{path.removesuffix('.')} {_ORDER}".lstrip()


def _type(element: Element) -> str:
    return _TYPES[element.type]  # `elements` yields no other


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


_SUSPECT_BYTES: Final = 200  # an `_id` and its place in a dictionary


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
        self.waiting_bytes -= len(partner)
        self.meet(id_, partner, document)

    def meet(self, id_: DocumentId, one: bytes, other: bytes) -> None:
        """Take a document of both sides at once."""
        if one == other:
            self.compared += 1
        else:
            self.suspects[id_] = max(len(one), len(other))

    def is_waiting(self, side: int, id_: DocumentId) -> bool:
        """Whether a side's document waits for its partner."""
        return id_ in self._waiting[side]

    @property
    def held_bytes(self) -> int:
        """About what it holds in memory: documents that wait, and the names of those that differ."""
        return self.waiting_bytes + _SUSPECT_BYTES * len(self.suspects)

    def take_compared(self) -> int:
        """Return how many documents met and were equal since the last call."""
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
