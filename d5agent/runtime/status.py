"""What this machine's state file says while no daemon runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.adapters.state import read_state_file
from d5agent.core.run.phase_codec import PHASE, decode_phase
from d5agent.core.run.services import PhaseState

if TYPE_CHECKING:
    from pathlib import Path


def local_phase(directory: Path) -> PhaseState:
    """Return the phase state in this machine's state file."""
    value = read_state_file(directory / f"{PHASE}.json")
    return PhaseState() if value is None else decode_phase(value)
