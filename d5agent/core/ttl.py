"""TTL indexes: what they delete, and when a delete is one of theirs."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from d5agent.core import raw
from d5agent.core.operation import Namespace
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from d5agent.core.operation import ClusterTime

NEVER: Final = 2_147_483_646
"""The `expireAfterSeconds` of an index that is held: 68 years. One below the maximum, which an application may use."""
_MILLISECONDS: Final = struct.Struct("<q")
_NESTING: Final = frozenset({raw.DOCUMENT, raw.ARRAY})


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlIndex:
    """A TTL index. `name`: empty for the expiry of a clustered collection, which is an option of the collection.

    `collection_id`: stays the same when the collection is renamed; empty where the server has none. `is_partial`: only
    some documents are in it.
    """

    namespace: Namespace
    name: str
    field: str
    seconds: float
    collection_id: str = ""
    is_partial: bool = False

    @property
    def is_held(self) -> bool:
        """Whether its expiry is the one that the agent sets."""
        return self.seconds == NEVER

    @property
    def deletes(self) -> bool:
        """Whether it deletes anything within our lifetime (a server takes NaN for the maximum)."""
        return self.seconds < NEVER

    def is_same(self, other: TtlIndex) -> bool:
        """Whether the other one is this index, whatever its expiry and the name of its collection."""
        if not self.collection_id or not other.collection_id:
            return (self.namespace, self.name) == (other.namespace, other.name)
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
        )


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
