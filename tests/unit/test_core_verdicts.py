"""Which comparison after a proof has the last word."""

from __future__ import annotations

import pytest

from d5agent.core.compare.verdicts import Verdict, red_verdicts

PROOF = "2026-11-02T08:00:00+00:00"


def verdict(text: str) -> Verdict:
    """Return what `scope minute equal|red` says."""
    scope, minute, result = text.split()
    at = f"2026-11-02T08{minute}00+0000"
    return Verdict(scope=scope, at=at, key=text, is_equal=result == "equal", different=int(result == "red"))


@pytest.mark.parametrize(
    ("made", "red"),
    [
        ([], []),
        (["touched 00 equal"], []),
        (["touched 05 red"], ["touched 05 red"]),
        (["full 05 red"], ["full 05 red"]),
        (["touched 09 equal", "touched 05 red"], []),
        (["touched 05 equal", "touched 09 red"], ["touched 09 red"]),
        (["touched 05 red", "full 09 equal"], []),
        (["full 05 red", "touched 09 equal"], ["full 05 red"]),
        (["full 05 red", "full 09 equal"], []),
        (["full 05 equal", "touched 09 red"], ["touched 09 red"]),
        (["touched 00 red"], ["touched 00 red"]),
        (["full 05 red", "touched 09 red"], ["full 05 red", "touched 09 red"]),
    ],
)
def test_the_last_comparison_of_each_scope_decides(made: list[str], red: list[str]) -> None:
    assert [found.key for found in red_verdicts(map(verdict, made), since=PROOF)] == red


def test_a_comparison_before_the_proof_says_nothing() -> None:
    before = Verdict(scope="full", at="2026-11-02T075959+0000", key="before", is_equal=False, different=1)
    assert red_verdicts([before], since=PROOF) == []
