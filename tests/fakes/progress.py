"""What services might have reported, for those who read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.progress import AgentProgress, CaptureProgress, HorizonProgress, ReplayProgress


def a_capture(**changed: Any) -> CaptureProgress:  # noqa: ANN401 -- its fields
    """Return what replication reports at its beginning."""
    beginning = CaptureProgress(
        operations=0,
        bytes=0,
        segments=0,
        last_cluster_time=ClusterTime(1, 1),
        is_caught_up=False,
        operations_after_fence=0,
        queue_bytes=0,
        seen_at=0.0,
    )
    return replace(beginning, **changed)


def a_horizon(**changed: Any) -> HorizonProgress:  # noqa: ANN401 -- its fields
    """Return a horizon of which only the lag is known."""
    unknown = HorizonProgress(
        lag_seconds=0.0,
        safe_seconds=None,
        retention_seconds=None,
        retention_basis=None,
        catch_up_rate=None,
        caught_up_in_seconds=None,
    )
    return replace(unknown, **changed)


def captured(progress: AgentProgress) -> CaptureProgress:
    """Return what replication has reported."""
    assert progress.capture is not None
    return progress.capture


def a_replay(**changed: Any) -> ReplayProgress:  # noqa: ANN401 -- its fields
    """Return what restore reports when its replay begins."""
    beginning = ReplayProgress(
        operations_total=0,
        operations_applied=0,
        documents_written=0,
        bytes_total=0,
        bytes_applied=0,
        operations_per_second=None,
        eta_seconds=None,
        lanes=None,
        lanes_allowed=1,
    )
    return replace(beginning, **changed)


def replayed(progress: AgentProgress) -> ReplayProgress:
    """Return how far restore has reported its replay to be."""
    assert progress.restore.replay is not None
    return progress.restore.replay


def forget_readiness(progress: AgentProgress) -> None:
    """Forget whether a cutover can begin, until restore reports it again."""
    progress.restore = replace(progress.restore, can_cutover=None)
