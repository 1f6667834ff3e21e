"""Rewrites change events and their batches as raw bytes: nothing is decoded, no order changes."""

from collections.abc import Callable
from typing import Final, TypeAlias

from d5agent.drill.gateway.bsonwalk import (
    ARRAY,
    DOCUMENT,
    Element,
    assemble,
    document_end,
    elements,
    find,
    pack_int32,
    without,
)
from d5agent.drill.gateway.facts import ABSENT_EVENT_FIELDS
from d5agent.drill.gateway.scopes import Scope
from d5agent.drill.gateway.tokens import Position, TokenCodec, upstream_position

# {_data: "<hex>"}: document length, 0x02, "_data", 0, the string's length, the string.
_DATA_AT: Final = 15
_UPDATE_DESCRIPTION: Final = b"updateDescription"
_TRUNCATED: Final = (b"truncatedArrays",)

Shows: TypeAlias = Callable[[Position, bytes, int], bool]


def token_position(buf: bytes, at: int) -> Position:
    """Read the position in an upstream token document {_data: "<hex>"}."""
    start = at + _DATA_AT
    return upstream_position(buf[start : buf.index(0, start)])


def token_document(token: bytes) -> bytes:
    """Make {_data: "<hex>"} in BSON."""
    size = len(token)
    return b"".join([pack_int32(size + 17), b"\2_data\0", pack_int32(size + 1), token, b"\0\0"])


def namespace_of(buf: bytes, at: int) -> Scope:
    """Read database and collection of a raw event; "" for what it does not name."""
    found = find(buf, at, b"ns")
    names = {b"db": "", b"coll": ""}
    if found is not None and found[0] == DOCUMENT:
        for _, name, _, value, end in elements(buf, found[3]):
            if name in names:
                names[name] = buf[value + 4 : end - 1].decode()
    return Scope(names[b"db"], names[b"coll"])


def rewrite_event(buf: bytes, at: int, token: bytes) -> list[bytes]:
    """Pieces of the event at `at` under another token, less the fields that DocumentDB lacks."""
    pieces: list[bytes] = []
    start = at + 4
    end_of_event = document_end(buf, at)
    for element in elements(buf, at):
        _, name, begin, _, end = element
        if name == b"_id":
            pieces += [buf[start:begin], b"\3_id\0", token_document(token)]
        elif name in ABSENT_EVENT_FIELDS:
            pieces.append(buf[start:begin])
        elif name == _UPDATE_DESCRIPTION and element[0] == DOCUMENT:
            pieces += [buf[start:begin], *_description(buf, element)]
        else:
            continue
        start = end
    pieces.append(buf[start : end_of_event - 1])
    return assemble(pieces)


def _description(buf: bytes, element: Element) -> list[bytes]:
    _, _, begin, value, _ = element
    return [buf[begin:value], *without(buf, value, _TRUNCATED)]


def _position_of(buf: bytes, event: int) -> Position:
    token = find(buf, event, b"_id")
    if token is None:
        raise ValueError("an event without its token")
    return token_position(buf, token[3])


def rewrite_batch(buf: bytes, batch: Element, codec: TokenCodec, shows: Shows) -> list[bytes]:
    """Pieces of the array element that holds a batch, less the events that `shows` leaves out."""
    kind, _, begin, value, _ = batch
    if kind != ARRAY:
        raise ValueError("a batch is an array")
    pieces: list[bytes] = []
    index = 0
    for _, _, _, event, _ in elements(buf, value):
        position = _position_of(buf, event)
        if not shows(position, buf, event):
            continue
        pieces.append(b"\3%d\0" % index)
        pieces += rewrite_event(buf, event, codec.event_token(position))
        index += 1
    return [buf[begin:value], *assemble(pieces)]
