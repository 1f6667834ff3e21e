"""Frames of MongoDB's wire protocol: reads a message, finds its body, builds one."""

import asyncio
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

from d5agent.drill.gateway.bsonwalk import ARRAY, DOCUMENT, document_end, elements, read_int32

OP_REPLY: Final = 1
OP_QUERY: Final = 2004
OP_MSG: Final = 2013

CHECKSUM_PRESENT: Final = 1 << 0
MORE_TO_COME: Final = 1 << 1

MAX_MESSAGE_BYTES: Final = 48_000_000 + 16_384

_HEADER: Final = struct.Struct("<iiii")
_FLAGS: Final = struct.Struct("<I")
_HEADER_BYTES: Final = 16
_BODY_OF_MSG: Final = 20
_BODY_OF_REPLY: Final = 36
# Dates outside of what datetime holds must not stop a request that carries one.
_CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_request_ids: Final = count(1)


class ProtocolError(Exception):
    """The peer sent what this proxy does not speak; its connection ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, raw, and where its body document starts."""

    raw: bytes
    opcode: int
    request_id: int
    response_to: int
    flags: int
    body: int

    @property
    def more_to_come(self) -> bool:
        return self.opcode == OP_MSG and bool(self.flags & MORE_TO_COME)

    def decode(self) -> dict[str, Any]:
        return decode(self.raw, self.body)

    def command(self) -> str:
        """Name the body's first element: what the client asks for."""
        return next((e[1].decode() for e in elements(self.raw, self.body)), "")


def decode(buf: bytes, at: int) -> dict[str, Any]:
    """Decode the small document at `at`, types kept."""
    return bson.decode(buf[at : document_end(buf, at)], _CODEC)


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """Read the next message, or None at the end of the connection."""
    try:
        header = await reader.readexactly(_HEADER_BYTES)
        size, request_id, response_to, opcode = _HEADER.unpack(header)
        if not _BODY_OF_MSG < size <= MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message of {size} bytes")
        raw = header + await reader.readexactly(size - _HEADER_BYTES)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    flags = int(_FLAGS.unpack_from(raw, _HEADER_BYTES)[0])
    return Message(
        raw=raw,
        opcode=opcode,
        request_id=request_id,
        response_to=response_to,
        flags=flags,
        body=_find_body(raw, opcode, flags),
    )


def _find_body(raw: bytes, opcode: int, flags: int) -> int:
    if opcode == OP_MSG:
        return _find_body_section(raw, flags)
    if opcode == OP_QUERY:
        return raw.index(0, _BODY_OF_MSG) + 9  # the name's end, then skip and limit
    if opcode == OP_REPLY:
        return _BODY_OF_REPLY
    raise ProtocolError(f"opcode {opcode}")


def _find_body_section(raw: bytes, flags: int) -> int:
    at = _BODY_OF_MSG
    end = len(raw) - (4 if flags & CHECKSUM_PRESENT else 0)
    while at < end:
        if raw[at] == 0:
            return at + 1
        at += 1 + int(read_int32(raw, at + 1)[0])
    raise ProtocolError("a message without a body")


def statements(message: Message, names: Collection[bytes]) -> Iterator[int]:
    """Yield where each document of these lists begins, in the body and in sections of their own."""
    raw = message.raw
    for kind, name, _, value, _ in elements(raw, message.body):
        if kind == ARRAY and name in names:
            yield from (start for inner, _, _, start, _ in elements(raw, value) if inner == DOCUMENT)
    at, end = _BODY_OF_MSG, len(raw) - (4 if message.flags & CHECKSUM_PRESENT else 0)
    while message.opcode == OP_MSG and at < end:
        if raw[at] == 0:
            at = document_end(raw, at + 1)
            continue
        stop = at + 1 + int(read_int32(raw, at + 1)[0])
        name_end = raw.index(0, at + 5)
        start = name_end + 1
        while raw[at + 5 : name_end] in names and start < stop:
            yield start
            start = document_end(raw, start)
        at = stop


def with_body(message: Message, pieces: list[bytes]) -> bytes:
    """Give the message another body; other sections stay, a checksum goes."""
    raw, flags, end = message.raw, message.flags, len(message.raw)
    if message.opcode == OP_MSG and flags & CHECKSUM_PRESENT:
        flags &= ~CHECKSUM_PRESENT
        end -= 4
    before = raw[_BODY_OF_MSG : message.body]
    after = raw[document_end(raw, message.body) : end]
    size = _BODY_OF_MSG + len(before) + sum(map(len, pieces)) + len(after)
    header = _HEADER.pack(size, message.request_id, message.response_to, message.opcode)
    return b"".join([header, _FLAGS.pack(flags), before, *pieces, after])


def reply_to(request: Message, document: dict[str, Any]) -> bytes:
    """Build the gateway's own answer to a request."""
    body = bson.encode(document)
    request_id = next(_request_ids) & 0x7FFFFFFF
    if request.opcode == OP_QUERY:
        head = struct.pack("<iqii", 8, 0, 0, 1)
        opcode = OP_REPLY
    else:
        head = _FLAGS.pack(0) + b"\0"
        opcode = OP_MSG
    size = _HEADER_BYTES + len(head) + len(body)
    return _HEADER.pack(size, request_id, request.request_id, opcode) + head + body


def request_instead(request: Message, document: dict[str, Any]) -> bytes:
    """Put another command in the place of the client's, under the client's request id."""
    body = bson.encode(document)
    size = _BODY_OF_MSG + 1 + len(body)
    header = _HEADER.pack(size, request.request_id, 0, OP_MSG)
    return header + _FLAGS.pack(0) + b"\0" + body
