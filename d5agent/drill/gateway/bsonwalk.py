"""Walks the top-level elements of raw BSON and cuts or replaces them without decoding the rest."""

import struct
from collections.abc import Collection, Iterator
from typing import Final, TypeAlias

# kind, name, where the element starts, where its value starts, where it ends
Element: TypeAlias = tuple[int, bytes, int, int, int]

DOCUMENT: Final = 0x03
ARRAY: Final = 0x04

_INT32: Final = struct.Struct("<i")
read_int32: Final = _INT32.unpack_from
pack_int32: Final = _INT32.pack

_FIXED: Final = {
    0x01: 8, 0x06: 0, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16,
    0x7F: 0, 0xFF: 0,
}  # fmt: skip
# What comes on top of the int32 that such a value begins with.
_PREFIXED: Final = {
    0x02: 4, 0x03: 0, 0x04: 0, 0x05: 5, 0x0C: 16, 0x0D: 4, 0x0E: 4, 0x0F: 0,
}  # fmt: skip
_REGEX: Final = 0x0B


def _end_of_value(buf: bytes, kind: int, at: int) -> int:
    if kind in _PREFIXED:
        return at + int(read_int32(buf, at)[0]) + _PREFIXED[kind]
    if kind in _FIXED:
        return at + _FIXED[kind]
    if kind == _REGEX:
        return buf.index(0, buf.index(0, at) + 1) + 1
    raise ValueError(f"unknown BSON type 0x{kind:02x}")


def elements(buf: bytes, at: int) -> Iterator[Element]:
    """Yield the elements of the document that starts at `at`."""
    at += 4
    while kind := buf[at]:
        name_end = buf.index(0, at + 1)
        value = name_end + 1
        end = _end_of_value(buf, kind, value)
        yield kind, buf[at + 1 : name_end], at, value, end
        at = end


def find(buf: bytes, at: int, name: bytes) -> Element | None:
    """Find the first element called `name`, if there is one."""
    for element in elements(buf, at):
        if element[1] == name:
            return element
    return None


def document_end(buf: bytes, at: int) -> int:
    """Where the document that starts at `at` ends."""
    return at + int(read_int32(buf, at)[0])


def assemble(pieces: list[bytes]) -> list[bytes]:
    """Frame raw elements as a document."""
    size = sum(map(len, pieces)) + 5
    return [pack_int32(size), *pieces, b"\0"]


def without(buf: bytes, at: int, names: Collection[bytes]) -> list[bytes]:
    """Pieces of the document at `at` less the elements called `names`; the rest byte for byte."""
    kept: list[bytes] = []
    start = at + 4
    for _, name, begin, _, end in elements(buf, at):
        if name in names:
            kept.append(buf[start:begin])
            start = end
    last = document_end(buf, at)
    if not kept:
        return [buf[at:last]]
    kept.append(buf[start : last - 1])
    return assemble(kept)
