"""BSON from its bytes: what a server may store, or send, and no driver's encoder makes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from bson import Decimal128, encode
from hypothesis import strategies as st

from d5agent.core.log.raw import DocumentId

if TYPE_CHECKING:
    from collections.abc import Iterable

Value = tuple[int, bytes]
"""A type and the bytes of the value."""

_INT32: Final = struct.Struct("<i")
_HOSTILE_NAMES: Final = (
    *(b"a", b"b", b"", b"_id", b"0", b"1", b"$ref", b"$id", b"$db", b"$oid", b"$numberDecimal", b"$numberInt"),
    *(b"$numberLong", b"$numberDouble", b"$binary", b"$uuid", b"$date", b"$code", b"$scope", b"$timestamp", b"base64"),
    *(b"$regularExpression", b"$regex", b"$options", b"$symbol", b"$dbPointer", b"$minKey", b"$maxKey", b"subType"),
    *(b"$undefined", b"$bson", b"t", b"i", b"pattern", b"options", b"a.b", "é".encode(), b"\xff", b"\xed\xa0\x80"),
)
_HOSTILE_TEXTS: Final = (
    *(b"", b"x", b"1", b"NaN", b"null", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"a\0b", b'{"a":1}', b"/", b"..", b"~"),
    *("é漢𝄞".encode(), b"x" * 5_000, b"\xff" * 300, b"507f1f77bcf86cd799439011", b"1e999999999", b"2020-13-45T"),
)
NAMES: Final = st.sampled_from(_HOSTILE_NAMES) | st.binary(max_size=4).map(lambda name: name.replace(b"\0", b""))
TEXTS: Final = st.sampled_from(_HOSTILE_TEXTS) | st.binary(max_size=12)
_C_STRINGS: Final = TEXTS.map(lambda text: text.replace(b"\0", b""))
_DECIMALS: Final = ("NaN", "-NaN", "Infinity", "-Infinity", "0E-6176", "0E+6111", "9E+6144", "1E-6176", "-0")


def string(text: bytes) -> bytes:
    """Return the value of a string."""
    return _INT32.pack(len(text) + 1) + text + b"\0"


def document(fields: Iterable[tuple[bytes, Value]]) -> bytes:
    """Return a document; names may come twice."""
    body = b"".join(bytes((type_,)) + name + b"\0" + value for name, (type_, value) in fields)
    return _INT32.pack(len(body) + 5) + body + b"\0"


def _of_size(type_: int, size: int) -> st.SearchStrategy[Value]:
    hostile = st.sampled_from((bytes(size), b"\xff" * size, b"\x7f" * size))
    return st.tuples(st.just(type_), hostile | st.binary(min_size=size, max_size=size))


def _old_binary(content: bytes) -> bytes:
    return _INT32.pack(len(content) + 4) + b"\2" + _INT32.pack(len(content)) + content


def _code_with_scope(code: bytes, scope: bytes) -> bytes:
    return _INT32.pack(4 + len(string(code)) + len(scope)) + string(code) + scope


_SCALARS: Final = st.one_of(
    *(_of_size(type_, size) for type_, size in ((0x01, 8), (0x07, 12), (0x09, 8), (0x10, 4), (0x11, 8), (0x12, 8))),
    *(_of_size(type_, 0) for type_ in (0x06, 0x0A, 0x7F, 0xFF)),
    _of_size(0x13, 16),
    st.sampled_from(_DECIMALS).map(lambda text: (0x13, Decimal128(text).bid)),
    st.binary(max_size=1).map(lambda byte: (0x08, byte or b"\1")),
    TEXTS.map(lambda text: (0x02, string(text))),
    st.tuples(st.sampled_from((0x0D, 0x0E)), TEXTS.map(string)),
    st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=20)).map(
        lambda found: (0x05, _INT32.pack(len(found[1])) + found[0] + found[1])
    ),
    st.binary(max_size=8).map(lambda content: (0x05, _old_binary(content))),
    st.tuples(_C_STRINGS, _C_STRINGS).map(lambda found: (0x0B, b"\0".join((*found, b"")))),
    TEXTS.map(lambda text: (0x0C, string(text) + bytes(12))),
)
VALUES: Final[st.SearchStrategy[Value]] = st.deferred(
    lambda: st.one_of(
        _SCALARS,
        _SCALARS,
        DOCUMENTS.map(lambda found: (0x03, found)),
        _POINTERS.map(lambda found: (0x03, found)),
        st.lists(VALUES, max_size=3).map(
            lambda found: (0x04, document((str(n).encode(), value) for n, value in enumerate(found)))
        ),
        DOCUMENTS.map(lambda found: (0x04, found)),
        st.tuples(TEXTS, DOCUMENTS).map(lambda found: (0x0F, _code_with_scope(*found))),
    )
)
DOCUMENTS: Final[st.SearchStrategy[bytes]] = st.lists(st.tuples(NAMES, VALUES), max_size=3).map(document)
# As a DBRef is written, and as Extended JSON writes values: decoders look into them.
_POINTERS: Final[st.SearchStrategy[bytes]] = st.one_of(
    st.tuples(VALUES, VALUES).map(lambda found: document(((b"$ref", found[0]), (b"$id", found[1])))),
    st.tuples(st.sampled_from(_HOSTILE_NAMES), VALUES).map(lambda found: document((found,))),
    st.tuples(NAMES, VALUES, st.integers(1, 120)).map(lambda found: _deep(*found)),
)


def _deep(name: bytes, value: Value, levels: int) -> bytes:
    for _ in range(levels):
        value = (0x03, document(((name, value),)))
    return value[1]


IDS: Final = VALUES.map(lambda value: DocumentId(bytes((value[0],)) + value[1]))
_KINDS: Final = st.sampled_from((b"insert", b"update", b"replace", b"delete", b"drop", b"rename", b"dropDatabase"))
_NAMESPACES: Final = st.one_of(
    st.tuples(TEXTS, TEXTS).map(lambda n: (0x03, document(((b"db", (2, string(n[0]))), (b"coll", (2, string(n[1]))))))),
    TEXTS.map(lambda name: (0x03, document(((b"db", (2, string(name))),)))),
    VALUES,
)
_KEYS: Final = st.one_of(VALUES.map(lambda value: (0x03, document(((b"_id", value),)))), VALUES)
_FIRST: Final = (
    (b"_id", st.just((0x03, encode({"_data": "82AB"}))) | DOCUMENTS.map(lambda found: (0x03, found))),
    (b"operationType", _KINDS.map(lambda kind: (2, string(kind)))),
    (b"clusterTime", _of_size(0x11, 8)),
)
_REST: Final = (
    (b"wallTime", _of_size(0x09, 8)),
    (b"fullDocument", DOCUMENTS.map(lambda found: (0x03, found)) | st.just((0x0A, b"")) | VALUES),
    (b"ns", _NAMESPACES),
    (b"documentKey", _KEYS),
    (b"to", _NAMESPACES),
    (b"updateDescription", VALUES),
)


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """Return an event with a token and a time; the rest may be missing, odd, or in another order."""
    fields = [(name, draw(values)) for name, values in _FIRST]
    fields += [(name, draw(values)) for name, values in _REST if draw(st.integers(0, 9))]
    if draw(st.integers(0, 3)) == 0:
        fields = draw(st.permutations(fields))
    return document(fields)
