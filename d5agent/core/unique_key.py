"""Which keys a document has in a unique index, to foresee what the target will refuse.

The server is the judge of what conflicts; this is as near to it as a forecast needs ("Unique Indexes", MongoDB manual):
an absent field counts as null, a sparse index leaves out what has none of its fields, an array gives a key an element.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from bson import Decimal128, decode, encode
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.json_util import dumps, loads

from d5agent.core.raw import id_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from d5agent.core.raw import DocumentId

_CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_MOST_KEYS: Final = 1000  # of one document in one index: two long arrays multiply
_IGNORES_CASE: Final = 2  # the collation strength up to which case does not count
_SHOWN: Final = 200
_ABSENT: Final = object()

Key = tuple[Any, ...]
"""The values of an index's fields, decoded."""


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
    fields = decode(document, _CODEC)
    if not is_in and index.partial is not None and not _matches(index.partial, fields):
        return []
    found = [list(_values(fields, field.split("."))) for field in index.fields]
    if index.is_sparse and all(value is _ABSENT for values in found for value in values):
        return []
    plain = ([None if value is _ABSENT else value for value in values] for values in found)
    return list(itertools.islice(itertools.product(*plain), _MOST_KEYS))


def comparable(index: UniqueIndex, key: Key) -> bytes:
    """Return a key as bytes that are the same for keys that are equal to the server: 1 is 1.0."""
    strength = (index.collation or {}).get("strength", _IGNORES_CASE + 1)
    return b"\0".join(_comparable(value, strength) for value in key)


def identity_of(id_: DocumentId) -> bytes:
    """Return an `_id` as bytes that are the same for `_id`s that are one to the server."""
    return _comparable(decode(id_document(id_), _CODEC)["_id"], _IGNORES_CASE + 1)


def key_to_text(index: UniqueIndex, key: Key) -> str:
    """Return a key as people read it, cut when it is long."""
    text = dumps(dict(zip(index.fields, key, strict=True)), ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _comparable(value: Any, strength: int) -> bytes:  # noqa: ANN401 -- any BSON value
    if isinstance(value, int | float | Decimal128) and not isinstance(value, bool):
        number = value.to_decimal() if isinstance(value, Decimal128) else Decimal(value)
        return b"n" + (str(number.normalize() + 0).encode() if number.is_finite() else str(number).encode())
    if isinstance(value, str) and strength <= _IGNORES_CASE:
        value = value.casefold()
        if strength < _IGNORES_CASE:
            value = "".join(c for c in unicodedata.normalize("NFKD", value) if not unicodedata.combining(c))
    return encode({"": value})


def _values(value: Any, path: Sequence[str]) -> Iterator[Any]:  # noqa: ANN401 -- any BSON value
    """Yield the values at a path; of an array, its elements', and the empty one as itself."""
    if not path:
        yield from (value or [value]) if isinstance(value, list) else [value]
    elif isinstance(value, dict):
        yield from _values(value[path[0]], path[1:]) if path[0] in value else [_ABSENT]
    elif isinstance(value, list) and value:
        for element in value:
            yield from _values(element, path) if isinstance(element, dict) else [_ABSENT]
    else:
        yield _ABSENT


def _matches(expression: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether a document matches an index's filter; an operator that is not known here counts as met."""
    for name, condition in expression.items():
        if name == "$and":
            is_met = all(_matches(part, fields) for part in condition)
        elif name.startswith("$"):
            is_met = True
        else:
            values = list(_values(fields, name.split(".")))
            tests = condition if _is_operators(condition) else {"$eq": condition}
            is_met = all(any(_meets(test, operand, value) for value in values) for test, operand in tests.items())
        if not is_met:
            return False
    return True


def _is_operators(condition: Any) -> bool:  # noqa: ANN401 -- any BSON value
    return isinstance(condition, dict) and any(name.startswith("$") for name in condition)


def _meets(test: str, operand: Any, value: Any) -> bool:  # noqa: ANN401 -- any BSON value
    if test == "$exists":
        return (value is not _ABSENT) == bool(operand)
    plain = None if value is _ABSENT else value
    try:
        known = {
            "$eq": lambda: plain == operand,
            "$gt": lambda: plain > operand,
            "$gte": lambda: plain >= operand,
            "$lt": lambda: plain < operand,
            "$lte": lambda: plain <= operand,
        }
        return bool(known[test]()) if test in known else True
    except TypeError:  # values of different types are in no order
        return False
