"""What was certified of a document: told by the log up to its certified end, and by nothing behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from bson import Int64, encode

from d5agent.core.log.identity import identity_of
from d5agent.core.log.operation import Namespace
from d5agent.core.run.late import (
    Certified,
    LateState,
    check_late_carried_out,
    check_late_words,
    covered_sequence,
    notes_of_certified,
)
from d5agent.core.run.services import Late, LateShown, LateWord, Phase, PhaseState, Verified
from d5agent.errors import OperatorError
from tests.fakes.documents import raw_id
from tests.fakes.events import ITEMS, ORDERS, operation

if TYPE_CHECKING:
    from d5agent.core.log.operation import Operation

AS_CERTIFIED, NOT_KNOWN, CHANGED, NOT_CERTIFIED = LateState
SHOWN: Final = LateShown(sequence=9, operations=1, documents=1, unknown=0, report="report", digest="")
TO_ITEMS: Final = {"db": "shop", "coll": "items"}


def document(number: int, id_: object = 1) -> bytes:
    """The document that an event of that number has."""
    return encode({"_id": id_, "n": number})


def certified(*before: Operation, late: tuple[Operation, ...] = (), namespace: Namespace = ORDERS) -> Certified:
    known = Certified({namespace: {identity_of(raw_id(1))}})
    for known_before in before:
        known.add(known_before)
    for later in late:
        known.add_late(later)
    return known


def drop_database(increment: int) -> Operation:
    return operation("dropDatabase", increment, namespace=Namespace("shop"))


UPDATED: Final = operation("update", 9)
DELETED: Final = operation("delete", 9)


@pytest.mark.parametrize(
    ("before", "target", "expected"),
    [
        ((operation("insert", 1),), document(1), AS_CERTIFIED),
        ((operation("insert", 1), operation("update", 2)), document(2), AS_CERTIFIED),
        ((operation("insert", 1), operation("update", 2)), document(1), CHANGED),
        ((operation("insert", 1),), None, CHANGED),
        ((operation("insert", 1), operation("delete", 2)), None, AS_CERTIFIED),
        ((operation("insert", 1), operation("delete", 2)), document(1), CHANGED),
        ((operation("insert", 1), operation("update", 2, fullDocument=None)), document(1), NOT_KNOWN),
        ((operation("insert", 1, 2),), document(1), NOT_KNOWN),
        ((operation("insert", 1, namespace=ITEMS),), document(1), NOT_KNOWN),
        ((), document(1), NOT_KNOWN),
        ((), None, NOT_KNOWN),
        ((operation("insert", 1), operation("drop", 2)), document(1), CHANGED),
        ((operation("insert", 1), operation("drop", 2)), None, AS_CERTIFIED),
        ((operation("insert", 1), drop_database(2)), document(1), CHANGED),
        ((operation("insert", 1), operation("rename", 2, to=TO_ITEMS)), document(1), CHANGED),
        ((operation("insert", 1), operation("drop", 2, namespace=ITEMS)), document(1), AS_CERTIFIED),
        ((operation("insert", 1), operation("shardCollection", 2)), document(1), AS_CERTIFIED),
    ],
)
def test_the_last_word_of_the_log_is_what_was_certified(
    before: tuple[Operation, ...], target: bytes | None, expected: LateState
) -> None:
    assert certified(*before, late=(UPDATED,)).judge(ORDERS, raw_id(1), target) is expected


def test_what_came_under_a_new_name_is_not_known() -> None:
    rename = operation("rename", 2, to=TO_ITEMS)
    items = certified(operation("insert", 1, namespace=ITEMS), rename, late=(UPDATED,), namespace=ITEMS)
    assert items.judge(ITEMS, raw_id(1), document(1)) is NOT_CERTIFIED
    assert items.judge(ITEMS, raw_id(1), None) is NOT_KNOWN


def test_an_id_is_what_it_is_to_the_server() -> None:
    known = certified(operation("insert", 1), late=(UPDATED,))
    assert known.judge(ORDERS, raw_id(Int64(1)), document(1)) is AS_CERTIFIED


@pytest.mark.parametrize(
    ("late", "target", "expected"),
    [
        ((operation("insert", 1), DELETED), None, AS_CERTIFIED),
        ((operation("insert", 1),), document(5), CHANGED),
        ((DELETED, operation("insert", 10)), document(5), NOT_KNOWN),
        ((operation("drop", 1), operation("insert", 2)), document(5), NOT_KNOWN),
        ((drop_database(1), operation("insert", 2)), document(5), NOT_KNOWN),
        ((operation("drop", 1, namespace=ITEMS), operation("insert", 2)), document(5), CHANGED),
        ((operation("drop", 1),), document(5), NOT_CERTIFIED),
        ((operation("drop", 1),), None, NOT_KNOWN),
        ((operation("drop", 1), operation("insert", 2, 7)), document(5), NOT_CERTIFIED),
        ((operation("shardCollection", 1), operation("insert", 2)), document(5), CHANGED),
    ],
)
def test_late_operations_tell_what_was_absent_and_whom_they_name(
    late: tuple[Operation, ...], target: bytes | None, expected: LateState
) -> None:
    assert certified(late=late).judge(ORDERS, raw_id(1), target) is expected


def test_only_what_is_certified_or_named_may_be_written() -> None:
    assert [state for state in LateState if state.is_written] == [AS_CERTIFIED, NOT_KNOWN]


def test_the_log_is_covered_up_to_its_certified_end_or_the_last_word() -> None:
    proof = Verified(sequence=5, operations=1, compared=1, at="then")
    assert covered_sequence(PhaseState()) == -1
    assert covered_sequence(PhaseState(verified=proof)) == 5
    assert covered_sequence(PhaseState(verified=proof, late=Late(settled=9))) == 9


def test_a_plan_says_that_the_certificate_forbids_it() -> None:
    assert notes_of_certified(PhaseState()) == []
    (note,) = notes_of_certified(PhaseState(verified=Verified(sequence=5, operations=1, compared=1, at="then")))
    assert "restore overwrites nothing of this" in note


def test_differences_need_a_word_unless_a_later_certificate_covers_them() -> None:
    word = LateWord(is_accepted=True, shown=SHOWN, at="then", ended_at="2026-11-02T08:00:00+00:00", different=1)
    proof = Verified(sequence=5, operations=1, compared=1, at="then")
    state = PhaseState(phase=Phase.RESTORE, run_id="run", verified=proof, late=Late(words=(word,)))
    with pytest.raises(OperatorError, match="1 documents of the accepted late operations") as stopped:
        check_late_words(state)
    assert "d5agent start clean --accept-differences run" in stopped.value.hint
    check_late_words(replace(state, differences_accepted_at="2026-11-02T08:00:00.001+00:00"))
    check_late_words(replace(state, verified=replace(proof, sequence=9)))
    check_late_carried_out(replace(state, late=Late(words=(replace(word, different=0),))))
    pending = Late(words=(replace(word, ended_at="", different=0),))
    check_late_words(replace(state, late=pending))
    with pytest.raises(OperatorError, match="not written yet"):
        check_late_carried_out(replace(state, late=pending))
    with pytest.raises(OperatorError):
        check_late_words(replace(state, verified=None))
