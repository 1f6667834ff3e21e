"""The timeline: what went on when, bounded, and told as JSON."""

from __future__ import annotations

import json

import pytest

from d5agent.core.run.timeline import Series, Timeline, activity


def test_what_goes_on_is_one_span_and_after_a_gap_another() -> None:
    timeline = Timeline()
    timeline.begin("run")
    for at in (10.0, 11.0, 12.5, 20.0, 21.0):
        timeline.see(at, ["backup"])
    assert [(s.what, s.began, s.ended) for s in timeline.spans] == [("backup", 10.0, 12.5), ("backup", 20.0, 21.0)]


def test_many_spans_are_bounded_and_the_last_stay() -> None:
    timeline = Timeline()
    for number in range(300):
        timeline.see(number * 10.0, ["backup"])
    assert len(timeline.spans) == 200
    assert timeline.spans[-1].began == 2990.0


def test_points_keep_their_distance_and_of_two_that_become_one_the_peak_stays() -> None:
    series = Series()
    for number in range(513):
        series.add(number / 2, 0.0)  # twice a second: every second one is too soon
    assert (len(series.points), series.step) == (257, 1.0)
    for number in range(257, 513):
        series.add(float(number), 100.0 if number == 300 else 0.0)
    assert (len(series.points), series.step) == (256, 2.0)
    assert max(value for _, value in series.points) == 100.0


def test_another_run_begins_anew() -> None:
    timeline = Timeline()
    timeline.begin("run")
    timeline.see(1.0, ["backup"])
    timeline.capture.add(1.0, 2.0, 3.0)
    timeline.begin("run")
    assert timeline.spans
    timeline.begin("other")
    assert (timeline.spans, timeline.capture.points) == ([], [])


def test_a_timeline_goes_on_from_its_json() -> None:
    timeline = Timeline(run_id="run")
    for at in (1.0, 2.5):
        timeline.see(at, ["backup"])
        timeline.capture.add(at, 2.0, 3.0)
        timeline.restore.add(at, 4.0, 5.0)
    value = json.loads(json.dumps(timeline.to_json()))
    again = Timeline()
    again.take(value)
    assert again == timeline
    again.see(3.0, ["backup"])
    assert len(again.spans) == 1


@pytest.mark.parametrize("damage", [{"spans": 1}, {"spans": [{}]}, {"capture": {}}, {"restore": None}])
def test_a_damaged_timeline_leaves_this_one_as_it_is(damage: dict[str, object]) -> None:
    timeline = Timeline(run_id="run")
    with pytest.raises((KeyError, TypeError, ValueError)):
        timeline.take({**Timeline(run_id="other").to_json(), **damage})
    assert timeline == Timeline(run_id="run")


@pytest.mark.parametrize(
    ("service", "step", "has_fence", "name"),
    [
        ("backup", None, False, "backup"),
        ("restore", None, True, "restore"),
        ("restore", "checking the log", False, "restore: check of the log"),
        ("restore", "replaying", True, "restore: replay"),
        ("restore", "replaying", False, "restore: live, beside the application"),
        ("restore", "following", False, "restore: live, beside the application"),
        ("restore", "verifying", True, "restore: verify"),
        ("restore", "something new", True, "restore"),
    ],
)
def test_each_activity_has_a_name(service: str, step: str | None, has_fence: bool, name: str) -> None:  # noqa: FBT001 -- a row of the table
    assert activity(service, step, has_fence=has_fence) == name
