"""Which comparison after a proof has the last word."""

from __future__ import annotations

import pytest

from d5agent.core.verdicts import Verdict, red_verdict

PROOF = "2026-11-02T08:00:00+00:00"


def verdict(text: str) -> Verdict:
    """Return what `scope minute equal|red` says."""
    scope, minute, result = text.split()
    at = f"2026-11-02T08{minute}00+0000"
    return Verdict(scope=scope, at=at, key=text, is_equal=result == "equal", different=int(result == "red"))


@pytest.mark.parametrize(
    ("made", "red"),
    [
        ([], None),
        (["touched 00 equal"], None),
        (["touched 05 red"], "touched 05 red"),
        (["full 05 red"], "full 05 red"),
        (["touched 09 equal", "touched 05 red"], None),
        (["touched 05 equal", "touched 09 red"], "touched 09 red"),
        (["touched 05 red", "full 09 equal"], None),
        (["full 05 red", "touched 09 equal"], "full 05 red"),
        (["full 05 red", "full 09 equal"], None),
        (["full 05 equal", "touched 09 red"], "touched 09 red"),
        (["touched 00 red"], "touched 00 red"),
    ],
)
def test_the_last_comparison_of_each_scope_decides(made: list[str], red: str | None) -> None:
    found = red_verdict(map(verdict, made), since=PROOF)
    assert (found and found.key) == red


def test_a_comparison_before_the_proof_says_nothing() -> None:
    before = Verdict(scope="full", at="2026-11-02T075959+0000", key="before", is_equal=False, different=1)
    assert red_verdict([before], since=PROOF) is None
