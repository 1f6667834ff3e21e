"""An operator's word: it is for one run and one request, and covers what was reported before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from d5agent.core.run.services import Late, LateShown, LateWord, Phase, PhaseState, Service, Status, Verified
from d5agent.core.run.words import Words, accepts_differences, with_words
from d5agent.errors import RefusedError
from tests.fakes.phases import with_rows

RUN: Final = PhaseState(phase=Phase.RESTORE, run_id="run")
NOW: Final = "2026-11-02T08:00:00.500+00:00"
SHOWN: Final = LateShown(sequence=9, operations=2, documents=1, unknown=0, report="reports/r.json", digest="d")


def test_no_word_changes_nothing() -> None:
    assert with_words(RUN, Service.BACKUP, Words(), now=NOW) == RUN
    assert Words.from_request({"verb": "start", "accept_differences": None}) == Words()


@pytest.mark.parametrize("request_", [Phase.CLEAN, Service.CLEAN])
def test_accepted_differences_are_noted_with_their_time(request_: Phase | Service) -> None:
    words = Words.from_request({"accept_differences": "run"})
    assert words.given() == [("--accept-differences", "run")]
    assert with_words(RUN, request_, words, now=NOW) == replace(RUN, differences_accepted_at=NOW)


@pytest.mark.parametrize("state", [replace(RUN, run_id="another"), replace(RUN, phase=Phase.IDLE)])
def test_a_word_for_another_run_is_refused(state: PhaseState) -> None:
    with pytest.raises(RefusedError, match="clean refused: --accept-differences names another run") as refused:
        with_words(state, Phase.CLEAN, Words(accept_differences="run"), now=NOW)
    assert refused.value.facts == {"given": "run"}
    assert "d5agent status" in refused.value.hint


def test_a_word_beside_another_request_is_refused() -> None:
    with pytest.raises(RefusedError, match="restore refused: it does not take --accept-differences") as refused:
        with_words(RUN, Phase.RESTORE, Words(accept_differences="run"), now=NOW)
    assert refused.value.hint == "only: d5agent start clean --accept-differences RUN"


@pytest.mark.parametrize(
    ("found_at", "is_accepted"),
    [
        ("2026-11-02T08:00:00+00:00", True),
        ("2026-11-02T08:00:00.500+00:00", True),
        ("2026-11-02T08:00:00.501+00:00", False),
        ("2026-11-02T08:00:01+00:00", False),
    ],
)
def test_a_word_covers_what_was_reported_before_it(found_at: str, *, is_accepted: bool) -> None:
    assert accepts_differences(replace(RUN, differences_accepted_at=NOW), found_at=found_at) is is_accepted
    assert not accepts_differences(RUN, found_at=found_at)


def test_an_accepted_report_waits_to_be_carried_out_and_a_discarded_one_is_settled() -> None:
    state = replace(RUN, late=Late(settled=4, shown=SHOWN))
    accepted = with_words(state, Service.MONITOR_RESTORE, Words(accept_late="run"), now=NOW).late
    word = LateWord(is_accepted=True, shown=SHOWN, at=NOW)
    assert accepted == Late(settled=4, words=(word,))
    assert accepted.pending == word
    discarded = with_words(state, Service.MONITOR_RESTORE, Words(discard_late="run"), now=NOW).late
    assert discarded == Late(settled=9, words=(LateWord(is_accepted=False, shown=SHOWN, at=NOW, ended_at=NOW),))
    assert discarded.pending is None


@pytest.mark.parametrize("words", [Words(accept_late="run"), Words(discard_late="run")])
def test_a_word_on_what_was_not_reported_is_refused(words: Words) -> None:
    with pytest.raises(RefusedError, match="no late operations were reported") as refused:
        with_words(RUN, Service.MONITOR_RESTORE, words, now=NOW)
    assert "d5agent start monitor-restore" in refused.value.hint


def test_operations_of_an_unknown_type_can_only_be_discarded() -> None:
    state = replace(RUN, late=Late(shown=replace(SHOWN, unknown=1)))
    with pytest.raises(RefusedError, match="of an unknown type cannot be applied") as refused:
        with_words(state, Service.MONITOR_RESTORE, Words(accept_late="run"), now=NOW)
    assert "--discard-late run" in refused.value.hint
    assert with_words(state, Service.MONITOR_RESTORE, Words(discard_late="run"), now=NOW).late.settled == 9


def test_both_words_at_once_are_refused() -> None:
    state = replace(RUN, late=Late(shown=SHOWN))
    with pytest.raises(RefusedError, match="accepted or discarded"):
        with_words(state, Service.MONITOR_RESTORE, Words(accept_late="run", discard_late="run"), now=NOW)


def test_again_revokes_the_proof_of_the_run_that_is_named() -> None:
    proof = Verified(sequence=1, operations=1, compared=1, at=NOW)
    state = replace(RUN, verified=proof)
    assert with_words(state, Phase.RESTORE, Words(again="run"), now=NOW) == RUN
    for request, words in ((Service.BACKUP, Words(again="run")), (Phase.RESTORE, Words(again="other"))):
        with pytest.raises(RefusedError):
            with_words(state, request, words, now=NOW)


def test_an_accepted_report_that_cannot_be_written_is_discarded_once_restore_has_ended() -> None:
    word = LateWord(is_accepted=True, shown=SHOWN, at="before")
    state = with_rows(replace(RUN, late=Late(settled=4, words=(word,))), {Service.RESTORE: Status.FAILED})
    ended, discarded = replace(word, ended_at=NOW), LateWord(is_accepted=False, shown=SHOWN, at=NOW, ended_at=NOW)
    after = with_words(state, Service.MONITOR_RESTORE, Words(discard_late="run"), now=NOW).late
    assert after == Late(settled=9, words=(ended, discarded))
    at_work = with_rows(state, {Service.RESTORE: Status.RUNNING})
    with pytest.raises(RefusedError, match="restore is at work") as refused:
        with_words(at_work, Service.MONITOR_RESTORE, Words(discard_late="run"), now=NOW)
    assert "d5agent stop restore" in refused.value.hint
