"""An operator's word: it is for one run and one request, and covers what was reported before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from d5agent.core.services import Phase, PhaseState, Service
from d5agent.core.words import Words, accepts_differences, with_words
from d5agent.errors import RefusedError

RUN: Final = PhaseState(phase=Phase.RESTORE, run_id="run")
NOW: Final = "2026-11-02T08:00:00.500+00:00"


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
