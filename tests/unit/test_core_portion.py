"""How much of the stream is asked for: less when no answer comes, slowly more again, never more than fits."""

from __future__ import annotations

import pytest

from d5agent.core.log.batch_size import BatchSize

LATE_SECONDS = 10.0  # a third of the 30 that an answer may take


def portion() -> BatchSize:
    return BatchSize(answer_seconds=30)


def test_a_silence_halves_what_is_asked_for() -> None:
    found = portion()
    asked = []
    while found.events > 1:
        asked.append(found.events)
        found.note_silence(found.events)
    assert asked == [1000, 500, 250, 125, 62, 31, 15, 7, 3]
    assert found.seconds == 30


def test_a_single_event_gets_more_and_more_time() -> None:
    found = portion()
    seconds = []
    for _ in range(5):
        found.note_silence(1)
        seconds.append(found.seconds)
    assert seconds == [60, 120, 240, 300, 300]
    found.note_answer(asked=1, came=1, seconds=100)
    assert found.seconds == 200  # the next one may be as slow
    found.note_answer(asked=1, came=1, seconds=1)
    assert found.seconds == 30


def test_a_late_answer_tells_how_many_would_have_been_in_time() -> None:
    found = portion()
    found.note_answer(asked=1000, came=800, seconds=20)
    found.fit(100.0)
    assert found.events == 400


def test_it_grows_back_slowly_and_only_after_full_batches() -> None:
    found = portion()
    found.note_silence(800)
    found.fit(100.0)
    assert found.events == 400
    found.note_answer(asked=400, came=399, seconds=1)
    found.fit(100.0)
    assert found.events == 400
    for expected in (450, 506):
        found.note_answer(asked=found.events, came=found.events, seconds=1)
        found.fit(100.0)
        assert found.events == expected
    for _ in range(100):
        found.note_answer(asked=found.events, came=found.events, seconds=LATE_SECONDS)
        found.fit(100.0)
    assert found.events == 10_000


@pytest.mark.parametrize(("average", "events"), [(None, 1000), (100.0, 10_000), (8192.0, 1024), (16e6, 1)])
def test_a_batch_fits_into_memory(average: float | None, events: int) -> None:
    found = portion()
    found.fit(average)
    assert found.events == events


def test_an_empty_answer_says_nothing() -> None:
    found = portion()
    found.note_silence(1000)
    found.note_silence(1)
    found.note_answer(asked=1, came=0, seconds=0.5)
    assert (found.events, found.seconds) == (500, 60)


def test_one_event_grows_to_two() -> None:
    found = portion()
    found.note_silence(2)
    found.note_answer(asked=1, came=1, seconds=1)
    found.fit(100.0)
    assert found.events == 2
