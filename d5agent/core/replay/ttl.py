"""TTL indexes: what they delete, and when a delete is one of theirs."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log import raw
from d5agent.core.log.operation import Namespace
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from d5agent.core.log.operation import ClusterTime

NEVER: Final = 2_147_483_646
"""An `expireAfterSeconds` of 68 years, one below the maximum, which an application may use. Held indexes have it, or a
number below it that tells which expiry they had: so they are known under whatever name their collection has by then."""
_NUMBERS: Final = 100_000  # below NEVER; what is so near to it deletes nothing either
_MILLISECONDS: Final = struct.Struct("<q")
_NESTING: Final = frozenset({raw.DOCUMENT, raw.ARRAY})


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlIndex:
    """A TTL index. `name`: empty for the expiry of a clustered collection, which is an option of the collection.

    `collection_id`: stays the same when the collection is renamed; empty where the server has none. `is_partial`: only
    some documents are in it. `held_as`: the expiry that it has while the agent holds it.
    """

    namespace: Namespace
    name: str
    field: str
    seconds: float
    collection_id: str = ""
    is_partial: bool = False
    held_as: int = NEVER

    @property
    def deletes(self) -> bool:
        """Whether it deletes anything within our lifetime (a server takes NaN for the maximum)."""
        return self.seconds < NEVER - _NUMBERS

    @property
    def place(self) -> tuple[Namespace, str]:
        """Where it is found."""
        return self.namespace, self.name

    def is_same(self, other: TtlIndex) -> bool:
        """Whether the other one is this index, whatever its expiry and the name of its collection."""
        if not self.collection_id or not other.collection_id:
            return self.place == other.place
        return (self.collection_id, self.name) == (other.collection_id, other.name)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for the state file."""
        return {
            "database": self.namespace.database,
            "collection": self.namespace.collection,
            "name": self.name,
            "field": self.field,
            "seconds": self.seconds,
            "collection_id": self.collection_id,
            "held_as": self.held_as,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> TtlIndex:
        """Return what `to_json` gave."""
        return TtlIndex(
            namespace=Namespace(value["database"], value["collection"]),
            name=value["name"],
            field=value["field"],
            seconds=value["seconds"],
            collection_id=value["collection_id"],
            held_as=value.get("held_as", NEVER),  # an earlier version held all with one number
        )


def numbered(indexes: Iterable[TtlIndex], known: Iterable[TtlIndex], there: Iterable[TtlIndex]) -> Sequence[TtlIndex]:
    """Return indexes as they are to be held: with one number for each expiry, that no other index of `there` has.

    `known`: what is held already. A clustered collection takes no such number: its expiry is switched off.
    """
    numbers = {index.seconds: index.held_as for index in known if index.held_as != NEVER}
    used = {*numbers.values(), *(index.seconds for index in there)}
    free = (number for number in range(NEVER - 1, 0, -1) if number not in used)
    return [
        replace(index, held_as=(numbers.get(index.seconds) or numbers.setdefault(index.seconds, next(free))))
        if index.name
        else index
        for index in indexes
    ]


def seconds_before(index: TtlIndex, held: Iterable[TtlIndex]) -> float | None:
    """Return the expiry that a held index had before; None: it is not held.

    Its number tells. Where that tells several, or nothing, the collection does: an earlier version held all with one
    number, and a clustered collection that is held looks like one that never had an expiry.
    """
    known = [one for one in held if one.held_as == index.seconds and bool(one.name) == bool(index.name)]
    if index.name and len({one.seconds for one in known}) == 1:
        return known[0].seconds
    named = [one for one in known if one.name == index.name]
    same = [one for one in named if one.collection_id and one.collection_id == index.collection_id]
    found = same or [one for one in named if one.place == index.place]
    return found[0].seconds if found else None


def has_expired(indexes: Iterable[TtlIndex], document: bytes, at: ClusterTime) -> bool:
    """Whether one of these indexes deletes this version of a document at a time, or had reason to before.

    A server goes by the earliest date that the field holds; what is no date never expires. Which documents a partial
    index holds is not looked at: none counts as expired by it.
    """
    return any(_has_expired(index, document, at) for index in indexes if index.deletes and not index.is_partial)


def _has_expired(index: TtlIndex, document: bytes, at: ClusterTime) -> bool:
    try:
        dates = list(_dates(raw.DOCUMENT, document, index.field.split(".")))
    except CorruptDataError:
        return False
    # A cluster time has whole seconds: what expires within this one may be deleted within it.
    return bool(dates) and min(dates) + index.seconds * 1000 < (at.seconds + 1) * 1000


def _dates(type_: int, value: bytes, path: list[str]) -> Iterator[int]:
    """Yield the dates at a path, in milliseconds since 1970; of an array, those of its elements."""
    if type_ == raw.DATE and not path:
        yield _MILLISECONDS.unpack(value)[0]
    if type_ not in _NESTING or (type_ == raw.DOCUMENT and not path):
        return
    for element in raw.elements(value):
        inner = value[element.start : element.end]
        if path and element.name == path[0].encode(errors="surrogateescape"):
            yield from _dates(element.type, inner, path[1:])
        elif type_ == raw.ARRAY and element.type == (raw.DOCUMENT if path else raw.DATE):
            yield from _dates(element.type, inner, path)
