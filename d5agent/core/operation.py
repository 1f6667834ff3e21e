"""An operation: one change event, with what the log needs to know of it and its bytes as they came."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from typing_extensions import override

from d5agent.core import raw
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from d5agent.core.raw import DocumentId

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
        """Whether it concerns more than one document: it stands in a commit of its own."""
        return self.kind not in DOCUMENT_KINDS

    @property
    def is_ours(self) -> bool:
        """Whether the agent itself caused it."""
        return self.namespace.database == OWN_DATABASE


@lru_cache(maxsize=20_000)
def namespace_of(value: bytes) -> Namespace:
    """Return the namespace that `ns` or `to` holds; a stream tells of the same few again and again."""
    database: str | None = None
    collection: str | None = None
    for name, part in raw.spans(value).items():
        if name == b"db":
            database = raw.text_at(value, part)
        elif name == b"coll":
            collection = raw.text_at(value, part)
    if database is None:
        raise CorruptDataError("a change event's namespace has no database")
    return Namespace(database, collection)


def parse_event(event: bytes) -> Operation:
    """Return the operation that one raw change event tells of.

    The fields are those of MongoDB's change events reference; DocumentDB sends a subset of them. An unknown operation
    type is no error here: it is captured like any other. CorruptDataError: a field that every event has is missing.
    """
    found = raw.spans(event)
    try:
        _, token, token_end = found[b"_id"]
        _, kind, kind_end = found[b"operationType"]
        time = found[b"clusterTime"]
        _, namespace, namespace_end = found[b"ns"]
    except KeyError as error:
        raise CorruptDataError("a change event lacks a field", field=error.args[0].decode()) from error
    key = found.get(b"documentKey")
    full = found.get(b"fullDocument")
    to = found.get(b"to")
    return Operation(
        event[kind + 4 : kind_end - 1].decode(),
        namespace_of(event[namespace:namespace_end]),
        ClusterTime(*raw.timestamp_in(event, time)),
        event[token:token_end],
        None if key is None else raw.document_id(event[key[1] : key[2]]),
        None if full is None or full[0] != raw.DOCUMENT else (full[1], full[2]),
        None if to is None else namespace_of(event[to[1] : to[2]]),
        event,
    )
