"""An operator's word: what the agent does not do on its own, asked for with the id of the run that it is for."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from d5agent.core.services import Phase, PhaseState, Service
from d5agent.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What was typed beside `d5agent start`: each is the id of a run, or None."""

    accept_differences: str | None = None

    @classmethod
    def from_request(cls, request: Mapping[str, Any]) -> Words:
        """Return the words in a request to the control socket."""
        return cls(**{field.name: request.get(field.name) for field in fields(cls)})

    def given(self) -> list[tuple[str, str]]:
        """Return the options that were typed, each with its run id."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(f"--{name.replace('_', '-')}", run_id) for name, run_id in values if run_id is not None]


def with_words(state: PhaseState, request: Service | Phase, words: Words, *, now: str) -> PhaseState:
    """Return the state after an operator's words. RefusedError: for another run, or beside another request."""
    for option, run_id in words.given():
        if state.phase is Phase.IDLE or run_id != state.run_id:
            raise RefusedError(
                f"{request} refused: {option} names another run",
                hint="nothing was changed; d5agent status shows the run's id: are you on the right machine?",
                given=run_id,
            )
        if request not in _REQUESTS[option]:
            named = _REQUESTS[option][0]
            raise RefusedError(
                f"{request} refused: it does not take {option}", hint=f"only: d5agent start {named} {option} RUN"
            )
    if words.accept_differences is not None:
        state = replace(state, differences_accepted_at=now)
    return state


_REQUESTS: dict[str, tuple[Service | Phase, ...]] = {
    "--accept-differences": (Phase.CLEAN, Service.CLEAN),
}


def accepts_differences(state: PhaseState, *, found_at: str) -> bool:
    """Whether an operator has accepted differences that were reported at that time (ISO 8601); not those found later.

    The word is `d5agent start clean --accept-differences RUN`.
    """
    accepted_at = state.differences_accepted_at
    return bool(accepted_at) and datetime.fromisoformat(accepted_at) >= datetime.fromisoformat(found_at)
