"""The comparisons of both databases, as the daemon and `d5agent verify` run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.plugins.verify import Verify
from d5agent.steps.outside import Outside
from d5agent.steps.undelivered import Undelivered

if TYPE_CHECKING:
    from d5agent.runtime.opening import Adapters, TargetAdapters
    from d5agent.settings import Settings


def verify_plugin(settings: Settings, adapters: Adapters, target: TargetAdapters) -> Verify:
    """Return the comparison, as these settings want it."""
    return Verify(
        source=adapters.source_reader,
        target_reader=target.reader,
        store=adapters.store,
        states=adapters.states,
        clock=adapters.clock,
        waiting_bytes=settings.waiting_bytes,
        url_of=settings.store.url_of,
    )


def outside_comparison(adapters: Adapters, target: TargetAdapters, settings: Settings) -> Outside:
    """Return the comparison of what the log does not touch."""
    return Outside(
        source=adapters.source_reader,
        target=target.reader,
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
