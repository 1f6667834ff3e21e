"""Which keys a document has in a unique index, to foresee what the target will refuse.

The server is the judge of what conflicts; this is as near to it as a forecast needs ("Unique Indexes", MongoDB manual):
an absent field counts as null, a sparse index leaves out what has none of its fields, an array gives a key an element.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bson import encode
from bson.json_util import loads

from d5agent.core.log import raw
from d5agent.core.log.extended_json import value_to_readable
from d5agent.core.log.identity import identity_of, number_of
from d5agent.core.log.raw import DocumentId, document_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MOST_KEYS: Final = 1000  # of one document in one index: two long arrays multiply
_IGNORES_CASE: Final = 2  # the collation strength up to which case does not count
_SHOWN: Final = 200
_BYTES_IN_ORDER: Final = frozenset({raw.STRING, raw.OBJECT_ID, raw.BOOLEAN})
_NULL: Final = DocumentId(bytes((raw.NULL,)))

Key = tuple[DocumentId, ...]
"""The values of an index's fields, as they stand in BSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UniqueIndex:
    """A unique index. `partial`: only documents that match this filter are in it."""

    name: str
    fields: tuple[str, ...]
    is_sparse: bool = False
    partial: Mapping[str, Any] | None = None
    collation: Mapping[str, Any] | None = None


def unique_indexes(specifications: Mapping[str, str]) -> list[UniqueIndex]:
    """Return the unique ones of a collection's indexes, given as `CollectionFacts` describes them."""
    found = []
    for name, text in specifications.items():
        key, end = json.JSONDecoder().raw_decode(text)
        options = loads(text[end:]) if text[end:].strip() else {}
        if options.get("unique"):
            index = UniqueIndex(
                name=name,
                fields=tuple(key),
                is_sparse=bool(options.get("sparse")),
                partial=options.get("partialFilterExpression"),
                collation=options.get("collation"),
            )
            found.append(index)
    return found


def keys_of(index: UniqueIndex, document: bytes, *, is_in: bool = False) -> list[Key]:
    """Return a document's keys in an index; `is_in`: it is known to match the index's filter."""
    if not is_in and index.partial is not None and not _matches(index.partial, document):
        return []
    found = [list(_values_in(document, field.split("."))) for field in index.fields]
    if index.is_sparse and all(value is None for values in found for value in values):
        return []
    plain = ([_NULL if value is None else value for value in values] for values in found)
    return list(itertools.islice(itertools.product(*plain), _MOST_KEYS))


def comparable(index: UniqueIndex, key: Key) -> bytes:
    """Return a key as bytes that are the same for keys that are equal to the server: 1 is 1.0."""
    strength = (index.collation or {}).get("strength", _IGNORES_CASE + 1)
    fold = partial(_folded, strength=strength) if strength <= _IGNORES_CASE else None
    return b"\0".join(identity_of(value, fold) for value in key)


def key_to_text(index: UniqueIndex, key: Key) -> str:
    """Return a key as people read it, cut when it is long."""
    values = (
        f"{json.dumps(field)}: {value_to_readable(value)}" for field, value in zip(index.fields, key, strict=True)
    )
    text = f"{{{', '.join(values)}}}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _folded(text: bytes, strength: int) -> bytes:
    plain = text.decode(errors="surrogateescape").casefold()
    if strength < _IGNORES_CASE:
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    return plain.encode(errors="surrogateescape")


def _values_in(document: bytes, path: Sequence[str]) -> Iterator[DocumentId | None]:
    """Yield the values at a path in a document; None: there is none."""
    name = path[0].encode()
    for element in raw.elements(document):
        if element.name == name:  # of two fields of one name the server takes the first
            yield from _values(raw.value_at(document, element), path[1:])
            return
    yield None


def _values(value: DocumentId, path: Sequence[str]) -> Iterator[DocumentId | None]:
    """Yield the values at a path; of an array, its elements', and the empty one as itself."""
    body = value[1:]
    inner = [raw.value_at(body, element) for element in raw.elements(body)] if value[0] == raw.ARRAY else []
    if not path:
        yield from inner or [value]
    elif value[0] == raw.DOCUMENT:
        yield from _values_in(body, path)
    elif inner:
        for element in inner:
            yield from _values(element, path) if element[0] == raw.DOCUMENT else [None]
    else:
        yield None


def _matches(expression: Mapping[str, Any], document: bytes) -> bool:
    """Whether a document matches an index's filter; an operator that is not known here counts as met."""
    for name, condition in expression.items():
        if name == "$and":
            is_met = all(_matches(part, document) for part in condition)
        elif name.startswith("$"):
            is_met = True
        else:
            values = list(_values_in(document, name.split(".")))
            tests = condition if _is_operators(condition) else {"$eq": condition}
            is_met = all(any(_meets(test, operand, value) for value in values) for test, operand in tests.items())
        if not is_met:
            return False
    return True


def _is_operators(condition: Any) -> bool:  # noqa: ANN401 -- any BSON value
    return isinstance(condition, dict) and any(name.startswith("$") for name in condition)


def _meets(test: str, operand: Any, value: DocumentId | None) -> bool:  # noqa: ANN401 -- any BSON value
    if test == "$exists":
        return (value is not None) == bool(operand)
    plain, other = _NULL if value is None else value, document_id(encode({"_id": operand}))
    if test == "$eq":
        return identity_of(plain) == identity_of(other)
    if test not in {"$gt", "$gte", "$lt", "$lte"}:
        return True
    one, two = _ordered(plain), _ordered(other)
    if one is None or two is None or one[0] != two[0]:
        return False  # values of different types are in no order
    return {"$gt": one > two, "$gte": one >= two, "$lt": one < two, "$lte": one <= two}[test]


def _ordered(value: DocumentId) -> tuple[int, Any] | None:
    """Return a value as something that has an order among its kind; None: what filters seldom compare."""
    type_, body = value[0], value[1:]
    number = number_of(value)
    if isinstance(number, tuple):
        return raw.DOUBLE, Fraction(number[0]) * Fraction(10) ** number[1]
    if type_ in {raw.DATE, raw.TIMESTAMP}:
        return type_, int.from_bytes(body, "little", signed=type_ == raw.DATE)
    return (type_, body[4:-1] if type_ == raw.STRING else body) if type_ in _BYTES_IN_ORDER else None
