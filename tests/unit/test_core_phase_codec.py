"""The phase state as JSON: read back as it was written, yesterday's too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.phase_codec import VERSION, decode_phase, encode_phase
from d5agent.core.run.services import (
    Fence,
    Late,
    LateShown,
    LateWord,
    Phase,
    PhaseState,
    PowerOff,
    Service,
    ServiceState,
    Status,
    Verified,
)
from d5agent.errors import CorruptDataError, OperatorError

CAME_LATER = {"is_paused", "opened_stream", "forced_at", "mode", "differences_accepted_at", "late", "power_off"}
GOLDEN = Path(__file__).parents[1] / "data" / "phase-1.json"
SHOWN = LateShown(sequence=9, operations=2, documents=1, unknown=0, report="reports/x/report.json", digest="ab")
STATE = PhaseState(
    phase=Phase.CLEAN,
    run_id="20261102T080000Z-1f3a",
    since="2026-11-02T09:00:00.000+00:00",
    ready_at="2026-11-02T08:00:01.000+00:00",
    fence=Fence(sequence=7, cluster_time=ClusterTime(1_793_600_000, 9), at="2026-11-02T08:30:00.000+00:00"),
    verified=Verified(sequence=8, operations=100, compared=90, at="2026-11-02T08:45:00.000+00:00"),
    is_clearing=True,
    services={
        Service.RESTORE: ServiceState(status=Status.DONE, since="2026-11-02T08:45:00.000+00:00"),
        Service.CLEAN: ServiceState(
            status=Status.FAILED,
            since="2026-11-02T09:00:00.000+00:00",
            error="an object was not deleted",
            hint="mend it",
        ),
        Service.MONITOR_CLEAN: ServiceState(
            status=Status.WAITING, since="2026-11-02T09:00:00.000+00:00", reason="clean is not done"
        ),
    },
)


@pytest.mark.parametrize(
    "state",
    [
        STATE,
        PhaseState(),
        replace(
            STATE,
            is_paused=True,
            opened_stream=True,
            forced_at="then",
            mode="live",
            differences_accepted_at="then",
            late=Late(settled=9, shown=SHOWN, words=(LateWord(is_accepted=True, shown=SHOWN, at="then"),)),
            power_off=PowerOff(boot_id="this", at="now"),
        ),
    ],
    ids=["full", "empty", "forced"],
)
def test_a_state_comes_back_from_json(state: PhaseState) -> None:
    assert decode_phase(json.loads(json.dumps(encode_phase(state)))) == state


def test_yesterdays_state_is_read_and_what_came_later_has_its_default() -> None:
    value = json.loads(GOLDEN.read_text())
    assert decode_phase(value) == STATE
    written = json.loads(json.dumps(encode_phase(STATE)))
    assert written == {
        **value,
        "is_paused": False,
        "opened_stream": False,
        "forced_at": "",
        "mode": "",
        "differences_accepted_at": "",
        "late": {"settled": -1, "shown": None, "words": []},
        "power_off": None,
        "fence": {**value["fence"], "read_only_at": "", "marker": ""},
        "verified": {**value["verified"], "certificate": "", "digest": ""},
    }


def test_a_row_keeps_its_reason_error_and_hint_and_a_time_its_type() -> None:
    row = ServiceState(status=Status.FAILED, since="then", reason="why", error="what", hint="how")
    state = STATE.with_service(Service.VERIFY, row)
    after = decode_phase(json.loads(json.dumps(encode_phase(state))))
    assert after.services[Service.VERIFY] == row
    assert after.services[Service.VERIFY].status is Status.FAILED
    assert after.fence is not None
    assert isinstance(after.fence.cluster_time, ClusterTime)


@pytest.mark.parametrize("version", [VERSION + 1, VERSION - 1, "1", None])
def test_a_state_of_another_version_is_refused_and_not_called_damaged(version: object) -> None:
    with pytest.raises(OperatorError, match="the phase state is of another version") as caught:
        decode_phase({**encode_phase(STATE), "version": version})
    assert not isinstance(caught.value, CorruptDataError)
    assert caught.value.facts == {"version": version}
    assert "newer" in caught.value.hint


@pytest.mark.parametrize(
    "damage",
    [
        {"phase": "nowhere"},
        {"fence": {"sequence": 1}},
        {"fence": {"sequence": 1, "cluster_time": [1], "at": ""}},
        {"fence": "yes"},
        {"verified": 1},
        {"verified": {"sequence": 1, "surprise": 2}},
        {"late": {"settled": 1}},
        {"late": {"settled": 1, "shown": {"sequence": 1}, "words": []}},
        {"services": []},
        {"services": {"nobody": {}}},
        {"services": {"nobody": {"status": "done", "since": ""}}},
        {"services": {"restore": {"status": "eaten", "since": ""}}},
        {"services": {"restore": {"since": ""}}},
        {"services": {"restore": None}},
    ],
)
def test_a_damaged_state_is_corrupt_and_the_hint_is_the_mirror(damage: dict[str, Any]) -> None:
    with pytest.raises(CorruptDataError, match="the phase state is damaged") as caught:
        decode_phase({**encode_phase(STATE), **damage})
    assert "mirror" in caught.value.hint


@pytest.mark.parametrize("name", sorted(encode_phase(STATE).keys() - {"version", *CAME_LATER}))
def test_a_state_that_lacks_a_field_is_damaged(name: str) -> None:
    value = encode_phase(STATE)
    del value[name]
    with pytest.raises(CorruptDataError, match="the phase state is damaged"):
        decode_phase(value)
