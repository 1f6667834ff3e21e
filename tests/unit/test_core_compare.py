"""Differences: their kind, their fields, and how they are told."""

from __future__ import annotations

from typing import Any

import pytest
from bson import Decimal128, Int64, MaxKey, MinKey, encode

from d5agent.core.compare.compare import (
    Difference,
    DifferenceKind,
    Matcher,
    difference_of,
    differences_of,
    differing_fields,
)
from tests.fakes.documents import raw_id
from tests.fakes.events import ORDERS

ID = raw_id(1)


def test_the_same_on_both_sides_is_no_difference() -> None:
    document = encode({"_id": 1})
    assert difference_of(ORDERS, ID, document, document) is None
    assert difference_of(ORDERS, ID, None, None) is None


def test_the_fields_that_differ_are_named_in_the_order_of_the_source() -> None:
    source = encode({"_id": 1, "b": 1, "a": 1, "same": 1, "value": 1})
    target = encode({"_id": 1, "a": Int64(1), "same": 1, "extra": 2, "value": 2})
    assert differing_fields(source, target) == (
        "b (missing in the target)",
        "a (int32 became int64)",
        "value",
        "extra (only in the target)",
    )


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        ({"n": 1}, {"n": 1.0}, "n (int32 became double)"),
        ({"n": Int64(1)}, {"n": Decimal128("1")}, "n (int64 became decimal128)"),
        ({"n": MinKey()}, {"n": MaxKey()}, "n (MinKey became MaxKey)"),
        ({"n": {}}, {"n": []}, "n (document became array)"),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, "a.b.c"),
        ({"a": [1, {"b": 1}]}, {"a": [1, {"b": "1"}]}, "a.1.b (int32 became string)"),
        ({"a": [1]}, {"a": [1, 2]}, "a.1 (only in the target)"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "(order of fields)"),
        ({"x": {"a": 1, "b": 2}}, {"x": {"b": 2, "a": 1}}, "x (order of fields)"),
    ],
)
def test_a_difference_says_where_it_is_and_how(source: dict[str, Any], target: dict[str, Any], named: str) -> None:
    assert differing_fields(encode(source), encode(target)) == (named,)


def test_of_many_fields_some_are_named_and_all_are_counted() -> None:
    source, target = ({f"f{number}": value for number in range(60)} for value in (1, 2))
    found = differing_fields(encode(source), encode(target))
    assert (len(found), found[0], found[-1]) == (51, "f0", "and 10 more")


def test_differences_are_told_by_kind_and_as_json() -> None:
    one, other = encode({"_id": 1, "n": 1}), encode({"_id": 1, "n": 2})
    kinds = {
        DifferenceKind.MISSING: difference_of(ORDERS, ID, one, None),
        DifferenceKind.EXTRA: difference_of(ORDERS, ID, None, one),
        DifferenceKind.DIFFERENT: difference_of(ORDERS, ID, one, other),
    }
    for kind, difference in kinds.items():
        assert difference is not None
        fields = ["n"] if kind is DifferenceKind.DIFFERENT else []
        assert difference.to_json() == {"namespace": "shop.orders", "id": "1", "kind": str(kind), "fields": fields}


def test_two_sets_of_documents_are_compared_by_id() -> None:
    source = {raw_id(1): encode({"_id": 1}), raw_id(2): encode({"_id": 2})}
    target = {raw_id(2): encode({"_id": 2}), raw_id(3): encode({"_id": 3})}
    assert differences_of(ORDERS, source, target) == [
        Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.MISSING),
        Difference(namespace=ORDERS, id=raw_id(3), kind=DifferenceKind.EXTRA),
    ]


def test_what_waits_is_counted_in_bytes_until_it_meets_its_partner() -> None:
    matcher = Matcher()
    document, longer = encode({"_id": 1}), encode({"_id": 1, "a": 1})
    matcher.add(0, ID, document)
    assert matcher.waiting_bytes == len(document)
    matcher.add(1, ID, longer)
    assert matcher.waiting_bytes == 0
    assert matcher.held_bytes > 0
    assert matcher.take_compared() == 0
    assert matcher.take_suspects() == {ID: len(longer)}
    assert matcher.held_bytes == 0


def test_equal_documents_meet_and_are_forgotten() -> None:
    matcher = Matcher()
    matcher.add(1, ID, encode({"_id": 1}))
    matcher.add(0, ID, encode({"_id": 1}))
    assert matcher.take_compared() == 1
    assert matcher.take_compared() == 0
    assert matcher.take_suspects() == {}


def test_what_waits_when_suspects_are_taken_is_a_suspect() -> None:
    matcher = Matcher()
    matcher.add(0, ID, encode({"_id": 1}))
    matcher.add(1, raw_id(2), encode({"_id": 2, "a": 1}))
    assert matcher.take_suspects() == {ID: len(encode({"_id": 1})), raw_id(2): len(encode({"_id": 2, "a": 1}))}
    assert matcher.waiting_bytes == 0
