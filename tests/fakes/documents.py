"""Collections in memory, with unique indexes and a server's notion of equal `_id`s."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from bson import decode, encode

from d5agent.core.raw import DocumentId, document_id, elements, id_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.operation import Namespace

_NUMBERS: Final = frozenset({0x01, 0x10, 0x12, 0x13})
_STRING: Final = 0x02
Identity = tuple[int, Fraction, bytes]


def identity(id_: DocumentId) -> Identity:
    """Return what tells `_id`s apart, and orders them: numbers are equal whatever their type (1 is 1.0)."""
    if id_[0] not in _NUMBERS:
        return (id_[0], Fraction(0), id_[5:] if id_[0] == _STRING else id_[1:])
    value = decode(id_document(id_))["_id"]
    number = value.to_decimal() if hasattr(value, "to_decimal") else value
    try:
        return (1, Fraction(number), b"")
    except (ValueError, OverflowError):  # not a number, or infinite
        return (1, Fraction(0), str(float(number)).encode())


def raw_id(value: object) -> DocumentId:
    """Return a Python value as an `_id`."""
    return document_id(encode({"_id": value}))


def raw_document(fields: Mapping[str, object]) -> bytes:
    """Return a document's bytes."""
    return encode(fields)


@dataclass(slots=True)
class FakeDatabase:
    """Collections of one server. `unique` names the collections' fields with a unique, sparse index."""

    unique: dict[Namespace, frozenset[str]] = field(default_factory=dict)
    collections: dict[Namespace, dict[Identity, bytes]] = field(default_factory=dict)

    def copy(self) -> FakeDatabase:
        """Return another server with the same content."""
        return copy.deepcopy(self)

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
        for name in self.unique.get(namespace, ()):
            value = _value(document, name)
            others = self.collections.get(namespace, {}).items()
            if value is not None and any(_value(d, name) == value for key, d in others if key != identity(id_)):
                return f"{name}_1"
        return None

    def put(self, namespace: Namespace, id_: DocumentId, document: bytes) -> str | None:
        """Store a document in the place of the one with its `_id`; return the unique index that forbids it."""
        taken = self.taken_index(namespace, id_, document)
        if taken is None:
            self.collections.setdefault(namespace, {})[identity(id_)] = document
        return taken

    def remove(self, namespace: Namespace, id_: DocumentId) -> None:
        """Delete a document."""
        self.collections.get(namespace, {}).pop(identity(id_), None)

    def drop(self, namespace: Namespace) -> None:
        """Remove a collection and its indexes."""
        self.collections.pop(namespace, None)
        self.unique.pop(namespace, None)

    def rename(self, namespace: Namespace, to: Namespace) -> None:
        """Give a collection another name, in the place of whatever has that name; an absent one stays so."""
        if namespace in self.collections:
            indexes = self.unique.pop(namespace, None)
            documents = self.collections.pop(namespace)
            self.drop(to)
            self.collections[to] = documents
            if indexes is not None:
                self.unique[to] = indexes

    def names(self, database: str) -> list[Namespace]:
        """Return the collections of a database."""
        return sorted((n for n in self.collections if n.database == database), key=str)

    def drop_database(self, database: str) -> None:
        """Remove all of a database."""
        for namespace in self.names(database):
            self.drop(namespace)


def _value(document: bytes, name: str) -> bytes | None:
    for element in elements(document):
        if element.name == name.encode():
            return bytes((element.type,)) + document[element.start : element.end]
    return None
