"""Collections in memory, with unique indexes and a server's notion of equal `_id`s."""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as dataclass_replace
from typing import TYPE_CHECKING

from bson import encode

from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import DocumentId, document_id
from d5agent.core.replay.ttl import has_expired
from tests.fakes.indexes import Identity, UniqueIndex, identity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.log.operation import ClusterTime
    from d5agent.core.replay.ttl import TtlIndex

Change = tuple[str, Namespace, "DocumentId | None"] | tuple[str, Namespace, None, Namespace]
"""The kind of an event, what it concerns, and its new name if it is a rename."""


def raw_id(value: object) -> DocumentId:
    """Return a Python value as an `_id`."""
    return document_id(encode({"_id": value}))


def raw_document(fields: Mapping[str, object]) -> bytes:
    """Return a document's bytes."""
    return encode(fields)


@dataclass(slots=True)
class FakeDatabase:
    """Collections of one server. `unique` holds the collections' unique indexes, `ttl` those that delete by age.

    `capped`: how many documents a collection keeps. An insert into a full one removes the oldest, as a server does; no
    event tells of it, as in MongoDB before 5.0. `changes`: what its change stream tells, whoever did it. `is_blocked`:
    it is in write-block mode, in which only the agent writes, and nothing is deleted by its age.
    """

    unique: dict[Namespace, frozenset[UniqueIndex]] = field(default_factory=dict)
    collections: dict[Namespace, dict[Identity, bytes]] = field(default_factory=dict)
    options: dict[Namespace, dict[str, str]] = field(default_factory=dict)
    capped: dict[Namespace, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    ttl: dict[Namespace, tuple[TtlIndex, ...]] = field(default_factory=dict)
    is_blocked: bool = False

    def copy(self) -> FakeDatabase:
        """Return another server with the same content. Namespaces, indexes and documents never change."""
        return FakeDatabase(
            unique=dict(self.unique),
            collections={namespace: dict(documents) for namespace, documents in self.collections.items()},
            options={namespace: dict(options) for namespace, options in self.options.items()},
            capped=dict(self.capped),
            changes=list(self.changes),
            ttl=dict(self.ttl),
            is_blocked=self.is_blocked,
        )

    def __deepcopy__(self, _: object) -> FakeDatabase:
        """Return a copy for a world that is copied as a whole."""
        return self.copy()

    def find(self, namespace: Namespace, id_: DocumentId) -> bytes | None:
        """Return a document."""
        return self.collections.get(namespace, {}).get(identity(id_))

    def contents(self) -> dict[Namespace, dict[DocumentId, bytes]]:
        """Return all documents of all collections that hold any."""
        return {
            namespace: {document_id(document): document for document in documents.values()}
            for namespace, documents in self.collections.items()
            if documents
        }

    def taken_index(self, namespace: Namespace, id_: DocumentId, document: bytes) -> str | None:
        """Return the unique index in which another document holds a value of this one."""
        own, others = identity(id_), self.collections.get(namespace, {}).items()
        for index in self.unique.get(namespace, ()):
            keys = index.keys(document)
            if keys and not all(keys.isdisjoint(index.keys(other)) for key, other in others if key != own):
                return index.name
        return None

    def put(self, namespace: Namespace, id_: DocumentId, document: bytes) -> str | None:
        """Store a document in the place of the one with its `_id`; return the unique index that forbids it."""
        taken = self.taken_index(namespace, id_, document)
        if taken is None:
            documents = self.collections.setdefault(namespace, {})
            documents[identity(id_)] = document
            self.changes.append(("replace", namespace, id_))
            if len(documents) > self.capped.get(namespace, len(documents)):
                del documents[next(iter(documents))]
        return taken

    def remove(self, namespace: Namespace, id_: DocumentId) -> None:
        """Delete a document."""
        if self.collections.get(namespace, {}).pop(identity(id_), None) is not None:
            self.changes.append(("delete", namespace, id_))

    def drop(self, namespace: Namespace) -> None:
        """Remove a collection and its indexes."""
        if self.collections.pop(namespace, None) is not None:
            self.changes.append(("drop", namespace, None))
        self.unique.pop(namespace, None)
        self.ttl.pop(namespace, None)
        self.options.pop(namespace, None)

    def rename(self, namespace: Namespace, to: Namespace) -> None:
        """Give a collection another name, in the place of whatever has that name; an absent one stays so."""
        if namespace in self.collections:
            ttl = self.ttl.pop(namespace, ())
            indexes, options = self.unique.pop(namespace, None), self.options.pop(namespace, None)
            documents = self.collections.pop(namespace)
            self.drop(to)
            self.collections[to] = documents
            self.changes.append(("rename", namespace, None, to))
            if indexes is not None:
                self.unique[to] = indexes
            if ttl:
                # In another database it is another collection, with the same indexes.
                new = None if to.database == namespace.database else f"moved {len(self.changes)}"
                self.ttl[to] = tuple(
                    dataclass_replace(i, namespace=to, collection_id=i.collection_id if new is None else new)
                    for i in ttl
                )
            if options is not None:
                self.options[to] = options

    def names(self, database: str) -> list[Namespace]:
        """Return the collections of a database."""
        return sorted((n for n in self.collections if n.database == database), key=str)

    def drop_database(self, database: str) -> None:
        """Remove all of a database."""
        for namespace in self.names(database):
            self.drop(namespace)
        self.changes.append(("dropDatabase", Namespace(database), None))

    def reap(self, at: ClusterTime) -> int:
        """Delete what has expired, as a server does every minute; return how much."""
        if self.is_blocked:
            return 0
        expired = [
            (namespace, document_id(document))
            for namespace, indexes in self.ttl.items()
            for document in self.collections.get(namespace, {}).values()
            if has_expired(indexes, document, at)
        ]
        for namespace, id_ in expired:
            self.remove(namespace, id_)
        return len(expired)

    def write_as_another(self, namespace: Namespace, fields: Mapping[str, object]) -> bool:
        """Write as somebody who is not the agent; False: that is refused."""
        if not self.is_blocked:
            self.put(namespace, raw_id(fields["_id"]), raw_document(fields))
        return not self.is_blocked
