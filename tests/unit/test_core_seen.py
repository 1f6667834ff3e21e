"""A set of millions of documents in little memory."""

from __future__ import annotations

import pytest
from typing_extensions import override

from d5agent.core.plan.compact_hash_set import BYTES_EACH, CompactHashSet


def test_a_thing_is_new_once() -> None:
    seen = CompactHashSet(3)
    assert [seen.add(thing) for thing in ("a", "b", "a", "c", "b")] == [True, True, False, True, False]
    assert len(seen) == 3
    assert "b" in seen
    assert "d" not in seen


def test_a_thing_is_marked_once_and_stays_what_it_is() -> None:
    seen = CompactHashSet(2)
    seen.add("a")
    seen.add("b")
    assert [seen.mark("a"), seen.mark("a"), seen.mark("b")] == [True, False, True]
    assert "a" in seen
    assert not seen.add("a")


def test_it_says_when_it_is_full_and_still_answers() -> None:
    seen = CompactHashSet(100)
    for number in range(100):
        assert not seen.is_full
        assert seen.add((number,))
    assert seen.is_full
    assert all((number,) in seen for number in range(100))
    assert not any((number,) in seen for number in range(100, 200))


def test_an_empty_one_holds_nothing() -> None:
    assert "a" not in CompactHashSet(0)
    assert CompactHashSet(0).is_full


class Colliding:
    """A thing that hashes as it is told."""

    def __init__(self, hash_: int) -> None:
        self._hash = hash_

    @override
    def __hash__(self) -> int:
        return self._hash

    @override
    def __eq__(self, other: object) -> bool:
        return self is other


def test_things_that_want_the_same_slot_are_told_apart_at_the_end_of_the_table_too() -> None:
    seen = CompactHashSet(10)  # 17 slots
    things = [Colliding(16 + 17 * number) for number in range(10)]
    assert all(seen.add(thing) for thing in things)
    assert all(thing in seen for thing in things)
    assert Colliding(16 + 17 * 11) not in seen


def test_a_hash_of_nought_is_a_thing_like_any_other() -> None:
    seen = CompactHashSet(2)
    assert Colliding(0) not in seen
    assert seen.add(Colliding(0))
    assert Colliding(0) in seen


def test_it_takes_what_it_says() -> None:
    seen = CompactHashSet(10_000)
    assert abs(len(seen._table) * seen._table.itemsize - 10_000 * BYTES_EACH) < 100


@pytest.mark.parametrize("most", [0, 3, 10])
def test_more_than_was_expected_takes_more_room(most: int) -> None:
    seen = CompactHashSet(most)
    for number in range(500):
        assert (number,) not in seen
        assert seen.add((number,))
        assert number % 2 or seen.mark((number,))
    assert len(seen) == 500
    assert all((number,) in seen and not seen.add((number,)) for number in range(500))
    assert [seen.mark((number,)) for number in range(4)] == [False, True, False, True]
    assert seen.is_full
