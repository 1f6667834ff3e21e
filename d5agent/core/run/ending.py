"""How a failback ends: what stands between it and the power-off, and the end that an operator forces."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from d5agent.core.log.owners import LogOwners, check_owner
from d5agent.core.run.phase import finish
from d5agent.core.run.services import ACTIVE, Phase, PhaseState, PowerOff, Service, ServiceState, Status
from d5agent.errors import RefusedError

_AWAITED: Final = (Service.CLEAN, Service.BACKUP)
GOING_DOWN: Final = "the machine to go down"


def obstacles(state: PhaseState) -> tuple[str, ...]:
    """Return why the machine may not be switched off yet, in words; nothing: it may.

    `clean` and `backup` must be done, and nothing else may run or have failed: a failure is for somebody to look at.
    """
    undone = tuple(_standing(state, service) for service in _AWAITED if state.status(service) is not Status.DONE)
    others = (service for service in Service if service not in {*_AWAITED, Service.MONITOR_CLEAN})
    return undone + tuple(
        _standing(state, service) for service in others if state.status(service) in {*ACTIVE, Status.FAILED}
    )


def _standing(state: PhaseState, service: Service) -> str:
    status = state.status(service)
    needs_start = status in {None, Status.FAILED, Status.STOPPED}
    hint = f": type d5agent start {service}" if needs_start else ""
    return f"{service} ({status or 'not started'}{hint})"


def ask_power_off(state: PhaseState, *, boot_id: str, now: str) -> PhaseState:
    """Return the state in which the power-off is asked for: the run is over, and monitor-clean sees to its last wish.

    It is noted in which boot that is: on a machine that was started again there is nothing left to ask for.
    """
    state = replace(finish(state, now=now), power_off=PowerOff(boot_id=boot_id, at=now))
    row = ServiceState(status=Status.WAITING, since=now, reason=GOING_DOWN)
    return state.with_service(Service.MONITOR_CLEAN, row)


def forced(state: PhaseState, run_id: str, *, owners: LogOwners, now: str) -> PhaseState:
    """Return the state in which `clean` needs no proof that the log was restored.

    `run_id`: the run that is given up, this agent's, or the one that the log in the bucket belongs to; the state is
    that run's then. RefusedError: it is neither, the log is another run's, or something is still at work.
    """
    is_ours = run_id == state.run_id and state.phase is not Phase.IDLE
    if not is_ours and run_id not in owners.runs:
        raise _no_such_run(state, run_id)
    for service in Service:
        if state.status(service) in ACTIVE and service is not Service.CLEAN:
            raise RefusedError(f"clean refused: {service} is at work", hint=f"type: d5agent stop {service}, then again")
    check_owner(owners, run_id)
    if is_ours:
        return replace(state, is_clearing=True, forced_at=now)
    if state.ready_at:
        raise RefusedError(
            "clean refused: this agent's own run has captured operations, and they are not in this log",
            hint="nothing was deleted. See that [store] bucket and prefix are right; then restart the daemon",
            run_id=state.run_id,
            given=run_id,
        )
    given_up = PhaseState(phase=Phase.CLEAN, run_id=run_id, since=now, opened_stream=state.opened_stream)
    return replace(given_up, is_clearing=True, forced_at=now)


def _no_such_run(state: PhaseState, run_id: str) -> RefusedError:
    if state.phase is Phase.IDLE:
        return RefusedError("clean refused: there is no run to clean", hint="d5agent status says how things stand")
    return RefusedError(
        "clean refused: that is not the id of this run",
        hint="nothing was deleted; d5agent status shows the run's id: are you on the right machine?",
        given=run_id,
    )
