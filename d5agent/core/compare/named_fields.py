"""Which fields of a document the events of an outage name: what differs in another one, the outage did not write."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.compare import DifferenceKind
from d5agent.core.log import raw
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from d5agent.core.compare.compare import Difference
    from d5agent.core.log.operation import Namespace, Operation

_BITS: Final = 32
ALL: Final = (1 << _BITS) - 1
"""The mask of a document all of whose fields are named."""
_SHARED: Final = _BITS - 1  # the bit of all names of a collection beyond the first 31


def fields_named_by(operation: Operation) -> frozenset[bytes] | None:
    """Return the top-level fields that an update names as changed; None: any field may have changed.

    An insert, a replace and a delete are about the whole document. An update without a description, or whose
    description names nothing, says nothing.
    """
    if operation.kind != "update":
        return None
    try:
        found = frozenset(name.split(b".", 1)[0] for name in _named(operation.raw))
    except CorruptDataError:
        return None
    return found or None


def _named(event: bytes) -> Iterator[bytes]:
    description = _part(event, b"updateDescription", raw.DOCUMENT)
    yield from raw.spans(_part(description, b"updatedFields", raw.DOCUMENT))
    removed = _part(description, b"removedFields", raw.ARRAY)
    yield from (removed[e.start + 4 : e.end - 1] for e in raw.elements(removed) if e.type == raw.STRING)
    truncated = _part(description, b"truncatedArrays", raw.ARRAY)
    for row in raw.documents_of(truncated):
        span = raw.spans(row).get(b"field")
        if span is not None and span[0] == raw.STRING:
            yield row[span[1] + 4 : span[2] - 1]


_EMPTY: Final = b"\x05\0\0\0\0"


def _part(document: bytes, name: bytes, type_: int) -> bytes:
    span = raw.spans(document).get(name)
    return document[span[1] : span[2]] if span is not None and span[0] == type_ else _EMPTY


def differing_names(source: bytes | None, target: bytes | None) -> set[bytes]:
    """Return the top-level fields whose values are not the same bytes in both documents; none unless both are there."""
    if source is None or target is None:
        return set()
    ours, theirs = ({e.name: raw.value_at(side, e) for e in raw.elements(side)} for side in (source, target))
    return {name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)}


@dataclass(slots=True)
class FieldBits:
    """Sets of fields as masks of 32 bits: a bit for each of the first 31 names in a collection, one for all others."""

    _bits: dict[Namespace, dict[bytes, int]] = field(default_factory=dict)
    _full: set[Namespace] = field(default_factory=set)

    def mask(self, namespace: Namespace, names: frozenset[bytes] | None) -> int:
        """Return the mask of some fields; None: of all."""
        if names is None:
            return ALL
        bits = self._bits.setdefault(namespace, {})
        mask = 0
        for name in sorted(names):
            if name not in bits and len(bits) < _SHARED:
                bits[name] = len(bits)
            if name not in bits:
                self._full.add(namespace)
            mask |= 1 << bits.get(name, _SHARED)
        return mask

    def unnamed(self, namespace: Namespace, mask: int, names: set[bytes]) -> set[bytes]:
        """Return those of some fields that a mask does not hold; of a name without its own bit, if that is sure."""
        bits = self._bits.get(namespace, {})
        other = 1 << _SHARED if namespace in self._full else 0
        return {name for name in names if mask != ALL and not mask & (1 << bits[name] if name in bits else other)}


def undelivered_part(difference: Difference, unnamed: set[bytes], *, begins_with_insert: bool) -> Difference | None:
    """Return what DMS had not delivered of a document that the outage touched, as far as it can be known.

    The target lacks a document that the outage did not insert: MongoDB had deleted it. Or it differs in fields that no
    event names (`unnamed`): MongoDB had written them.
    """
    if begins_with_insert or difference.kind is DifferenceKind.EXTRA:
        return None
    if difference.kind is DifferenceKind.MISSING:
        return difference
    fields = tuple(name.decode(errors="backslashreplace") for name in sorted(unnamed))
    return replace(difference, fields=fields) if fields else None
