"""Two scans side by side: what is equal passes, and after a difference both are level again at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.core.compare.merge import Merger
from tests.fakes.documents import raw_document, raw_id

if TYPE_CHECKING:
    from collections.abc import Sequence


def documents(numbers: Sequence[int], *, value: int = 0) -> list[bytes]:
    return [raw_document({"_id": number, "n": value}) for number in numbers]


def merged(source: list[bytes], target: list[bytes], *, page: int = 10) -> tuple[Merger, int]:
    """Return the merger after both, and the most bytes that waited."""
    merger, most = Merger(), 0
    left, has_ended = [list(source), list(target)], [False, False]
    while not all(has_ended):
        pages: list[list[bytes]] = [[], []]
        for side in (0, 1):
            if merger.needs(side):
                pages[side], left[side] = left[side][:page], left[side][page:]
                has_ended[side] = not pages[side]
        merger.add(*pages)
        for side in (0, 1):
            if has_ended[1 - side]:
                merger.drain(side)
        most = max(most, merger.matcher.waiting_bytes)
    return merger, most


def test_equal_pages_are_counted_and_nothing_waits() -> None:
    merger, most = merged(documents(range(100)), documents(range(100)))
    assert (merger.matcher.take_compared(), merger.matcher.take_suspects(), most) == (100, {}, 0)


def test_one_missing_document_waits_alone_and_the_rest_meets() -> None:
    everything = documents(range(1000))
    merger, most = merged(everything, everything[:5] + everything[6:])
    assert merger.matcher.take_compared() == 999
    assert merger.matcher.take_suspects() == {raw_id(5): len(everything[5])}
    assert most == len(everything[5])


def test_a_differing_document_is_named_and_the_rest_meets() -> None:
    target = documents(range(200))
    target[77] = documents([77], value=1)[0]
    merger, most = merged(documents(range(200)), target)
    assert (merger.matcher.take_compared(), set(merger.matcher.take_suspects()), most) == (199, {raw_id(77)}, 0)


def test_a_hole_longer_than_a_page_is_passed_over_and_both_are_level_again() -> None:
    everything = documents(range(300))
    merger, _ = merged(everything, everything[:20] + everything[120:])
    assert merger.matcher.take_compared() == 200
    assert set(merger.matcher.take_suspects()) == {raw_id(number) for number in range(20, 120)}
    merger, _ = merged(everything[:20] + everything[120:], everything)
    assert merger.matcher.take_compared() == 200
    assert set(merger.matcher.take_suspects()) == {raw_id(number) for number in range(20, 120)}


def test_other_orders_meet_too() -> None:
    everything = documents(range(60))
    merger, _ = merged(everything[30:] + everything[:30], everything)
    assert (merger.matcher.take_compared(), merger.matcher.take_suspects()) == (60, {})


def test_what_is_left_of_either_side_has_no_partner() -> None:
    for sides in ((documents(range(12)), documents(range(5))), (documents(range(5)), documents(range(12)))):
        merger, _ = merged(*sides)
        assert merger.matcher.take_compared() == 5
        assert set(merger.matcher.take_suspects()) == {raw_id(number) for number in range(5, 12)}
