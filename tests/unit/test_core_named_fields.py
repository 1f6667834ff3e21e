"""Which fields events name, and what that leaves of a difference."""

from __future__ import annotations

from typing import Final

import pytest

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.compare.named_fields import ALL, FieldBits, differing_names, fields_named_by, undelivered_part
from d5agent.core.plan.compact_hash_set import CompactHashSet
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.events import ITEMS, ORDERS, operation

MANY: Final = 40


def test_an_update_names_the_top_level_fields_that_it_changed() -> None:
    description = {
        "updatedFields": {"a": 1, "b.c.d": 2, "list.0": 3},
        "removedFields": ["e", "f.g"],
        "truncatedArrays": [{"field": "h.i", "newSize": 2}, {"newSize": 3}, {"field": 4}],
    }
    found = fields_named_by(operation("update", 1, updateDescription=description))
    assert found == frozenset({b"a", b"b", b"list", b"e", b"f", b"h"})


@pytest.mark.parametrize("kind", ["insert", "replace", "delete"])
def test_an_operation_on_a_whole_document_names_all_fields(kind: str) -> None:
    assert fields_named_by(operation(kind, 1)) is None


@pytest.mark.parametrize(
    "description",
    [
        None,
        5,
        {},
        {"updatedFields": {}, "removedFields": []},
        {"updatedFields": 1, "removedFields": {}, "truncatedArrays": None},
        {"updatedFields": {"a": 1}, "truncatedArrays": [7]},
    ],
)
def test_a_description_that_says_nothing_may_mean_any_field(description: object) -> None:
    assert fields_named_by(operation("update", 1, updateDescription=description)) is None


def test_an_update_without_a_description_may_mean_any_field() -> None:
    assert fields_named_by(operation("update", 1)) is None


def test_fields_differ_by_their_bytes() -> None:
    ours, theirs = raw_document({"_id": 1, "a": 1, "b": 1, "c": 1}), raw_document({"_id": 1, "a": 1.0, "c": 1, "d": 1})
    assert differing_names(ours, theirs) == {b"a", b"b", b"d"}
    assert differing_names(ours, None) == set()
    assert differing_names(None, theirs) == set()


def test_a_mask_holds_the_fields_that_it_was_made_of() -> None:
    bits = FieldBits()
    mask = bits.mask(ORDERS, frozenset({b"a", b"b"})) | bits.mask(ORDERS, frozenset({b"c"}))
    assert bits.unnamed(ORDERS, mask, {b"a", b"b", b"c", b"d"}) == {b"d"}
    assert bits.unnamed(ORDERS, bits.mask(ORDERS, frozenset({b"a"})), {b"a", b"b"}) == {b"b"}
    assert bits.unnamed(ITEMS, 0, {b"a"}) == {b"a"}
    assert bits.mask(ORDERS, None) == ALL
    assert bits.unnamed(ORDERS, ALL, {b"z"}) == set()


def test_names_beyond_the_bits_of_a_collection_are_taken_for_one() -> None:
    bits = FieldBits()
    names = [b"%02d" % number for number in range(MANY)]
    mask = bits.mask(ORDERS, frozenset(names))
    assert bits.unnamed(ORDERS, mask, {*names, b"never"}) == set()  # it may be one of those without a bit
    few = bits.mask(ORDERS, frozenset(names[:2]))
    assert bits.unnamed(ORDERS, few, {*names[:3], names[-1], b"never"}) == {names[2], names[-1], b"never"}


def test_a_set_keeps_the_masks_of_its_things_while_it_grows() -> None:
    seen = CompactHashSet(2, has_masks=True)
    for number in range(1, 101):
        seen.add(number)
        seen.set_bits(number, 1 << number % 32)
        seen.set_bits(number, 1)
    assert [seen.mask(number) for number in range(1, 101)] == [1 << number % 32 | 1 for number in range(1, 101)]


def test_what_was_inserted_during_the_outage_is_not_undelivered() -> None:
    missing = Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.MISSING)
    extra = Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.EXTRA)
    different = Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.DIFFERENT, fields=("a", "b"))
    assert undelivered_part(missing, set(), begins_with_insert=True) is None
    assert undelivered_part(missing, set(), begins_with_insert=False) == missing
    assert undelivered_part(extra, set(), begins_with_insert=False) is None
    assert undelivered_part(different, set(), begins_with_insert=False) is None
    found = undelivered_part(different, {b"b", b"caf\xe9"}, begins_with_insert=False)
    assert found is not None
    assert found.fields == ("b", "caf\\xe9")
