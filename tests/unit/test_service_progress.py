"""What services have reported: each start of a service forgets its own, and nobody else's."""

from __future__ import annotations

import pytest

from d5agent.core.run.progress import (
    AgentProgress,
    BackupProgress,
    CleanProgress,
    ComparisonProgress,
    RestoreProgress,
    SideProgress,
)
from d5agent.core.run.services import Service
from tests.fakes.progress import a_capture, a_horizon, a_replay


def reported() -> AgentProgress:
    side = SideProgress(databases=1, databases_stored=1, documents=1, bytes=1)
    return AgentProgress(
        capture=a_capture(),
        horizon=a_horizon(),
        backup=BackupProgress(target=side),
        restore=RestoreProgress(can_cutover=True),
        verify=ComparisonProgress(compared=1, compared_total=1, different=0),
        clean=CleanProgress(deleted=1),
        steps=dict.fromkeys(Service, "a step"),
    )


@pytest.mark.parametrize("service", Service)
def test_a_service_that_starts_forgets_its_own_and_nobody_elses(service: Service) -> None:
    progress, expected = reported(), reported()
    own: dict[Service, dict[str, object]] = {
        Service.REPLICATION: {"capture": None},
        Service.BACKUP: {"backup": BackupProgress()},
        Service.RESTORE: {"restore": RestoreProgress()},
        Service.VERIFY: {"verify": None},
        Service.CLEAN: {"clean": CleanProgress()},
    }
    for name, value in own.get(service, {}).items():
        setattr(expected, name, value)
    del expected.steps[service]
    progress.begin(service)
    assert progress == expected


@pytest.mark.parametrize(("is_drained", "has_left"), [(None, False), (True, False), (False, True)])
def test_only_what_replication_did_not_read_is_left(*, is_drained: bool | None, has_left: bool) -> None:
    progress = AgentProgress(capture=a_capture(is_drained=is_drained))
    assert progress.has_left_unread(Service.REPLICATION) is has_left
    assert not progress.has_left_unread(Service.BACKUP)
    assert not AgentProgress().has_left_unread(Service.REPLICATION)


def test_the_whole_is_that_of_the_log_until_the_replay_knows_more() -> None:
    assert (RestoreProgress().operations_total, RestoreProgress().bytes_total) == (None, None)
    checked = RestoreProgress(log_operations=4, log_bytes=40)
    assert (checked.operations_total, checked.bytes_total) == (4, 40)
    grown = RestoreProgress(log_operations=4, log_bytes=40, replay=a_replay(operations_total=5, bytes_total=50))
    assert (grown.operations_total, grown.bytes_total) == (5, 50)
