"""Two sides that are read in any order: the differing documents are found, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from d5agent.core.compare.compare import DifferenceKind, Matcher, differences_of
from d5agent.core.compare.merge import Merger
from d5agent.core.log.operation import Namespace
from tests.fakes.documents import raw_document, raw_id

if TYPE_CHECKING:
    from d5agent.core.log.raw import DocumentId

_IDS = st.one_of(st.integers(0, 20), st.sampled_from(("a", "b", 1.0, None)))
_SIDES = st.dictionaries(_IDS, st.integers(0, 2), max_size=25)


def _documents(side: dict[object, int]) -> dict[DocumentId, bytes]:
    return {raw_id(id_): raw_document({"_id": id_, "n": value}) for id_, value in side.items()}


@given(source=_SIDES, target=_SIDES, data=st.data())
def test_whatever_the_orders_exactly_the_differing_ids_are_suspects(
    source: dict[object, int], target: dict[object, int], data: st.DataObject
) -> None:
    sides = (_documents(source), _documents(target))
    arrivals = data.draw(st.permutations([(side, id_) for side in (0, 1) for id_ in sides[side]]))
    matcher = Matcher()
    for side, id_ in arrivals:
        matcher.add(side, id_, sides[side][id_])
    expected = {id_ for id_ in sides[0].keys() | sides[1].keys() if sides[0].get(id_) != sides[1].get(id_)}
    assert set(matcher.take_suspects()) == expected
    assert matcher.take_compared() == sum(sides[0][id_] == sides[1].get(id_) for id_ in sides[0])
    assert matcher.waiting_bytes == 0
    assert not matcher.take_suspects()


def _pages(draw: st.DrawFn, side: dict[DocumentId, bytes]) -> list[list[bytes]]:
    """Return a side's documents as a server might send them: mostly in one order, in pages of any size."""
    documents = [side[id_] for id_ in sorted(side)]
    if draw(st.booleans()):
        documents = draw(st.permutations(documents))
    pages = []
    while documents:
        size = draw(st.integers(1, 8))
        pages.append(documents[:size])
        documents = documents[size:]
    return pages


@given(source=_SIDES, target=_SIDES, data=st.data())
def test_two_scans_side_by_side_give_the_same_whatever_the_pages(
    source: dict[object, int], target: dict[object, int], data: st.DataObject
) -> None:
    sides = (_documents(source), _documents(target))
    left = [data.draw(st.composite(_pages)(side)) for side in sides]
    merger, has_ended = Merger(), [False, False]
    while not all(has_ended):
        some: list[list[bytes]] = [[], []]
        for side in (0, 1):
            if merger.needs(side):
                has_ended[side] = not left[side]
                some[side] = left[side].pop(0) if left[side] else []
        merger.add(*some)
        for side in (0, 1):
            if has_ended[1 - side]:
                merger.drain(side)
    matcher = merger.matcher
    expected = {id_ for id_ in sides[0].keys() | sides[1].keys() if sides[0].get(id_) != sides[1].get(id_)}
    assert matcher.take_compared() == sum(sides[0][id_] == sides[1].get(id_) for id_ in sides[0])
    assert set(matcher.take_suspects()) == expected


@given(source=_SIDES, target=_SIDES)
def test_each_difference_is_named_by_its_kind(source: dict[object, int], target: dict[object, int]) -> None:
    sides = (_documents(source), _documents(target))
    found = {d.id: d.kind for d in differences_of(Namespace("shop", "a"), *sides)}
    for id_ in sides[0].keys() | sides[1].keys():
        if sides[0].get(id_) == sides[1].get(id_):
            assert id_ not in found
        elif id_ not in sides[0]:
            assert found[id_] is DifferenceKind.EXTRA
        elif id_ not in sides[1]:
            assert found[id_] is DifferenceKind.MISSING
        else:
            assert found[id_] is DifferenceKind.DIFFERENT
