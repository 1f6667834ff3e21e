"""Documents as text: what the driver would print, and what no driver decodes; nothing is lost."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp, decode, encode
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps

from d5agent.core.log.extended_json import to_text, value_to_readable
from d5agent.core.log.raw import DocumentId, id_document
from tests.fakes.documents import raw_id

_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_JSON = CANONICAL_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)
_VALUES: tuple[object, ...] = (
    *(1.5, -0.0, 1e300, float("nan"), float("inf"), float("-inf"), 'é"\\\n\0\u2028', {}, {"a": {"b": []}}, [1, [2]]),
    *(Binary(b"\x01", 0), Binary(b"", 2), Binary(b"\x01\x02", 2), Binary(bytes(16), 4), Binary(b"\xff", 200)),
    *(ObjectId(b"0123456789ab"), True, False, DatetimeMS(-1), DatetimeMS(2**62), None, Regex("a.b", "im"), Regex("")),
    *(Code("f()"), Code("f()", {"x": Int64(1)}), -1, Timestamp(7, 8), Timestamp(0, 0), Int64(1), Decimal128("1.10")),
    *(Decimal128("NaN"), Decimal128("-Infinity"), MinKey(), MaxKey(), DBRef("c", 1, "d"), {"$ref": "c", "$id": 1}),
)


@pytest.mark.parametrize("value", _VALUES, ids=repr)
def test_a_document_reads_as_the_driver_prints_it(value: object) -> None:
    document = encode({"_id": 1, "v": value, "after": "x"})
    assert to_text(document) == dumps(decode(document, _CODEC), json_options=_JSON, ensure_ascii=False)


def _element(type_: int, body: bytes) -> bytes:
    return id_document(DocumentId(bytes((type_,)) + body))


def _string(text: bytes) -> bytes:
    return struct.pack("<i", len(text) + 1) + text + b"\0"


@pytest.mark.parametrize(
    ("type_", "body"),
    [
        (0x01, b"\1\0\0\0\0\0\xf8\x7f"),  # another not-a-number
        (0x02, _string(b"\xff")),
        (0x02, _string(b"\xed\xa0\x80")),
        (0x03, encode({"$oid": "x"})),
        (0x03, encode({"$bson": "x"})),
        (0x03, _element(0x0A, b"").replace(b"_id", b"\xff\xff\xff")),
        (0x04, encode({"1": 1})),
        (0x05, b"\1\0\0\0\2\xff"),  # an old binary without a length of its own
        (0x05, b"\4\0\0\0\2\1\0\0\0"),  # … with a wrong one
        (0x08, b"\2"),
        (0x0B, b"\xff\0\0"),
        (0x0B, b"a\0mi\0"),  # options out of order
        (0x0B, b"a\0z\0"),
        (0x0C, _string(b"\xff") + bytes(12)),
        (0x0D, _string(b"\xff")),
        (0x0F, struct.pack("<i", 15) + _string(b"\xff") + encode({})),
        (0x13, b"\1" + bytes(14) + b"\x6c"),  # a decimal whose coefficient is too large
    ],
)
def test_what_json_cannot_hold_is_shown_as_its_bytes(type_: int, body: bytes) -> None:
    shown = json.loads(to_text(_element(type_, body)))["_id"]
    assert list(shown) == ["$bson"]
    assert base64.b64decode(shown["$bson"]) == bytes((type_,)) + body


@pytest.mark.parametrize(
    ("id_", "text"),
    [
        (b"\x06", '{"$undefined": true}'),
        (
            b"\x0c" + _string(b"c") + bytes(12),
            '{"$dbPointer": {"$ref": "c", "$id": {"$oid": "000000000000000000000000"}}}',
        ),
        (b"\x0e" + _string(b"s"), '{"$symbol": "s"}'),
    ],
)
def test_a_type_that_no_driver_writes_any_more_keeps_its_name(id_: bytes, text: str) -> None:
    assert to_text(id_document(DocumentId(id_))) == f'{{"_id": {text}}}'


def test_fields_of_one_name_stay_two() -> None:
    document = encode({"a": 1, "b": 2}).replace(b"b", b"a")
    assert to_text(document) == '{"a": {"$numberInt": "1"}, "a": {"$numberInt": "2"}}'


@pytest.mark.parametrize("document", [b"", b"\5\0\0\0", b"\7\0\0\0\x14a\0", encode({"a": "b"})[:-1]])
def test_what_is_no_document_is_shown_as_its_bytes(document: bytes) -> None:
    shown = base64.b64encode(bytes((3,)) + document).decode()
    assert to_text(document) == f'{{"$bson": "{shown}"}}'


def test_a_document_that_is_deeper_than_a_server_stores_is_shown_as_its_bytes() -> None:
    document = encode({})
    for _ in range(10_000):
        document = _element(0x03, document)
    assert '"$bson"' in to_text(document)


def test_a_damaged_value_is_shown_as_its_bytes() -> None:
    assert value_to_readable(DocumentId(b"\x02\2\0\0\0ab")) == '{"$bson": "AgIAAABhYg=="}'


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (Int64(2), "2"), (1.5, "1.5"), (float("nan"), '{"$numberDouble": "NaN"}'), ({"a": [1]}, '{"a": [1]}')],
)
def test_people_read_numbers_without_their_types(value: object, text: str) -> None:
    assert value_to_readable(raw_id(value)) == text
