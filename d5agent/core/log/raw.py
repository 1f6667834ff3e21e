"""A walk over the top-level elements of a raw BSON document, without decoding any value.

Events are stored as they came, byte for byte, so nothing here builds a dictionary. The layout is that of the BSON
specification, version 1.1 (bsonspec.org).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple, NewType

from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DocumentId = NewType("DocumentId", bytes)
"""An `_id`, or another value, as it stands in BSON: one type byte, then the value."""

_INT32: Final = struct.Struct("<i")
_TIMESTAMP: Final = struct.Struct("<II")  # increment first, seconds second

DOUBLE: Final = 0x01
STRING: Final = 0x02
DOCUMENT: Final = 0x03
ARRAY: Final = 0x04
OBJECT_ID: Final = 0x07
BOOLEAN: Final = 0x08
DATE: Final = 0x09
NULL: Final = 0x0A
SYMBOL: Final = 0x0E
CODE_WITH_SCOPE: Final = 0x0F
INT32: Final = 0x10
TIMESTAMP: Final = 0x11
INT64: Final = 0x12
DECIMAL128: Final = 0x13

_FIXED_SIZES: Final = {
    0x01: 8,  # double
    0x06: 0,  # undefined
    0x07: 12,  # ObjectId
    0x08: 1,  # boolean
    0x09: 8,  # date
    0x0A: 0,  # null
    0x10: 4,  # int32
    0x11: 8,  # timestamp
    0x12: 8,  # int64
    0x13: 16,  # decimal128
    0x7F: 0,  # MaxKey
    0xFF: 0,  # MinKey
}
_LENGTH_PREFIXED: Final = {
    0x02: 4,  # string: the length counts the bytes after it
    0x03: 0,  # document: the length counts itself too
    0x04: 0,  # array
    0x05: 5,  # binary: length, subtype, then the bytes
    0x0C: 16,  # DBPointer: string, then 12 bytes
    0x0D: 4,  # code
    0x0E: 4,  # symbol
    0x0F: 0,  # code with scope
}
_REGEX: Final = 0x0B
_IS_LENGTH_PREFIXED: Final = -1
# By type: a fixed size, _IS_LENGTH_PREFIXED, or less for what is rare or unknown.
_SIZE_OF_TYPE: Final = tuple(
    _FIXED_SIZES.get(type_, _IS_LENGTH_PREFIXED if type_ in _LENGTH_PREFIXED else -2) for type_ in range(256)
)
_SMALLEST_DOCUMENT: Final = 5
_ID_NAME: Final = b"_id\0"
_ID_VALUE: Final = 9  # where its value begins when it stands first


Span = tuple[int, int, int]
"""Of one element: its type, and where its value begins and ends in the document."""


class Element(NamedTuple):
    """One element: its type, its name, and where its value lies in the document."""

    type: int
    name: bytes
    start: int
    end: int


def _value_end(document: bytes, type_: int, start: int) -> int:
    """Where the value that begins at `start` ends."""
    fixed = _FIXED_SIZES.get(type_)
    if fixed is not None:
        return start + fixed
    if type_ == _REGEX:  # two C strings: pattern and flags
        return document.index(b"\0", document.index(b"\0", start) + 1) + 1
    return start + int(_INT32.unpack_from(document, start)[0]) + _LENGTH_PREFIXED[type_]


def elements(document: bytes) -> Iterator[Element]:
    """Yield the top-level elements of one document, in order.

    Raises CorruptDataError when the bytes are not one whole BSON document.
    """
    end = len(document) - 1
    if end < _SMALLEST_DOCUMENT - 1 or _INT32.unpack_from(document)[0] != len(document) or document[end] != 0:
        raise CorruptDataError("not a whole BSON document", bytes=len(document))
    at = 4
    try:
        while at < end:
            type_ = document[at]
            name_end = document.index(b"\0", at + 1, end)
            value_end = _value_end(document, type_, name_end + 1)
            if not name_end < value_end <= end:
                raise CorruptDataError("a BSON element runs past its document", offset=at)
            yield Element(type_, document[at + 1 : name_end], name_end + 1, value_end)
            at = value_end
    except (KeyError, ValueError, struct.error) as error:
        raise CorruptDataError("not a BSON element", offset=at) from error


def spans(document: bytes, start: int = 0) -> dict[bytes, Span]:
    """Return type, begin and end of each top-level value of the document that begins at `start`, by name.

    What `elements` yields, for the one place where its cost counts: each captured event passes here once. So it stands
    inline, without a call or an object per element (docs/performance.md has the figures).
    """
    try:
        end = start + _INT32.unpack_from(document, start)[0] - 1
        if start + _SMALLEST_DOCUMENT - 1 > end or document[end] != 0:
            raise CorruptDataError("not a whole BSON document", bytes=len(document) - start)
        found = {}
        at = start + 4
        while at < end:
            type_ = document[at]
            name_end = document.index(b"\0", at + 1, end)
            value = name_end + 1
            size = _SIZE_OF_TYPE[type_]
            if size >= 0:
                value_end = value + size
            elif size == _IS_LENGTH_PREFIXED:
                value_end = value + _INT32.unpack_from(document, value)[0] + _LENGTH_PREFIXED[type_]
            else:
                value_end = _value_end(document, type_, value)
            if not name_end < value_end <= end:
                raise CorruptDataError("a BSON element runs past its document", offset=at)
            found[document[at + 1 : name_end]] = (type_, value, value_end)
            at = value_end
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise CorruptDataError("not a whole BSON document", bytes=len(document) - start) from error
    return found


def documents_of(array: bytes, start: int = 0) -> list[bytes]:
    """Return the documents of a BSON array of documents that begins at `start`."""
    try:
        end = start + _INT32.unpack_from(array, start)[0] - 1
        if array[end] != 0:
            raise CorruptDataError("not an array of documents", bytes=len(array) - start)
        at = start + 4
        found = []
        while at < end:
            value = array.index(b"\0", at + 1, end) + 1
            value_end = value + _INT32.unpack_from(array, value)[0]
            if array[at] != DOCUMENT or not value + _SMALLEST_DOCUMENT <= value_end <= end:
                raise CorruptDataError("not an array of documents", offset=at)
            found.append(array[value:value_end])
            at = value_end
    except (IndexError, ValueError, struct.error) as error:
        raise CorruptDataError("not an array of documents", bytes=len(array) - start) from error
    return found


def count_documents_of(array: bytes) -> int:
    """Return how many documents a BSON array of documents holds.

    Its elements are called 0, 1, 2 …, so a name's length is known without a look: counting costs a tenth of taking it
    apart, where whole pages are compared.
    """
    end = len(array) - 1
    at, count, name_size = 4, 0, 1
    try:
        while at < end:
            at += 2 + name_size  # the type, the name and its end
            at += _INT32.unpack_from(array, at)[0]
            count += 1
            if count == 10**name_size:
                name_size += 1
    except struct.error as error:
        raise CorruptDataError("not an array of documents", bytes=len(array)) from error
    if at != end:
        raise CorruptDataError("not an array of documents", bytes=len(array))
    return count


def document_id(document: bytes) -> DocumentId:
    """Return the `_id` of a document (or of a documentKey); raises CorruptDataError when there is none."""
    if document[5:9] == _ID_NAME:  # it stands first nearly always: no walk then
        size = _SIZE_OF_TYPE[document[4]]
        if size >= 0 and _ID_VALUE + size < len(document):
            return DocumentId(document[4:5] + document[_ID_VALUE : _ID_VALUE + size])
    for element in elements(document):
        if element.name == b"_id":
            return value_at(document, element)
    raise CorruptDataError("a document without _id")


def has_repeated_name(document: bytes) -> bool:
    """Whether two fields of a document, or of one within it, have the same name."""
    names = set()
    for element in elements(document):
        if element.name in names:
            return True
        names.add(element.name)
        if element.type in {DOCUMENT, ARRAY} and has_repeated_name(document[element.start : element.end]):
            return True
    return False


def value_at(document: bytes, element: Element) -> DocumentId:
    """Return the value of an element, as an `_id` is held."""
    return DocumentId(bytes((element.type,)) + document[element.start : element.end])


def id_document(id_: DocumentId) -> bytes:
    """Return the raw document `{_id: <id>}`: a filter, or the `_id` in a shape that BSON tools read."""
    return _enclosed(id_[:1] + b"_id\0" + id_[1:])


def any_of_filter(ids: Sequence[DocumentId]) -> bytes:
    """Return the raw filter `{_id: {$in: [<ids>]}}`, each `_id` in its very type."""
    array = b"".join(id_[:1] + str(n).encode() + b"\0" + id_[1:] for n, id_ in enumerate(ids))
    inner = b"\x04$in\0" + _enclosed(array)
    return _enclosed(b"\x03_id\0" + _enclosed(inner))


def equality_filter(values: Mapping[str, DocumentId]) -> bytes:
    """Return the raw filter `{<field>: {$eq: <value>}, …}`: a value that is a regular expression is meant as itself."""
    conditions = (
        b"\x03" + name.encode() + b"\0" + _enclosed(value[:1] + b"$eq\0" + value[1:]) for name, value in values.items()
    )
    return _enclosed(b"".join(conditions))


def _enclosed(elements_: bytes) -> bytes:
    return _INT32.pack(len(elements_) + 5) + elements_ + b"\0"


def text_at(document: bytes, span: Span) -> str:
    """Return the text of a string, which a server may store although it is not UTF-8: `str.encode` gives it back.

    (With `errors="surrogateescape"`.)
    """
    return document[span[1] + 4 : span[2] - 1].decode(errors="surrogateescape")


def text_named(document: bytes, name: bytes) -> str:
    """Return the text of a document's field, as `text_at` does."""
    return text_at(document, spans(document)[name])


def int64_at(document: bytes, span: Span) -> int:
    """Return an integer element of either size."""
    return int.from_bytes(document[span[1] : span[2]], "little", signed=True)


def timestamp_in(document: bytes, span: Span) -> tuple[int, int]:
    """Return a timestamp as (seconds, increment)."""
    increment, seconds = _TIMESTAMP.unpack_from(document, span[1])
    return seconds, increment


def document_ends(body: bytes) -> Iterator[int]:
    """Yield where each document of a concatenation ends; raises CorruptDataError when it ends within one."""
    at, end = 0, len(body)
    while at < end:
        size = _INT32.unpack_from(body, at)[0] if at + 4 <= end else 0
        if size < _SMALLEST_DOCUMENT or at + size > end:
            raise CorruptDataError("a segment ends within a document", offset=at, bytes=end)
        at += size
        yield at


def split_documents(body: bytes) -> Iterator[bytes]:
    """Yield the documents of a concatenation; raises CorruptDataError when it ends within one."""
    at = 0
    for end in document_ends(body):
        yield body[at:end]
        at = end
