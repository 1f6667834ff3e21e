"""The comparison of what the log touches, as the daemon and `d5agent verify` run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.plugins.verify import Verify

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
        servers=adapters.servers(target, url_of=settings.store.url_of),
        clock=adapters.clock,
        waiting_bytes=settings.waiting_bytes,
        url_of=settings.store.url_of,
    )
