"""The comparisons that only the daemon runs: what the log does not touch, and what DMS had not delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.steps.compare.outside import Outside
from d5agent.steps.compare.undelivered import Undelivered

if TYPE_CHECKING:
    from d5agent.runtime.opening import Adapters, TargetAdapters
    from d5agent.settings import Settings


def outside_comparison(adapters: Adapters, target: TargetAdapters, settings: Settings) -> Outside:
    """Return the comparison of what the log does not touch."""
    return Outside(
        source=adapters.source_reader,
        target=target.reader,
        server=target.server,
        changes=target.changes,
        store=adapters.store,
        clock=adapters.clock,
        waiting_bytes=settings.waiting_bytes // 4,
    )


def undelivered_writes(adapters: Adapters, target: TargetAdapters, settings: Settings) -> Undelivered:
    """Return what looks for writes that DMS had not delivered, on documents that the log touches."""
    return Undelivered(
        source=adapters.source_reader,
        target=target.reader,
        store=adapters.store,
        clock=adapters.clock,
        now=adapters.source.now,
        memory_bytes=settings.waiting_bytes // 2,
    )
