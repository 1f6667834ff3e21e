"""Documents as canonical Extended JSON (version 2), without a decoder that might refuse one, and without a loss.

What JSON cannot hold stands as `{"$bson": "<base64>"}`, its type byte and its bytes: a string that is not UTF-8, a
document with such a field name, or one that would be read as a value of another type. Fields of one name stay two.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import TYPE_CHECKING, Final

from bson import Decimal128

from d5agent.core.log import raw
from d5agent.core.log.raw import DocumentId
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Scalars = Mapping[int, Callable[[bytes], str]]

_INT32: Final = struct.Struct("<i")
_DEEPEST: Final = 200  # levels; a server stores no more ("BSON Document Limits", MongoDB manual: 100)
_READ_AS_A_TYPE: Final = frozenset(
    b"$bson $oid $symbol $numberInt $numberLong $numberDouble $numberDecimal $binary $uuid $code $scope $timestamp "
    b"$regularExpression $regex $options $dbPointer $date $minKey $maxKey $undefined".split()
)
_DOUBLE: Final = struct.Struct("<d")
_TIMESTAMP: Final = struct.Struct("<II")  # increment first
_NAN: Final = _DOUBLE.pack(float("nan"))
_INFINITE: Final = {float("inf"): "Infinity", float("-inf"): "-Infinity"}
_OPTIONS: Final = frozenset(b"ilmsux")  # of a regular expression
_OLD_BINARY: Final = 2  # its bytes begin with their length once more


def to_text(document: bytes) -> str:
    """Return a document as one line. It never fails: what is no document is shown as its bytes."""
    return _text(raw.DOCUMENT, document, 0, _CANONICAL)


def to_readable(document: bytes) -> str:
    """Return a document as people write it: numbers without their types."""
    return _text(raw.DOCUMENT, document, 0, _READABLE)


def value_to_readable(value: DocumentId) -> str:
    """Return one value as people write it: numbers without their types."""
    return _text(value[0], value[1:], 0, _READABLE)


def _text(type_: int, body: bytes, depth: int, scalars: Scalars) -> str:
    try:
        if type_ in {raw.DOCUMENT, raw.ARRAY} and depth < _DEEPEST:
            return _nested(type_, body, depth + 1, scalars)
        if type_ == raw.CODE_WITH_SCOPE:
            return _code_with_scope(body, depth + 1, scalars)
        return scalars[type_](body)
    except (CorruptDataError, KeyError, ValueError, IndexError, struct.error):  # UnicodeDecodeError is a ValueError
        return exact(DocumentId(bytes((type_,)) + body))


def exact(value: DocumentId) -> str:
    """Return a value as its bytes: what nothing else can show."""
    return f'{{"$bson": "{base64.b64encode(value).decode()}"}}'


def _nested(type_: int, body: bytes, depth: int, scalars: Scalars) -> str:
    parts = []
    for number, element in enumerate(raw.elements(body)):
        text = _text(element.type, body[element.start : element.end], depth, scalars)
        if type_ == raw.DOCUMENT:
            if element.name in _READ_AS_A_TYPE:
                raise ValueError(element.name)
            text = f"{_quoted(element.name)}: {text}"
        elif element.name != str(number).encode():
            raise ValueError(element.name)
        parts.append(text)
    return f"{{{', '.join(parts)}}}" if type_ == raw.DOCUMENT else f"[{', '.join(parts)}]"


def _quoted(text: bytes) -> str:
    return json.dumps(text.decode(), ensure_ascii=False)


def _string(body: bytes) -> str:
    if _INT32.unpack_from(body)[0] != len(body) - 4 or body[-1]:
        raise ValueError(body)
    return _quoted(body[4:-1])


def _number(kind: str) -> Callable[[bytes], str]:
    return lambda body: f'{{"${kind}": "{int.from_bytes(body, "little", signed=True)}"}}'


def _date(body: bytes) -> str:
    return f'{{"$date": {_number("numberLong")(body)}}}'


def _timestamp(body: bytes) -> str:
    increment, seconds = _TIMESTAMP.unpack(body)
    return f'{{"$timestamp": {{"t": {seconds}, "i": {increment}}}}}'


def _double(body: bytes) -> str:
    (value,) = _DOUBLE.unpack(body)
    if math.isnan(value):
        if body != _NAN:
            raise ValueError(body)
        return '{"$numberDouble": "NaN"}'
    return f'{{"$numberDouble": "{_INFINITE.get(value, value)}"}}'


def _plain_double(body: bytes) -> str:
    (value,) = _DOUBLE.unpack(body)
    return str(value) if math.isfinite(value) else _double(body)


def _binary(body: bytes) -> str:
    size, subtype = _INT32.unpack_from(body)[0], body[4]
    content = body[5:]
    if subtype == _OLD_BINARY:
        if _INT32.unpack_from(content)[0] != size - 4:
            raise ValueError(size)
        content = content[4:]
    return f'{{"$binary": {{"base64": "{base64.b64encode(content).decode()}", "subType": "{subtype:02x}"}}}}'


def _boolean(body: bytes) -> str:
    return {b"\0": "false", b"\1": "true"}[body]


def _regex(body: bytes) -> str:
    pattern, options, _ = body.split(b"\0")
    if not set(options) <= _OPTIONS or bytes(sorted(options)) != options:
        raise ValueError(options)
    return f'{{"$regularExpression": {{"pattern": {_quoted(pattern)}, "options": {_quoted(options)}}}}}'


def _pointer(body: bytes) -> str:
    return f'{{"$dbPointer": {{"$ref": {_string(body[:-12])}, "$id": {{"$oid": "{body[-12:].hex()}"}}}}}}'


def _code_with_scope(body: bytes, depth: int, scalars: Scalars) -> str:
    end = 8 + _INT32.unpack_from(body, 4)[0]
    return f'{{"$code": {_string(body[4:end])}, "$scope": {_text(raw.DOCUMENT, body[end:], depth, scalars)}}}'


def _decimal(body: bytes) -> str:
    text = str(Decimal128.from_bid(body))
    if Decimal128(text).bid != body:
        raise ValueError(text)
    return f'{{"$numberDecimal": "{text}"}}'


_CANONICAL: Final[Scalars] = {
    0x01: _double,
    0x02: _string,
    0x05: _binary,
    0x06: lambda _: '{"$undefined": true}',
    0x07: lambda body: f'{{"$oid": "{body.hex()}"}}',
    0x08: _boolean,
    0x09: _date,
    0x0A: lambda _: "null",
    0x0B: _regex,
    0x0C: _pointer,
    0x0D: lambda body: f'{{"$code": {_string(body)}}}',
    0x0E: lambda body: f'{{"$symbol": {_string(body)}}}',
    0x10: _number("numberInt"),
    0x11: _timestamp,
    0x12: _number("numberLong"),
    0x13: _decimal,
    0x7F: lambda _: '{"$maxKey": 1}',
    0xFF: lambda _: '{"$minKey": 1}',
}
_READABLE: Final[Scalars] = {
    **_CANONICAL,
    raw.DOUBLE: _plain_double,
    raw.INT32: lambda body: str(int.from_bytes(body, "little", signed=True)),
    raw.INT64: lambda body: str(int.from_bytes(body, "little", signed=True)),
}
