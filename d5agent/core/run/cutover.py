"""What an operator may ask of a restore and when: its mode, pausing it, and calling its cutover off."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from d5agent.core.run.horizon import CAUGHT_UP_SECONDS
from d5agent.core.run.services import ACTIVE, MODES, Phase, PhaseState, Service, ServiceState, Status
from d5agent.errors import RefusedError, UnconfirmedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.log.operation import ClusterTime

# A cutover takes about as long as a turn of the live restore. Until a turn is this short, and little differs, the
# application is not made read-only.
_READY_SECONDS: Final = 3.0
_READY_CARRIED: Final = 10_000
_ENDED_BADLY: Final = frozenset({Status.FAILED, Status.STOPPED})
MAY_WRITE_AGAIN: Final = "d5agent cutover --call-off lets it write again"
MAY_BE_READ_ONLY: Final = f"the application may be read-only: {MAY_WRITE_AGAIN}"


def in_mode(state: PhaseState, request: Service | Phase, mode: str, *, is_live: bool) -> PhaseState:
    """Return the state in which this run is restored in a mode. RefusedError: nothing to restore, or not now.

    `is_live`: the mode until now. A restore that is under way keeps it: what one mode has proved, the other has not.
    """
    if request is not Phase.RESTORE:
        raise RefusedError(f"{request} has no mode", hint="only: d5agent start restore --mode MODE")
    if mode not in MODES:
        raise RefusedError(f"there is no mode called {mode!r}", hint=f"one of: {', '.join(MODES)}")
    at_work = any(state.status(s) in {Status.PENDING, *ACTIVE} for s in (Service.RESTORE, Service.MONITOR_REPLICATION))
    if at_work and (mode == "live") != is_live:
        raise RefusedError(
            f"restore refused: a {MODES[is_live]} restore is under way",
            hint="wait for it (d5agent status), or type: d5agent stop restore, then d5agent start restore --mode "
            f"{mode}",
        )
    return replace(state, mode=mode)


def require_word(*, is_made: bool, is_confirmed: bool, can_cutover: bool) -> None:
    """Raise UnconfirmedError unless the application is made read-only here, or somebody says that it is.

    `is_made`: a command of the configuration does it. RefusedError: it is too early to make it so by hand.
    """
    if not is_made and not is_confirmed and not can_cutover:
        raise RefusedError(
            "cutover refused: restore has not caught up, and no [cutover] command makes the application read-only: it "
            "would stand still meanwhile",
            hint="let it write until d5agent status --json shows can_cutover; then make its user read-only, and type: "
            "d5agent cutover --yes",
        )
    if not is_made and not is_confirmed:
        raise UnconfirmedError(
            "cutover refused: no [cutover] command makes the application read-only, and nobody has said that it is",
            question="No [cutover] command makes the application read-only. Did you make it so, and see a write fail?",
            hint="make its user read-only and prove it by a write that must fail, then type: d5agent cutover --yes; or "
            "set [cutover] command and restart the daemon",
        )


def pause(state: PhaseState, *, is_paused: bool, is_live: bool) -> PhaseState:
    """Return the state in which restore is paused, or goes on; RefusedError: it cannot be paused now.

    Not while a cutover waits for it: the application would stay read-only meanwhile.
    """
    if is_paused and state.status(Service.RESTORE) not in {Status.PENDING, *ACTIVE}:
        raise RefusedError("pause refused: restore is not at work", hint="d5agent status says how things stand")
    if is_paused and is_live and state.status(Service.MONITOR_REPLICATION) in {Status.PENDING, *ACTIVE}:
        raise RefusedError(
            "pause refused: a cutover is under way, and the application may be read-only",
            hint="wait for it (d5agent status), or type: d5agent cutover --call-off, then d5agent pause restore",
        )
    return replace(state, is_paused=is_paused)


def without_fence(state: PhaseState) -> PhaseState:
    """Return the state in which the application may write again. RefusedError: it may not.

    Once the fence is drawn restore ends without anybody's help, and says in seconds that both sides are equal. If it
    could not, the way back is open again; the fence is forgotten, for what is written from now on comes after it.
    """
    if state.status(Service.MONITOR_REPLICATION) is None:
        raise RefusedError(
            "call-off refused: no cutover has been asked for", hint="d5agent status says how things stand"
        )
    if state.verified is not None:
        raise RefusedError(
            "call-off refused: the certificate is issued, and MongoDB belongs to the applications",
            hint="type: d5agent start monitor-restore",
        )
    if state.fence is not None and state.status(Service.RESTORE) not in _ENDED_BADLY:
        raise RefusedError(
            "call-off refused: the fence is drawn, and what came before it is restored to its end",
            hint="wait for it: d5agent status; then type: d5agent start monitor-restore",
        )
    return replace(state, fence=None)


def called_off(state: PhaseState, *, now: str) -> PhaseState:
    """Return the state after the application was told that it may write again."""
    row = ServiceState(status=Status.STOPPED, since=now, reason="called off")
    return state.with_service(Service.MONITOR_REPLICATION, row)


def lag_seconds(applied: ClusterTime, captured: ClusterTime | None, capture_lag: float | None) -> float:
    """Return how far the target is behind the source: behind the log, and the log behind the source."""
    behind_log = 0 if captured is None else max(0, captured.seconds - applied.seconds)
    return round(behind_log + (capture_lag or 0.0), 1)


def held_up_by(refused: Sequence[str]) -> str:
    """Return what a cutover waits for whose restore has documents that the target refuses."""
    return f"somebody to mend what MongoDB refuses, before a cutover can begin: {'; '.join(refused)}"


def is_ready(*, turn_seconds: float, carried: int, carries_whole: bool, lag: float) -> bool:
    """Whether what is left for the cutover takes seconds.

    `turn_seconds`: what it last took to apply and compare what had come. `carried`: documents that differed then;
    `carries_whole`: so many that whole collections are to be compared again.
    """
    is_close = turn_seconds < _READY_SECONDS and lag <= CAUGHT_UP_SECONDS
    return is_close and carried < _READY_CARRIED and not carries_whole
