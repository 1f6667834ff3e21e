"""An operator's word: what the agent does not do on its own, asked for with the id of the run that it is for."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from d5agent.core.run.phase import begun_again
from d5agent.core.run.services import ACTIVE, Late, LateWord, Phase, PhaseState, Service, Status
from d5agent.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What was typed beside `d5agent start NAME`: each is the id of a run, or None."""

    accept_differences: str | None = None
    accept_late: str | None = None
    discard_late: str | None = None
    again: str | None = None

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
    if words.accept_late is not None or words.discard_late is not None:
        state = _with_late_word(state, words, now=now)
    return state if words.again is None else begun_again(state)


def _with_late_word(state: PhaseState, words: Words, *, now: str) -> PhaseState:
    """Return the state after a word on what was reported: on that only, not on what the log may hold by now."""
    shown, is_accepted, pending = state.late.shown, words.accept_late is not None, state.late.pending
    if is_accepted and words.discard_late is not None:
        raise RefusedError(
            "monitor-restore refused: late operations are accepted or discarded", hint="type one of both"
        )
    if pending is not None and not is_accepted:
        return _withdrawn(state, pending, now=now)
    if shown is None:
        raise RefusedError(
            "monitor-restore refused: no late operations were reported",
            hint="type: d5agent start monitor-restore, which reports what came after the certificate",
        )
    if is_accepted and shown.unknown:
        raise RefusedError(
            "monitor-restore refused: late operations of an unknown type cannot be applied",
            hint=f"{shown.report} names them; type: d5agent start monitor-restore --discard-late {state.run_id}",
            unknown=shown.unknown,
        )
    word = LateWord(is_accepted=is_accepted, shown=shown, at=now, ended_at="" if is_accepted else now)
    settled = state.late.settled if is_accepted else shown.sequence
    return replace(state, late=Late(settled=settled, words=(*state.late.words, word)))


def _withdrawn(state: PhaseState, pending: LateWord, *, now: str) -> PhaseState:
    """Return the state without the rest of an accepted report: where it cannot be written, that is the way on."""
    if state.status(Service.RESTORE) in {Status.PENDING, *ACTIVE}:
        raise RefusedError("monitor-restore refused: restore is at work", hint="type: d5agent stop restore, then again")
    ended, discarded = replace(pending, ended_at=now), replace(pending, is_accepted=False, at=now, ended_at=now)
    words = (*state.late.words[:-1], ended, discarded)
    return replace(state, late=Late(settled=pending.shown.sequence, words=words))


_REQUESTS: dict[str, tuple[Service | Phase, ...]] = {
    "--accept-differences": (Phase.CLEAN, Service.CLEAN),
    "--accept-late": (Service.MONITOR_RESTORE,),
    "--discard-late": (Service.MONITOR_RESTORE,),
    "--again": (Phase.RESTORE,),
}


def accepts_differences(state: PhaseState, *, found_at: str) -> bool:
    """Whether an operator has accepted differences that were reported at that time (ISO 8601); not those found later.

    The word is `d5agent start clean --accept-differences RUN`.
    """
    accepted_at = state.differences_accepted_at
    return bool(accepted_at) and datetime.fromisoformat(accepted_at) >= datetime.fromisoformat(found_at)
