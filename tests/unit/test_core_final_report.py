"""The state of clean: it comes back as it was saved, and what is not ours to read is refused in words."""

from __future__ import annotations

import pytest

from d5agent.core.reports.final_report import Clearing, decode_report, encode_report
from d5agent.errors import CorruptDataError, OperatorError

CLEARING = Clearing(run_id="run", began_at="2026-11-02T08:00:00+00:00", archive="archive/run/", archived=7)


def test_it_comes_back_as_it_was_saved() -> None:
    assert Clearing.from_json(CLEARING.to_json()) == CLEARING


def test_that_of_a_newer_agent_is_refused() -> None:
    with pytest.raises(OperatorError, match="of another version") as caught:
        Clearing.from_json({**CLEARING.to_json(), "version": 2})
    assert caught.value.facts == {"version": 2}


@pytest.mark.parametrize("damage", [{"run_id": "run", "version": 1}, {**CLEARING.to_json(), "unknown": 1}])
def test_a_damaged_one_is_named(damage: dict[str, object]) -> None:
    with pytest.raises(CorruptDataError, match="the state of clean is damaged") as caught:
        Clearing.from_json(damage)
    assert "clearing.json" in caught.value.hint


def test_a_report_comes_back_and_a_damaged_one_is_named_with_what_to_type() -> None:
    assert decode_report(encode_report({"run_id": "ñ"}), key="final") == {"run_id": "ñ"}
    with pytest.raises(CorruptDataError, match="the final report is damaged") as caught:
        decode_report(b'{"run_id', key="reports/run/final.json")
    assert caught.value.facts == {"key": "reports/run/final.json"}
    assert "d5agent start monitor-clean" in caught.value.hint
