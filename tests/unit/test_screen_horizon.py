"""What status says of lag and horizon, in words."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from d5agent.core.run.horizon import Basis
from d5agent.core.run.progress import AgentProgress
from d5agent.core.run.read_status import read_status
from d5agent.core.run.services import PhaseState, Service, ServiceState, Status
from d5agent.core.run.status import status_of
from d5agent.screen.status import status_table
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import a_horizon


def shown(*, failing_since: str | None = None, **facts: Any) -> str:  # noqa: ANN401 -- fields of the horizon
    """Return the table's text, its blanks and lines joined."""
    row = ServiceState(status=Status.RUNNING, since=SINCE)
    state = PhaseState(run_id="run").with_service(Service.REPLICATION, row)
    values: dict[str, Any] = status_of(
        state, AgentProgress(horizon=a_horizon(**facts), failing_since=failing_since), is_up=True
    )
    console = Console(width=300, highlight=False)
    with console.capture() as captured:
        console.print(status_table(read_status(values)))
    return " ".join(captured.get().split())


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"lag_seconds": 2.4, "caught_up_in_seconds": 0.0, "catch_up_rate": 1.0}, "capture keeps up, 2 s behind"),
        (
            {"lag_seconds": 5_000.0, "caught_up_in_seconds": 2_000.0, "catch_up_rate": 3.5},
            "capture is 1 h 23 min behind the source, catching up: done in about 33 min 20 s",
        ),
        (
            {"lag_seconds": 90.0, "caught_up_in_seconds": None, "catch_up_rate": 0.9},
            "capture is 1 min 30 s behind the source and does not catch up",
        ),
        ({"lag_seconds": 3_600.0}, "capture is 1 h behind the source"),
    ],
)
def test_the_lag_and_where_it_goes(facts: dict[str, Any], words: str) -> None:
    text = shown(**facts)
    assert words in text
    assert "safe" not in text
    assert "rate" not in text  # not once more, raw, beside the service


@pytest.mark.parametrize(
    ("safe", "kept", "basis", "words"),
    [
        (10_799.0, 10_800, "aws", "safe for 2 h 59 min: the source keeps its changes for 3 h (says AWS)"),
        (100_000.0, 604_800, "setting", "safe for 1 d 3 h: the source keeps its changes for 7 d (says [source] reten"),
        (45.0, 10_800, "default", "safe for 45 s: the source keeps its changes for 3 h (assumed, its default"),
        (0.0, 10_800, "aws", "THE POSITION HAS EXPIRED: the source keeps its changes for 3 h only (says AWS)"),
    ],
)
def test_how_long_the_position_is_safe_and_how_that_is_known(safe: float, kept: int, basis: str, words: str) -> None:
    assert words in shown(safe_seconds=safe, retention_seconds=kept, retention_basis=Basis(basis))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "capture fails since then, and is tried again"),
        (
            {"safe_seconds": 720.0, "retention_seconds": 10_800, "retention_basis": Basis.AWS},
            "capture fails since then, and is tried again: 12 min are left for that",
        ),
    ],
)
def test_capture_that_fails_says_since_when(facts: dict[str, Any], words: str) -> None:
    assert words in shown(failing_since="then", **facts)
    assert "fails since" not in shown(failing_since=None, **facts)


@pytest.mark.parametrize(("safe", "colour"), [(6_000.0, "39"), (5_000.0, "33"), (2_000.0, "1;31"), (0.0, "1;31")])
def test_the_nearer_the_end_the_louder(safe: float, colour: str) -> None:
    horizon = a_horizon(safe_seconds=safe, retention_seconds=10_800, retention_basis=Basis.AWS)
    values = status_of(PhaseState(), AgentProgress(horizon=horizon), is_up=True)
    console = Console(width=300, force_terminal=True, color_system="standard", highlight=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(status_table(read_status(values)))
    line = next(line for line in captured.get().splitlines() if "source keeps" in line)
    assert line.startswith(f"\x1b[{colour}m")
