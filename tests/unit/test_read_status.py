"""A status document is read back, also one of an older daemon, or of a run whose services have no rows yet."""

from __future__ import annotations

from typing import Any

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.horizon import Basis
from d5agent.core.run.progress import (
    AgentProgress,
    ComparisonProgress,
    OutsideProgress,
    RestoreProgress,
)
from d5agent.core.run.read_status import read_status
from d5agent.core.run.services import PhaseState, Service, ServiceState, Status
from d5agent.core.run.status import status_of
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import a_capture, a_horizon, a_replay

OUTSIDE = OutsideProgress(
    is_complete=True,
    collections=1,
    collections_compared=1,
    compared=2,
    missing=0,
    different=0,
    extra=0,
    unchecked=0,
)


def test_rows_and_parts_are_read_back() -> None:
    row = ServiceState(status=Status.WAITING, since=SINCE, reason="r", error="e", hint="h")
    state = PhaseState(run_id="run", ready_at=SINCE).with_service(Service.VERIFY, row)
    progress = AgentProgress(
        capture=a_capture(operations=3, last_cluster_time=ClusterTime(7, 8)),
        horizon=a_horizon(lag_seconds=1.5, retention_basis=Basis.DEFAULT),
        restore=RestoreProgress(replay=a_replay(operations_total=9), lag_seconds=2.5, outside=OUTSIDE),
        verify=ComparisonProgress(compared=1, compared_total=None, different=1),
    )
    status = read_status(status_of(state, progress, is_up=True))
    assert (status.daemon, status.phase, status.run_id, status.ready_at) == ("up", "idle", "run", SINCE)
    assert status.rows == {"verify": row}
    assert (status.comparison, status.outside) == (progress.verify, OUTSIDE)
    # Of services without a row, the parts that all services share say how far they were.
    assert (status.progress.capture, status.progress.horizon) == (progress.capture, progress.horizon)
    assert status.progress.restore == RestoreProgress(
        log_operations=9, log_bytes=0, replay=a_replay(operations_total=9), lag_seconds=2.5
    )
    assert status.progress.verify == progress.verify


def test_what_an_older_daemon_does_not_report_is_zero_or_none() -> None:
    row = ServiceState(status=Status.RUNNING, since=SINCE)
    state = PhaseState().with_service(Service.REPLICATION, row).with_service(Service.RESTORE, row)
    progress = AgentProgress(
        capture=a_capture(operations=3, queue_bytes=5, operations_after_fence=6, is_caught_up=True),
        restore=RestoreProgress(replay=a_replay(operations_total=9, lanes=2.0, lanes_allowed=4)),
    )
    document: dict[str, Any] = status_of(state, progress, is_up=True)
    for part in (document["capture"], document["services"]["replication"]):
        for name in ("queue_bytes", "operations_after_fence", "is_caught_up"):
            part.pop(name, None)
    for part in (document["restore"], document["services"]["restore"]):
        for name in ("lanes", "lanes_allowed", "documents_written", "bytes_total", "bytes_applied"):
            part.pop(name)
    del document["outside"]
    status = read_status(document)
    assert status.progress.capture == a_capture(operations=3)
    assert status.progress.restore.replay == a_replay(operations_total=9, lanes_allowed=0)
    assert status.outside is None
