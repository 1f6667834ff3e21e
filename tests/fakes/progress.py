"""What services might have reported, for those who read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from d5agent.core.operation import ClusterTime
from d5agent.core.service_progress import AgentProgress, CaptureProgress, HorizonProgress


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
