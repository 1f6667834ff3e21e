"""`d5agent plan`: it says what restore would do, and writes nothing but its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from d5agent.core.log.naming import reports_folder
from d5agent.core.plan.plan import Plan
from d5agent.core.replay.collation import Collated
from d5agent.core.run.late import notes_of_certified
from d5agent.runtime.opening import open_adapters, stored_phase
from d5agent.steps.log.reader import LogReader, no_log
from d5agent.steps.plan.planner import Planner
from d5agent.steps.plan.report import store_plan
from d5agent.steps.probes import require_place
from d5agent.steps.replay.target_hold import foreseen

if TYPE_CHECKING:
    from d5agent.settings import Settings


async def plan(settings: Settings, *, with_divergence: bool) -> dict[str, Any]:
    """Return what restore would do; the plan is stored among the reports, and nothing else is written.

    OperatorError: there is no log, or a cluster is not the one that the run's certificate names.
    """
    async with open_adapters(settings) as adapters, adapters.open_target() as target:
        await adapters.source.require_set()
        state = await stored_phase(adapters)
        servers = adapters.servers(target, url_of=settings.store.url_of)
        await servers.require_certified(state, again="d5agent plan")
        await require_place(adapters.store, reports_folder(state.run_id), what="the plan")
        at = adapters.clock.now().isoformat(timespec="seconds")
        planner = Planner(
            reader=LogReader(store=adapters.store),
            source=adapters.source_reader,
            target=target.reader,
            clock=adapters.clock,
            now=adapters.source.now,
            memory_bytes=settings.limits.memory_bytes,
            window_bytes=settings.window_bytes,
            waiting_bytes=settings.waiting_bytes,
            max_operations_per_second=settings.restore.max_operations_per_second,
            plan=Plan(
                run_id=state.run_id,
                at=at,
                notes=notes_of_certified(state),
                collated=Collated(await target.server.collations()),
            ),
            keeps_indexes=settings.restore.keep_indexes,
        )
        if await planner.reader.last() is None:
            raise no_log(settings.store.url)
        made = await planner.make(with_divergence=with_divergence)
        made.notes += await foreseen(target.guard)
        values = made.to_json()
        key = await store_plan(adapters.store, values)
        return {**values, "report": key, "report_url": settings.store.url_of(key)}
