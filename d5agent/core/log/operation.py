"""An operation: one change event, with what the log needs to know of it and its bytes as they came."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from typing_extensions import override

from d5agent.core.log import raw
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from d5agent.core.log.raw import DocumentId

OWN_DATABASE: Final = "d5agent"
"""The agent's own database on the source: its marks are captured, but never replayed nor compared."""

DOCUMENT_KINDS: Final = frozenset({"insert", "update", "replace", "delete"})
BARRIER_KINDS: Final = frozenset({"drop", "rename", "dropDatabase"})


class ClusterTime(NamedTuple):
    """A position in the cluster's history: seconds since 1970 and an increment within the second."""

    seconds: int
    increment: int

    @override
    def __str__(self) -> str:
        """As it stands in keys: zero-padded, so that text order is time order."""
        return f"{self.seconds:010d}-{self.increment:010d}"


class Namespace(NamedTuple):
    """A database and a collection; no collection means the database as a whole."""

    database: str
    collection: str | None = None

    @override
    def __str__(self) -> str:
        """As MongoDB writes it: database.collection."""
        return self.database if self.collection is None else f"{self.database}.{self.collection}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where the stream goes on: the resume token (a raw BSON document) and the cluster time beside it.

    Tokens are opaque; the time is what people and clocks understand. No token: begin at the time, inclusive.
    """

    cluster_time: ClusterTime
    token: bytes | None


class Operation(NamedTuple):
    """One change event. `raw` is what the server sent, byte for byte; the rest are views of it.

    A named tuple, not a dataclass: one is made for each captured event, and a frozen dataclass takes six times as long.
    """

    kind: str
    namespace: Namespace
    cluster_time: ClusterTime
    token: bytes
    document_id: DocumentId | None
    document_span: tuple[int, int] | None
    rename_to: Namespace | None
    raw: bytes

    @property
    def document(self) -> bytes | None:
        """The full document of the event; None when it has none, or null (gone before the look-up)."""
        return None if self.document_span is None else self.raw[slice(*self.document_span)]

    @property
    def is_barrier(self) -> bool:
        """Whether it concerns more than one document."""
        return self.kind not in DOCUMENT_KINDS

    @property
    def is_ours(self) -> bool:
        """Whether the agent itself caused it."""
        return self.namespace.database == OWN_DATABASE


UNNAMED: Final = Namespace(".unnamed")
"""Of an event that does not say where it happened: no database can begin with a dot."""


@lru_cache(maxsize=20_000)
def namespace_of(value: bytes) -> Namespace:
    """Return the namespace that `ns` or `to` holds; a stream tells of the same few again and again."""
    try:
        parts = raw.spans(value)
    except CorruptDataError:
        return UNNAMED
    database, collection = parts.get(b"db"), parts.get(b"coll")
    if database is None or {database[0], collection[0] if collection else raw.STRING} != {raw.STRING}:
        return UNNAMED
    names = raw.text_at(value, database), raw.text_at(value, collection) if collection else None
    # No server has such a name, and a key made of it could be taken for another object's.
    is_odd = any(name is not None and (not name or name.startswith(".")) for name in names)
    return UNNAMED if is_odd else Namespace(*names)


def id_of_key(key: bytes) -> DocumentId | None:
    """Return the `_id` in a documentKey; None: there is none that could be found."""
    try:
        return raw.document_id(key)
    except CorruptDataError:
        return None


def parse_event(event: bytes) -> Operation:
    """Return the operation that one raw change event tells of.

    The fields are those of MongoDB's change events reference; DocumentDB sends a subset of them. An unknown operation
    type is no error here, and neither is an event that does not say where it happened: it is captured like any other,
    as an operation of an unknown type. CorruptDataError: it has no place in the stream, a token and a time.
    """
    found = raw.spans(event)
    try:
        token, time = found[b"_id"], found[b"clusterTime"]
    except KeyError as error:
        raise CorruptDataError("a change event lacks a field", field=error.args[0].decode()) from error
    if (token[0], time[0]) != (raw.DOCUMENT, raw.TIMESTAMP):
        raise CorruptDataError("a change event's token or time is of another type", types=(token[0], time[0]))
    namespace = UNNAMED if b"ns" not in found else namespace_of(event[found[b"ns"][1] : found[b"ns"][2]])
    key = found.get(b"documentKey")
    full = found.get(b"fullDocument")
    to = found.get(b"to")
    moved = UNNAMED if to is None else namespace_of(event[to[1] : to[2]])
    return Operation(
        _kind(event, found.get(b"operationType"), namespace),
        namespace,
        ClusterTime(*raw.timestamp_in(event, time)),
        event[token[1] : token[2]],
        None if key is None else id_of_key(event[key[1] : key[2]]),
        None if full is None or full[0] != raw.DOCUMENT else (full[1], full[2]),
        None if moved is UNNAMED else moved,
        event,
    )


def _kind(event: bytes, span: raw.Span | None, namespace: Namespace) -> str:
    if span is None or span[0] != raw.STRING:
        return "unknown"
    kind = raw.text_at(event, span)
    return kind if namespace is not UNNAMED else f"{kind} without a namespace"
