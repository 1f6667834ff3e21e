"""Unique indexes in memory: which keys a document has in one. Compound, sparse, partial and multikey ones."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from bson import decode

from d5agent.core.log.raw import DocumentId, elements, id_document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.core.log.raw import Element

_NUMBERS: Final = frozenset({0x01, 0x10, 0x12, 0x13})
_STRING: Final = 0x02
_DOCUMENT: Final = 0x03
_ARRAY: Final = 0x04
_NESTING: Final = frozenset({_DOCUMENT, _ARRAY})
_CODE_WITH_SCOPE: Final = 0x0F
_TEXTS: Final = frozenset({_STRING, 0x0E})  # a symbol is a string to the server
Identity = tuple[int, Fraction, bytes]
_OF_AN_EMPTY_ARRAY: Final[Identity] = (0x06, Fraction(0), b"")


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A unique, ascending index on top-level fields. `partial`: only documents that have this field are in it.

    The server's rules ("Unique Indexes", MongoDB manual): an absent field counts as null; a sparse index leaves out
    what has none of its fields; an array gives a key for each of its elements.
    """

    fields: tuple[str, ...]
    is_sparse: bool = False
    partial: str | None = None

    @property
    def name(self) -> str:
        """The name that a server gives it."""
        return "_".join(f"{field}_1" for field in self.fields)

    @property
    def options(self) -> Mapping[str, Any]:
        """What a server is told, beside the key."""
        options: dict[str, Any] = {"unique": True}
        if self.is_sparse:
            options["sparse"] = True
        if self.partial is not None:
            options["partialFilterExpression"] = {self.partial: {"$exists": True}}
        return options

    @property
    def specification(self) -> str:
        """What a reader tells of it."""
        key = json.dumps(dict.fromkeys(self.fields, 1))
        return f"{key} {json.dumps(self.options, sort_keys=True)}"

    def keys(self, document: bytes) -> frozenset[tuple[Identity, ...]]:
        """Return a document's keys; two documents may have none in common."""
        return _keys(self, document)


def sparse(field: str) -> frozenset[UniqueIndex]:
    """Return a collection's indexes: one on this field, without the documents that lack it."""
    return frozenset({UniqueIndex((field,), is_sparse=True)})


@lru_cache(maxsize=100_000)
def _keys(index: UniqueIndex, document: bytes) -> frozenset[tuple[Identity, ...]]:
    fields = {element.name.decode(errors="replace"): _value_of(document, element) for element in elements(document)}
    is_left_out = index.is_sparse and not any(field in fields for field in index.fields)
    if is_left_out or (index.partial is not None and index.partial not in fields):
        return frozenset()
    return frozenset(itertools.product(*(_elements(fields.get(field)) for field in index.fields)))


def _elements(value: DocumentId | None) -> Sequence[Identity]:
    if value is None:
        return [identity(DocumentId(b"\x0a"))]
    if value[0] != _ARRAY:
        return [identity(value)]
    return [identity(_value_of(value[1:], element)) for element in elements(value[1:])] or [_OF_AN_EMPTY_ARRAY]


@lru_cache(maxsize=100_000)
def identity(id_: DocumentId) -> Identity:
    """Return what tells values apart, and orders `_id`s: numbers are equal whatever their type (1 is 1.0).

    So they are inside documents and arrays, whose fields and elements count in their order.
    """
    type_ = id_[0]
    if type_ in _NESTING:
        named = type_ == _DOCUMENT
        inner = [(e.name if named else b"", _text(identity(_value_of(id_[1:], e)))) for e in elements(id_[1:])]
        return (type_, Fraction(0), repr(inner).encode())
    if type_ == _CODE_WITH_SCOPE:
        scope = 9 + int.from_bytes(id_[5:9], "little")
        inner = [(id_[9:scope], _text(identity(DocumentId(b"\x03" + id_[scope:]))))]
        return (type_, Fraction(0), repr(inner).encode())
    if type_ not in _NUMBERS:
        is_text = type_ in _TEXTS
        return (_STRING if is_text else type_, Fraction(0), id_[5:] if is_text else id_[1:])
    value = decode(id_document(id_))["_id"]
    number = value.to_decimal() if hasattr(value, "to_decimal") else value
    try:
        return (1, Fraction(number), b"")
    except (ValueError, OverflowError):  # not a number, or infinite
        return (1, Fraction(0), str(float(number)).encode())


def _text(found: Identity) -> str:
    type_, number, rest = found
    return f"{type_} {number.numerator:x}/{number.denominator:x} {rest!r}"


def _value_of(document: bytes, element: Element) -> DocumentId:
    return DocumentId(bytes((element.type,)) + document[element.start : element.end])


def vars_of(index: UniqueIndex) -> dict[str, Any]:
    """Return an index's specification as values."""
    return {"fields": list(index.fields), "is_sparse": index.is_sparse, "partial": index.partial}


def index_of(values: Mapping[str, Any]) -> UniqueIndex:
    """Return the index of such a specification."""
    return UniqueIndex(tuple(values["fields"]), is_sparse=values["is_sparse"], partial=values["partial"])
