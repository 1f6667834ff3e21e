"""The walk over raw BSON: what is whole is read, what is not is told apart."""

from __future__ import annotations

import struct
from decimal import Decimal

import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp, encode
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument

from d5agent.core.log.raw import (
    DocumentId,
    any_of_filter,
    count_documents_of,
    document_id,
    documents_of,
    elements,
    equality_filter,
    id_document,
    int64_at,
    spans,
    split_documents,
    text_at,
    timestamp_in,
)
from d5agent.errors import CorruptDataError

EVERY_TYPE = {
    "double": 1.5,
    "string": "a\0b é",
    "document": {"a": {"b": 1}},
    "array": [1, "two", None],
    "binary": Binary(b"\x01\x02", 5),
    "old_binary": Binary(b"\x01\x02", 2),
    "object_id": ObjectId(b"0123456789ab"),
    "boolean": True,
    "date": DatetimeMS(-1),
    "null": None,
    "regex": Regex("a.b", "im"),
    "code": Code("f()"),
    "code_with_scope": Code("f()", {"x": 1}),
    "int32": -1,
    "timestamp": Timestamp(7, 8),
    "int64": Int64(-(2**63)),
    "decimal": Decimal128(Decimal("1.10")),
    "min": MinKey(),
    "max": MaxKey(),
}


def _enclosed(body: bytes) -> bytes:
    return struct.pack("<i", len(body) + 5) + body + b"\0"


CORRUPT = [
    b"",
    b"\x05\0\0\0",
    encode({"a": 1})[:-1],
    b"\x06\0\0\0\0",
    b"\x05\0\0\0\x01",
    _enclosed(b"\x55v\0"),
    _enclosed(b"\x10v"),
    _enclosed(b"\x10v\0\x01"),
    _enclosed(b"\x02v\0\xff\xff\xff\x7f"),
    _enclosed(b"\x02v\0\xf0\xff\xff\xff"),
    _enclosed(b"\x0bv\0abc"),
]


def test_the_elements_of_every_type_are_found_in_order() -> None:
    document = encode(EVERY_TYPE)
    found = list(elements(document))
    assert [element.name.decode() for element in found] == list(EVERY_TYPE)
    for element in found:
        alone = _enclosed(bytes((element.type,)) + b"value\0" + document[element.start : element.end])
        assert alone == encode({"value": EVERY_TYPE[element.name.decode()]})


@pytest.mark.parametrize(
    "value",
    [b"\x06v\0", b"\x0cv\0\x02\0\0\0a\0" + bytes(12), b"\x0ev\0\x02\0\0\0a\0"],
    ids=["undefined", "pointer", "symbol"],
)
def test_the_elements_of_types_no_longer_written_are_found(value: bytes) -> None:
    document = _enclosed(value + b"\x10last\0\x01\0\0\0")
    assert [element.name for element in elements(document)] == [b"v", b"last"]


def test_an_empty_document_has_no_elements() -> None:
    assert list(elements(encode({}))) == []


@pytest.mark.parametrize(
    "document",
    [b"", b"\x05\0\0\0", encode({"a": 1})[:-1], encode({"a": 1}) + b"\0", b"\x06\0\0\0\0", b"\x05\0\0\0\x01"],
    ids=["nothing", "no end", "cut", "too long", "another length", "not ended by zero"],
)
def test_what_is_not_one_whole_document_is_corrupt(document: bytes) -> None:
    with pytest.raises(CorruptDataError, match="not a whole BSON document"):
        list(elements(document))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x10a\0\x01\0", "runs past its document"),
        (b"\x02a\0\xff\0\0\0a\0", "runs past its document"),
        (b"\x02a\0\xf0\xff\xff\xffa\0", "runs past its document"),
        (b"\x42a\0\x01\0\0\0", "not a BSON element"),
        (b"\x10abc", "not a BSON element"),
        (b"\x0ba\0pattern", "not a BSON element"),
        (b"\x02a\0\x01", "not a BSON element"),
    ],
    ids=["fixed", "length too great", "negative length", "unknown type", "endless name", "endless regex", "cut length"],
)
def test_an_element_that_cannot_be_is_corrupt(body: bytes, message: str) -> None:
    with pytest.raises(CorruptDataError, match=message) as caught:
        list(elements(_enclosed(body)))
    assert caught.value.facts["offset"] == 4


def test_a_documents_id_is_its_type_and_value_wherever_it_stands() -> None:
    assert document_id(encode({"a": 1, "_id": 5})) == b"\x10\x05\0\0\0"
    assert document_id(encode({"_id": "x"})) == b"\x02\x02\0\0\0x\0"


def test_a_document_without_id_is_corrupt() -> None:
    with pytest.raises(CorruptDataError, match="without _id"):
        document_id(encode({"id": 1}))


def test_an_id_becomes_a_filter_again() -> None:
    assert id_document(document_id(encode({"_id": "x", "a": 1}))) == encode({"_id": "x"})


def test_many_ids_become_one_filter() -> None:
    ids = [document_id(encode({"_id": value})) for value in (1, "b", None, {"c": 1})]
    assert any_of_filter(ids) == encode({"_id": {"$in": [1, "b", None, {"c": 1}]}})
    assert any_of_filter([]) == encode({"_id": {"$in": []}})


def test_a_text_that_is_not_utf8_can_be_given_back() -> None:
    document = encode({"text": "xx"}).replace(b"xx", b"\xff\xed")
    assert text_at(document, spans(document)[b"text"]).encode(errors="surrogateescape") == b"\xff\xed"


def test_equal_values_become_one_filter() -> None:
    values = {"a.b": document_id(encode({"_id": 1})), "c": document_id(encode({"_id": {"d": "x"}}))}
    assert equality_filter(values) == encode({"a.b": {"$eq": 1}, "c": {"$eq": {"d": "x"}}})


def test_texts_and_timestamps_are_read_where_they_stand() -> None:
    document = encode({"text": "é", "time": Timestamp(3, 4)})
    assert text_at(document, spans(document)[b"text"]) == "é"
    assert timestamp_in(document, spans(document)[b"time"]) == (3, 4)


@pytest.mark.parametrize("number", [0, -1, 2**31 - 1, Int64(-(2**63)), Int64(7)])
def test_an_integer_of_either_size_is_read(number: int) -> None:
    document = encode({"id": number})
    assert int64_at(document, spans(document)[b"id"]) == number


def test_spans_are_what_the_walk_finds() -> None:
    document = encode(EVERY_TYPE)
    assert list(spans(document).items()) == [(e.name, (e.type, e.start, e.end)) for e in elements(document)]


def test_spans_are_found_in_the_middle_of_something_larger() -> None:
    inner = encode({"a": 1, "b": "two"})
    found = spans(b"before" + inner + b"after", len(b"before"))
    assert found == {name: (type_, begin + 6, end + 6) for name, (type_, begin, end) in spans(inner).items()}


@pytest.mark.parametrize("document", CORRUPT)
def test_the_fast_walk_refuses_what_the_slow_one_refuses(document: bytes) -> None:
    with pytest.raises(CorruptDataError):
        list(elements(document))
    with pytest.raises(CorruptDataError):
        spans(document)


def test_an_array_of_documents_is_taken_apart() -> None:
    documents = [encode({"n": number}) for number in range(12)]
    reply = encode({"before": 1, "batch": [RawBSONDocument(document) for document in documents]})
    assert documents_of(reply, spans(reply)[b"batch"][1]) == documents
    assert documents_of(encode({})) == []


@pytest.mark.parametrize(
    "array",
    [
        b"",
        encode({"0": 1}),
        encode({"0": {"a": 1}})[:-3],
        encode({"0": {"a": 1}})[:-1] + b"\1",
        _enclosed(b"\x030\0\x04\0\0\0"),
        _enclosed(b"\x030"),
    ],
    ids=["nothing", "a number", "cut", "no end", "no document", "no value"],
)
def test_what_is_no_array_of_documents_is_corrupt(array: bytes) -> None:
    with pytest.raises(CorruptDataError, match="not an array of documents"):
        documents_of(array)


def test_a_concatenation_is_split_into_its_documents() -> None:
    documents = [encode({"a": 1}), encode({}), encode({"b": "x" * 100})]
    assert list(split_documents(b"".join(documents))) == documents
    assert list(split_documents(b"")) == []


@pytest.mark.parametrize("tail", [b"\x05", b"\x04\0\0\0", b"\x09\0\0\0\0", b"\xff\xff\xff\xff\0"])
def test_a_concatenation_that_ends_within_a_document_is_corrupt(tail: bytes) -> None:
    whole = encode({"a": 1})
    with pytest.raises(CorruptDataError, match="ends within a document") as caught:
        list(split_documents(whole + tail))
    assert caught.value.facts["offset"] == len(whole)


def test_ids_are_hashable_and_in_the_order_of_their_bytes() -> None:
    assert len({DocumentId(b"\x10\x01\0\0\0"), document_id(encode({"_id": 1}))}) == 1


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 99, 100, 101, 1000, 12_345])
def test_the_documents_of_an_array_are_counted_without_taking_it_apart(count: int) -> None:
    array = encode({"a": [{"n": number} for number in range(count)]})[7:-1]
    assert count_documents_of(array) == count == len(documents_of(array))


def test_an_array_that_is_cut_or_none_is_not_counted() -> None:
    array = encode({"a": [{"n": number} for number in range(3)]})[7:-1]
    for damaged in (array[:-4], array[:9], encode({"a": 1})):
        with pytest.raises(CorruptDataError, match="not an array"):
            count_documents_of(damaged)
