"""`d5agent verify`: it compares without the daemon, and writes nothing but its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from d5agent.runtime.comparing import verify_plugin
from d5agent.runtime.opening import open_adapters, stored_phase
from d5agent.steps.certificate import certificate_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.core.compare.report import VerifyReport
    from d5agent.settings import Settings


async def verify(
    settings: Settings, *, is_full: bool, on_progress: Callable[[VerifyReport], None] = lambda _: None
) -> dict[str, Any]:
    """Compare, store the report, return it; with what has become of the certificate, if restore has issued one.

    OperatorError: a cluster is not the one that the certificate names.
    """
    async with open_adapters(settings) as adapters, adapters.open_target() as target:
        await adapters.source.require_set()
        state = await stored_phase(adapters)
        certificate = await certificate_state(
            adapters.store, state.verified, state.run_id
        )  # first: it may be unreadable
        servers = adapters.servers(target, url_of=settings.store.url_of)
        await servers.require_certified(state, again="d5agent verify")
        report, key = await verify_plugin(settings, adapters, target).compare(
            state.run_id, is_full=is_full, on_progress=on_progress
        )
    if certificate is not None:
        certificate["url"] = settings.store.url_of(str(certificate["key"]))
    return {**report.to_json(), "report": key, "report_url": settings.store.url_of(key), "certificate": certificate}
