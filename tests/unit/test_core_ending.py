"""How a failback ends: who may force it, and what keeps the machine up."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from d5agent.core.log.owners import LogOwners
from d5agent.core.run.ending import ask_power_off, forced, obstacles
from d5agent.core.run.phase import start, to_resume
from d5agent.core.run.services import ACTIVE, Phase, PhaseState, PowerOff, Service, ServiceState, Status
from d5agent.errors import RefusedError
from tests.fakes.phases import with_rows

RUN: Final = PhaseState(phase=Phase.RESTORE, run_id="run", since="before")
OURS: Final = LogOwners(runs=frozenset({"run"}))
ENDED: Final = with_rows(RUN, dict.fromkeys((Service.REPLICATION, Service.CLEAN, Service.BACKUP), Status.DONE))


def test_nothing_stands_before_the_power_off_once_clean_and_backup_are_done() -> None:
    assert obstacles(ENDED) == ()
    assert obstacles(with_rows(ENDED, {Service.MONITOR_CLEAN: Status.RUNNING})) == ()


@pytest.mark.parametrize("service", [Service.CLEAN, Service.BACKUP])
@pytest.mark.parametrize("status", [status for status in Status if status is not Status.DONE])
def test_clean_and_backup_must_be_done(service: Service, status: Status) -> None:
    (reason,) = obstacles(with_rows(ENDED, {service: status}))
    assert reason.startswith(f"{service} ({status}")
    assert (f"type d5agent start {service}" in reason) == (status in {Status.FAILED, Status.STOPPED})


@pytest.mark.parametrize("status", Status)
def test_no_other_service_may_run_or_have_failed(status: Status) -> None:
    for service in set(Service) - {Service.CLEAN, Service.BACKUP, Service.MONITOR_CLEAN}:
        found = obstacles(with_rows(ENDED, {service: status}))
        assert bool(found) == (status in {*ACTIVE, Status.FAILED})


def test_the_request_ends_the_run_and_is_of_one_boot() -> None:
    state = ask_power_off(ENDED, boot_id="this boot", now="now")
    assert state.phase is Phase.IDLE
    assert state.power_off == PowerOff(boot_id="this boot", at="now")
    assert to_resume(state) == (Service.MONITOR_CLEAN,)
    with pytest.raises(RefusedError, match="about to power the instance off"):
        start(state, Phase.REPLICATION, now="now", new_run_id="new")
    row = ServiceState(status=Status.DONE, since="later")
    again = start(state.with_service(Service.MONITOR_CLEAN, row), Phase.REPLICATION, now="now", new_run_id="new")
    assert again.power_off is None


def test_a_forced_clean_may_start_though_nothing_is_ready_or_verified() -> None:
    state = forced(RUN, "run", owners=OURS, now="now")
    assert (state.is_clearing, state.forced_at) == (True, "now")
    begun = start(state, Service.CLEAN, now="now", new_run_id="new")
    assert begun.status(Service.CLEAN) is Status.PENDING
    assert to_resume(begun) == (Service.CLEAN,)
    with pytest.raises(RefusedError, match="never been ready"):
        start(RUN, Service.CLEAN, now="now", new_run_id="new")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (replace(RUN, run_id="another"), "not the id of this run"),
        (PhaseState(run_id="run"), "no run to clean"),
        (with_rows(RUN, {Service.REPLICATION: Status.RUNNING}), "replication is at work"),
        (with_rows(RUN, {Service.RESTORE: Status.WAITING}), "restore is at work"),
    ],
)
def test_a_clean_is_not_forced(state: PhaseState, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as refused:
        forced(state, "run", owners=LogOwners(), now="now")
    assert refused.value.hint


def test_a_forced_clean_that_failed_can_be_forced_again() -> None:
    for status in (Status.FAILED, Status.RUNNING):
        assert forced(with_rows(RUN, {Service.CLEAN: status}), "run", owners=OURS, now="now").is_clearing


@pytest.mark.parametrize("owners", [OURS, LogOwners(), LogOwners(runs=frozenset({"run"}), unreadable=3)])
def test_a_log_of_this_run_or_none_may_be_cleaned_by_force(owners: LogOwners) -> None:
    assert forced(RUN, "run", owners=owners, now="now") == replace(RUN, is_clearing=True, forced_at="now")


@pytest.mark.parametrize("runs", [{"another"}, {"another", "run"}])
def test_force_never_reaches_the_log_of_another_run(runs: set[str]) -> None:
    with pytest.raises(RefusedError, match="the log of another run") as refused:
        forced(RUN, "run", owners=LogOwners(runs=frozenset(runs)), now="now")
    assert refused.value.facts == {"run_id": "run", "found": "another"}
    assert "d5agent start clean --force another" in refused.value.hint


def test_force_never_reaches_a_log_whose_run_nobody_knows() -> None:
    with pytest.raises(RefusedError, match="no commit of the log can be read") as refused:
        forced(RUN, "run", owners=LogOwners(unreadable=2), now="now")
    assert refused.value.facts["commits"] == 2


@pytest.mark.parametrize("state", [RUN, PhaseState(run_id="ended before")])
def test_the_log_of_another_run_is_cleaned_by_its_own_name(state: PhaseState) -> None:
    opened = replace(state, opened_stream=True)
    after = forced(opened, "another", owners=LogOwners(runs=frozenset({"another"})), now="now")
    assert (after.run_id, after.is_clearing, after.forced_at, after.opened_stream) == ("another", True, "now", True)
    assert start(after, Service.CLEAN, now="now", new_run_id="new").status(Service.CLEAN) is Status.PENDING


def test_a_run_that_has_captured_is_not_given_up_for_the_log_of_another() -> None:
    with pytest.raises(RefusedError, match="own run has captured operations") as refused:
        forced(replace(RUN, ready_at="then"), "another", owners=LogOwners(runs=frozenset({"another"})), now="now")
    assert refused.value.facts == {"run_id": "run", "given": "another"}
