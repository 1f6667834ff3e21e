"""The text of the metrics: what Prometheus' format 0.0.4 asks for, from what the status says."""

from __future__ import annotations

import re

from d5agent.core.run.horizon import Basis
from d5agent.core.run.progress import AgentProgress, RestoreProgress
from d5agent.core.run.services import Phase, PhaseState, Service, ServiceState, Status, Verified
from d5agent.runtime.metrics import Metric, exposition, metrics_of
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import a_capture, a_horizon, a_replay

SAMPLE = re.compile(r"(?P<name>[a-z0-9_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
CAPTURE = a_capture(operations=12, bytes=3_400, segments=5, queue_bytes=77, seen_at=17.0)
HORIZON = a_horizon(
    lag_seconds=1.5,
    safe_seconds=9_000.0,
    retention_seconds=10_800,
    retention_basis=Basis.AWS,
    catch_up_rate=1.02,
    caught_up_in_seconds=0.0,
)
REPLAY = a_replay(
    operations_total=12,
    operations_applied=7,
    documents_written=5,
    bytes_total=3_400,
    bytes_applied=1_700,
    operations_per_second=2.5,
    eta_seconds=2.0,
    lanes=3,
    lanes_allowed=8,
)


def parsed(text: str) -> dict[str, float]:
    """Read a text as a scraper does: each family's HELP and TYPE once, before its samples, and no sample twice."""
    assert text.endswith("\n")
    assert "\n\n" not in text
    values: dict[str, float] = {}
    families: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in families
            assert len(line.split(" ", 3)[3]) > 10
            families[current] = ""
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            assert kind == ("counter" if name.endswith("_total") else "gauge")
            families[current] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match["name"] == current
            assert families[current]
            key = line.rsplit(" ", 1)[0]
            assert key not in values
            values[key] = float(match["value"])
    return values


def text_of(state: PhaseState, progress: AgentProgress) -> str:
    return exposition(metrics_of(state, progress, agent_version="1.2.3"))


def running() -> tuple[PhaseState, AgentProgress]:
    row = ServiceState(status=Status.RUNNING, since=SINCE)
    proof = Verified(sequence=4, operations=9, compared=70, at=SINCE)
    state = PhaseState(phase=Phase.RESTORE, run_id="run", ready_at=SINCE, verified=proof)
    state = state.with_service(Service.REPLICATION, row).with_service(Service.RESTORE, row)
    progress = AgentProgress(capture=CAPTURE, horizon=HORIZON, restore=RestoreProgress(replay=REPLAY, lag_seconds=0.75))
    return state, progress


def test_each_value_of_the_status_has_its_metric() -> None:
    values = parsed(text_of(*running()))
    expected = {
        "d5agent_captured_operations_total": 12,
        "d5agent_captured_bytes_total": 3_400,
        "d5agent_captured_segments_total": 5,
        "d5agent_lag_seconds": 1.5,
        "d5agent_position_safe_seconds": 9_000,
        "d5agent_retention_seconds": 10_800,
        "d5agent_catch_up_rate": 1.02,
        "d5agent_capture_queue_bytes": 77,
        "d5agent_capture_failing": 0,
        "d5agent_restore_operations": 12,
        "d5agent_restore_operations_applied": 7,
        "d5agent_restore_documents_written": 5,
        "d5agent_restore_bytes": 3_400,
        "d5agent_restore_bytes_applied": 1_700,
        "d5agent_restore_operations_per_second": 2.5,
        "d5agent_restore_eta_seconds": 2,
        "d5agent_restore_lag_seconds": 0.75,
        "d5agent_restore_lanes": 3,
        "d5agent_restore_lanes_allowed": 8,
        "d5agent_verify_compared": 70,
        "d5agent_verify_different": 0,
        "d5agent_replication_ready": 1,
        'd5agent_build_info{version="1.2.3"}': 1,
    }
    assert {name: value for name, value in values.items() if "state=" not in name and "phase=" not in name} == expected


def test_phase_and_states_are_one_of_their_kind_and_nought_for_the_others() -> None:
    values = parsed(text_of(*running()))
    phases = {name: value for name, value in values.items() if name.startswith("d5agent_phase{")}
    assert len(phases) == len(Phase)
    assert [name for name, value in phases.items() if value] == ['d5agent_phase{phase="restore"}']
    states = {name: value for name, value in values.items() if name.startswith("d5agent_service_state{")}
    assert len(states) == len(Service) * len(Status)
    assert [name for name, value in states.items() if value] == [
        'd5agent_service_state{service="replication",state="running"}',
        'd5agent_service_state{service="restore",state="running"}',
    ]


def test_capture_that_is_tried_again_has_its_metric() -> None:
    state, progress = running()
    progress.failing_since = SINCE
    assert parsed(text_of(state, progress))["d5agent_capture_failing"] == 1


def test_what_is_not_known_is_absent_and_not_nought() -> None:
    text = text_of(PhaseState(), AgentProgress())
    values = parsed(text)
    assert values["d5agent_replication_ready"] == 0
    assert values['d5agent_phase{phase="idle"}'] == 1
    assert "d5agent_position_safe_seconds" not in text
    assert "d5agent_captured_operations_total" not in text


def test_large_numbers_keep_all_their_digits() -> None:
    text = exposition(iter([Metric(name="bytes", help="All of them.", samples=(({}, 12_345_678_901_234_567),))]))
    assert "d5agent_bytes 12345678901234567\n" in text


def test_labels_and_help_are_escaped() -> None:
    hostile = Metric(name="x", help='a\\b\n"c"', samples=(({"l": 'a\\b\n"c"'}, 1),))
    assert exposition(iter([hostile])) == (
        '# HELP d5agent_x a\\\\b\\n"c"\n# TYPE d5agent_x gauge\nd5agent_x{l="a\\\\b\\n\\"c\\""} 1\n'
    )
