"""The phase state as JSON values, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.services import (
    MODES,
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

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1
PHASE: Final = "phase"
"""The name of the phase state in a StateStore."""
_MODES: Final = {mode: mode for mode in ("", *MODES)}


def encode_phase(state: PhaseState) -> dict[str, Any]:
    """Return the state as JSON values (docs/formats.md)."""
    return {"version": VERSION, **asdict(state)}


def decode_phase(value: Mapping[str, Any]) -> PhaseState:
    """Return the state that `encode_phase` wrote.

    OperatorError: a newer version wrote it. CorruptDataError: it is no phase state.
    """
    if value.get("version") != VERSION:
        raise OperatorError(
            "the phase state is of another version",
            hint="run the d5agent version that wrote it, or a newer one; nothing was changed",
            version=value.get("version"),
        )
    try:
        fence, verified, power_off = value["fence"], value["verified"], value.get("power_off")
        return PhaseState(
            phase=Phase(value["phase"]),
            run_id=value["run_id"],
            since=value["since"],
            ready_at=value["ready_at"],
            fence=fence and Fence(**{**fence, "cluster_time": ClusterTime(*fence["cluster_time"])}),
            verified=verified and Verified(**verified),
            is_clearing=value["is_clearing"],
            is_paused=value.get("is_paused", False),  # states of 0.1 before live restore have none
            opened_stream=value.get("opened_stream", False),  # nor had those before there was an earned clean-up
            forced_at=value.get("forced_at", ""),
            mode=_MODES[value.get("mode", "")],  # older agents knew only the configuration's
            differences_accepted_at=value.get("differences_accepted_at", ""),
            late=_late(value.get("late")),
            power_off=power_off and PowerOff(**power_off),
            services={
                Service(name): ServiceState(**{**row, "status": Status(row["status"])})
                for name, row in value["services"].items()
            },
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CorruptDataError(
            "the phase state is damaged",
            hint="move phase.json aside: the agent then takes its mirror under state/ in the bucket",
            reason=type(error).__name__,
        ) from error


def _late(value: Mapping[str, Any] | None) -> Late:
    """Return what became of late operations; an agent that applied them without a word has written nothing of it."""
    if value is None:
        return Late()
    words = (LateWord(**{**word, "shown": LateShown(**word["shown"])}) for word in value["words"])
    shown = value["shown"]
    return Late(settled=value["settled"], shown=shown and LateShown(**shown), words=tuple(words))
