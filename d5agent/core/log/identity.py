"""Which BSON values are one value to the server: `{a: 1}` and `{a: 1.0}` are the same `_id`.

The server compares numbers by value whatever their type, strings and symbols by their bytes, documents by their fields
in order, and arrays by their elements ("Comparison/Sort Order", MongoDB manual). Values are walked as bytes, without a
decoder and without a decimal context: 34 digits count.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from d5agent.core.log import raw
from d5agent.core.log.raw import DocumentId
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Callable

Identity = bytes
"""Of a value: the same for values that are one to the server."""

Number = tuple[int, int]
"""A finite number: a coefficient that does not end with zero, and a power of ten."""

_INT32: Final = struct.Struct("<i")
_DOUBLE: Final = struct.Struct("<d")
_DECIMAL: Final = struct.Struct("<QQ")  # the lower half first
_MOST_DIGITS: Final = 10**34  # a coefficient from there on stands for zero (IEEE 754-2008, section 3.5.2)
_LARGE: Final = 0b11  # the two bits after the sign
_MOST_ZEROS: Final = 18  # at the end of an integer of 64 bits
_INT64_ENDS: Final = 1 << 63
_FROM_ZERO: Final = bytes(4)
_BELOW_ZERO: Final = b"\xff" * 4
_BIAS: Final = 6176  # of a decimal128's exponent
_NOT_FINITE: Final = {float("inf"): b"i", float("-inf"): b"-i"}
_NOT_FINITE_DECIMALS: Final = {0b01111000: b"i", 0b11111000: b"-i", 0b01111100: b"nan", 0b11111100: b"nan"}
_UNIQUE_AS_BYTES: Final = frozenset({0x02, 0x05, 0x07, 0x09, 0x11})
"""The types of nearly all `_id`s that are no number: their bytes are their identity."""


def identity_of(value: DocumentId, fold: Callable[[bytes], bytes] | None = None) -> Identity:
    """Return a value as bytes that are the same for values that are one to the server.

    `fold`: what a collation makes of the bytes of a string. A value that is damaged is its own bytes.
    """
    type_ = value[0]
    if fold is None and type_ in _UNIQUE_AS_BYTES:
        return value
    if type_ == raw.INT32:  # replay asks for each operation: nearly all `_id`s that are numbers are of this type
        return b"\x01" + value[1:] + (_BELOW_ZERO if value[-1] & 0x80 else _FROM_ZERO)
    try:
        return _identity(type_, value[1:], fold)
    except (CorruptDataError, IndexError, RecursionError, struct.error):
        return value


def number_of(value: DocumentId) -> Number | bytes | None:
    """Return the number that a value is: exactly, or a name of what is not finite; None: it is no number."""
    type_, body = value[0], value[1:]
    if type_ in {raw.INT32, raw.INT64}:
        return _stripped(int.from_bytes(body, "little", signed=True), 0)
    if type_ == raw.DOUBLE:
        return _double(_DOUBLE.unpack(body)[0])
    return _decimal(body) if type_ == raw.DECIMAL128 else None


def _identity(type_: int, body: bytes, fold: Callable[[bytes], bytes] | None) -> bytes:
    number = number_of(DocumentId(bytes((type_,)) + body))
    if number is not None:
        return _of_number(number)
    if type_ in {raw.STRING, raw.SYMBOL}:
        text = body[4:-1]
        return b"\x02" + _sized(fold(text) if fold else text) + b"\0"
    if type_ in {raw.DOCUMENT, raw.ARRAY}:
        return bytes((type_,)) + _fields(body, fold, has_names=type_ == raw.DOCUMENT)
    if type_ == raw.CODE_WITH_SCOPE:
        scope = 4 + 4 + _INT32.unpack_from(body, 4)[0]
        return bytes((type_,)) + _sized(body[8:scope]) + _fields(body[scope:], fold, has_names=True)
    return bytes((type_,)) + body


def _of_number(number: Number | bytes) -> Identity:
    """Return the eight bytes of an integer that has so many, or a text: it begins with another byte."""
    if isinstance(number, bytes):
        return b"\x81" + number
    coefficient, exponent = number
    whole: int = coefficient * 10**exponent if 0 <= exponent <= _MOST_ZEROS else _INT64_ENDS
    if -_INT64_ENDS <= whole < _INT64_ENDS:
        return b"\x01" + whole.to_bytes(8, "little", signed=True)
    return b"\x81%x %d" % number


def _fields(document: bytes, fold: Callable[[bytes], bytes] | None, *, has_names: bool) -> bytes:
    found = []
    for element in raw.elements(document):
        name = element.name + b"\0" if has_names else b""
        found.append(name + _sized(_identity(element.type, document[element.start : element.end], fold)))
    return b"".join(found)


def _sized(part: bytes) -> bytes:
    return _INT32.pack(len(part) + 1) + part


def _double(value: float) -> Number | bytes:
    if value != value:  # noqa: PLR0124 -- only not-a-number is not itself
        return b"nan"
    if value in _NOT_FINITE:
        return _NOT_FINITE[value]
    numerator, denominator = value.as_integer_ratio()
    halvings = denominator.bit_length() - 1
    return _stripped(numerator * 5**halvings, -halvings)


def _decimal(body: bytes) -> Number | bytes:
    """Return the number in a decimal128, in its binary encoding ("BSON Decimal128", MongoDB specifications)."""
    low, high = _DECIMAL.unpack(body)
    special = _NOT_FINITE_DECIMALS.get(body[15] & 0b11111100)
    if special is not None:
        return special
    if (high >> 61) & _LARGE == _LARGE:  # a coefficient larger than 34 digits
        return 0, 0
    coefficient = ((high & (1 << 49) - 1) << 64) | low
    exponent = ((high >> 49) & 0x3FFF) - _BIAS
    if coefficient >= _MOST_DIGITS:
        return 0, 0
    return _stripped(-coefficient if high >> 63 else coefficient, exponent)


def _stripped(coefficient: int, exponent: int) -> Number:
    if coefficient == 0:
        return 0, 0
    while coefficient % 10 == 0:
        coefficient, exponent = coefficient // 10, exponent + 1
    return coefficient, exponent
