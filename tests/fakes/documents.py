"""Collections in memory, with unique indexes and a server's notion of equal `_id`s."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bson import encode

from d5agent.core.operation import Namespace
from d5agent.core.raw import DocumentId, document_id
from tests.fakes.indexes import Identity, UniqueIndex, identity

if TYPE_CHECKING:
    from collections.abc import Mapping

Change = tuple[str, Namespace, "DocumentId | None"]
"""The kind of an event, and what it concerns."""


def raw_id(value: object) -> DocumentId:
    """Return a Python value as an `_id`."""
    return document_id(encode({"_id": value}))


def raw_document(fields: Mapping[str, object]) -> bytes:
    """Return a document's bytes."""
    return encode(fields)


@dataclass(slots=True)
class FakeDatabase:
    """Collections of one server. `unique` holds the collections' unique indexes.

    `capped`: how many documents a collection keeps. An insert into a full one removes the oldest, as a server does; no
    event tells of it, as in MongoDB before 5.0. `changes`: what its change stream tells, whoever did it.
    """

    unique: dict[Namespace, frozenset[UniqueIndex]] = field(default_factory=dict)
    collections: dict[Namespace, dict[Identity, bytes]] = field(default_factory=dict)
    options: dict[Namespace, dict[str, str]] = field(default_factory=dict)
    capped: dict[Namespace, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def copy(self) -> FakeDatabase:
        """Return another server with the same content. Namespaces, indexes and documents never change."""
        return FakeDatabase(
            unique=dict(self.unique),
            collections={namespace: dict(documents) for namespace, documents in self.collections.items()},
            options={namespace: dict(options) for namespace, options in self.options.items()},
            capped=dict(self.capped),
            changes=list(self.changes),
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

    def rename(self, namespace: Namespace, to: Namespace) -> None:
        """Give a collection another name, in the place of whatever has that name; an absent one stays so."""
        if namespace in self.collections:
            indexes = self.unique.pop(namespace, None)
            documents = self.collections.pop(namespace)
            self.drop(to)
            self.collections[to] = documents
            self.changes.append(("rename", namespace, None))
            self.changes.append(("rename", to, None))
            if indexes is not None:
                self.unique[to] = indexes

    def names(self, database: str) -> list[Namespace]:
        """Return the collections of a database."""
        return sorted((n for n in self.collections if n.database == database), key=str)

    def drop_database(self, database: str) -> None:
        """Remove all of a database."""
        for namespace in self.names(database):
            self.drop(namespace)
        self.changes.append(("dropDatabase", Namespace(database), None))
