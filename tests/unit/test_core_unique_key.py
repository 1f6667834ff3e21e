"""Which keys documents have in unique indexes, as a server sees them."""

from __future__ import annotations

from typing import Any

import pytest
from bson import Decimal128, Int64, Regex, decode, encode
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS

from d5agent.core.log.raw import DocumentId, id_document
from d5agent.core.replay.unique_key import UniqueIndex, comparable, key_to_text, keys_of, unique_indexes
from tests.fakes.documents import raw_id

NOT_UTF8 = DocumentId(b"\x02\x02\0\0\0\xff\0")
A = UniqueIndex(name="a_1", fields=("a",))
A_B = UniqueIndex(name="a_1_b_1", fields=("a", "b"))


def keys(index: UniqueIndex, document: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [tuple(map(value_of, key)) for key in keys_of(index, encode(document))]


def value_of(value: DocumentId) -> Any:  # noqa: ANN401 -- any BSON value
    return decode(id_document(value), CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS))["_id"]


def are_equal(index: UniqueIndex, one: object, other: object) -> bool:
    return comparable(index, (raw_id(one),)) == comparable(index, (raw_id(other),))


def test_unique_indexes_are_read_from_their_descriptions() -> None:
    found = unique_indexes(
        {
            "plain": '{"a": {"$numberInt": "1"}}',
            "a_1": '{"a": {"$numberInt": "1"}, "b.c": {"$numberInt": "-1"}} {"unique": true}',
            "part": '{"a": 1} {"partialFilterExpression": {"n": {"$gt": {"$numberInt": "5"}}}, "unique": true}',
            "other": '{"a": 1} {"collation": {"strength": {"$numberInt": "2"}}, "sparse": true, "unique": true}',
        }
    )
    assert [(index.name, index.fields, index.is_sparse, index.partial) for index in found] == [
        ("a_1", ("a", "b.c"), False, None),
        ("part", ("a",), False, {"n": {"$gt": 5}}),
        ("other", ("a",), True, None),
    ]
    assert found[2].collation == {"strength": 2}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"a": 1}, [(1,)]),
        ({}, [(None,)]),
        ({"a": None}, [(None,)]),
        ({"a": [1, 2]}, [(1,), (2,)]),
        ({"a": []}, [([],)]),
        ({"a": [[1, 2]]}, [([1, 2],)]),
        ({"a": {"x": 1}}, [({"x": 1},)]),
        ({"a": DatetimeMS(2**60)}, [(DatetimeMS(2**60),)]),
    ],
)
def test_keys_of_one_field(document: dict[str, Any], expected: list[tuple[Any, ...]]) -> None:
    assert keys(A, document) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"a": {"b": 1}}, [1]),
        ({"a": {}}, [None]),
        ({"a": 5}, [None]),
        ({}, [None]),
        ({"a": [{"b": 1}, {"b": [2, 3]}]}, [1, 2, 3]),
        ({"a": [{"b": 1}, 7]}, [1, None]),
        ({"a": []}, [None]),
    ],
)
def test_keys_of_a_field_within_a_field(document: dict[str, Any], expected: list[Any]) -> None:
    assert keys(UniqueIndex(name="i", fields=("a.b",)), document) == [(value,) for value in expected]


def test_keys_of_several_fields_and_an_array() -> None:
    assert keys(A_B, {"a": 1, "b": ["x", "y"]}) == [(1, "x"), (1, "y")]
    assert keys(A_B, {"b": 2}) == [(None, 2)]


def test_two_long_arrays_do_not_make_a_million_keys() -> None:
    assert len(keys(A_B, {"a": list(range(1_000)), "b": list(range(1_000))})) == 1_000


def test_a_sparse_index_leaves_out_what_has_none_of_its_fields() -> None:
    sparse = UniqueIndex(name="i", fields=("a", "b"), is_sparse=True)
    assert keys(sparse, {"c": 1}) == []
    assert keys(sparse, {"b": 1}) == [(None, 1)]
    assert keys(sparse, {"a": None}) == [(None, None)]


@pytest.mark.parametrize(
    ("partial", "document", "is_in"),
    [
        ({"n": {"$exists": True}}, {"n": None}, True),
        ({"n": {"$exists": True}}, {}, False),
        ({"n": {"$exists": False}}, {}, True),
        ({"n": 5}, {"n": 5.0}, True),
        ({"n": 5}, {"n": 6}, False),
        ({"n": None}, {}, True),
        ({"n": {"x": 1}}, {"n": {"x": 1}}, True),
        ({"n": {"$gt": 5, "$lt": 9}}, {"n": 7}, True),
        ({"n": {"$gt": 5, "$lt": 9}}, {"n": 9}, False),
        ({"n": {"$gte": 5, "$lte": 9}}, {"n": 9}, True),
        ({"n": {"$gt": 5}}, {"n": "text"}, False),
        ({"n": {"$gt": 5}}, {}, False),
        ({"n": {"$eq": 5}}, {"n": [4, 5]}, True),
        ({"$and": [{"n": 1}, {"m": 2}]}, {"n": 1, "m": 2}, True),
        ({"$and": [{"n": 1}, {"m": 2}]}, {"n": 1, "m": 3}, False),
        ({"n": {"$type": "string"}}, {"n": 1}, True),  # not known here: counts as met
        ({"$or": [{"n": 1}]}, {"n": 2}, True),
        ({"n": {"$gt": 5}}, {"n": Decimal128("5.5")}, True),
        ({"n": {"$gt": 5}}, {"n": float("nan")}, False),
        ({"n": {"$gt": "a"}}, {"n": "b"}, True),
        ({"n": {"$gt": DatetimeMS(-1)}}, {"n": DatetimeMS(0)}, True),
        ({"n": {"$lt": {"a": 1}}}, {"n": {"a": 0}}, False),  # an order that no filter asks for
        ({"n": {"a": 1}}, {"n": {"a": 1.0}}, True),
    ],
)
def test_a_partial_index_has_only_what_matches(
    partial: dict[str, Any], document: dict[str, Any], *, is_in: bool
) -> None:
    index = UniqueIndex(name="i", fields=("a",), partial=partial)
    assert bool(keys(index, {"a": 1, **document})) is is_in
    assert keys_of(index, encode({"a": 1, **document}), is_in=True) == [(raw_id(1),)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, Int64(1)),
        (10, Decimal128("1E+1")),
        (0.0, -0.0),
        (2**53, float(2**53)),
        (float("nan"), Decimal128("NaN")),
        (float("inf"), Decimal128("Infinity")),
        ({"a": 1}, {"a": 1.0}),
        ([1, {"b": Int64(2)}], [1.0, {"b": Decimal128("2.0")}]),
    ],
)
def test_numbers_are_equal_whatever_their_type(one: object, other: object) -> None:
    assert are_equal(A, one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((1, 2), (1, "1"), (1, True), (None, 0), ("a", "A"), ("a", Regex("a"))),
        (Decimal128("1234567890123456789012345678.1"), Decimal128("1234567890123456789012345678.2")),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1], {"0": 1}),
    ],
)
def test_other_values_are_not(one: object, other: object) -> None:
    assert not are_equal(A, one, other)


def test_a_collation_may_ignore_case_and_accents() -> None:
    case, accents = (UniqueIndex(name="i", fields=("a",), collation={"strength": n}) for n in (2, 1))
    assert are_equal(case, "Émile", "émile")
    assert not are_equal(case, "Émile", "Emile")
    assert are_equal(accents, "Émile", "emile")
    assert not are_equal(UniqueIndex(name="i", fields=("a",), collation={"locale": "en"}), "a", "A")


def test_a_key_is_shown_with_its_fields_and_cut() -> None:
    assert key_to_text(A_B, (raw_id(1), raw_id("x"))) == '{"a": 1, "b": "x"}'
    assert len(key_to_text(A, (raw_id("x" * 1_000),))) == 201


def test_a_value_that_is_not_utf8_has_a_key() -> None:
    for collation in (None, {"strength": 2}, {"strength": 1}):
        index = UniqueIndex(name="i", fields=("_id",), collation=collation)
        (key,) = keys_of(index, id_document(NOT_UTF8))
        assert key == (NOT_UTF8,)
        assert comparable(index, key) == NOT_UTF8
    assert key_to_text(A, (NOT_UTF8,)) == '{"a": {"$bson": "AgIAAAD/AA=="}}'


def test_of_two_fields_of_one_name_the_first_counts() -> None:
    twice = b"\x13\0\0\0\x10a\0\1\0\0\0\x10a\0\2\0\0\0\0"
    assert keys_of(A, twice) == [(raw_id(1),)]
