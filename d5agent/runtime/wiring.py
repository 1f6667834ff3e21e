"""Adapters to plugins: the only file that knows both sides."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from d5agent.adapters.application import CommandApplication
from d5agent.core.run.hold import HOLD
from d5agent.core.run.phase_codec import PHASE
from d5agent.core.run.services import Service
from d5agent.core.run.timeline import TIMELINE
from d5agent.plugins.backup import Backup
from d5agent.plugins.clean import CLEARING, Clean, ComparedClusters
from d5agent.plugins.monitor_clean import MonitorClean
from d5agent.plugins.monitor_replication import MonitorReplication
from d5agent.plugins.monitor_restore import MonitorRestore
from d5agent.plugins.replication import Replication
from d5agent.plugins.restore import Restore
from d5agent.runtime.comparing import verify_plugin
from d5agent.runtime.comparing_outside import outside_comparison, undelivered_writes
from d5agent.runtime.with_target import WithTarget
from d5agent.steps.capture.capture import TOKEN
from d5agent.steps.capture.kept_changes import GAP, KEPT, KeptChanges
from d5agent.steps.certificate import Certifier
from d5agent.steps.compare.generations import COMPARED
from d5agent.steps.late.report import LateReporter
from d5agent.steps.late.restore import LATE
from d5agent.steps.replay.checkpoint import CHECKPOINT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from d5agent.runtime.disk import Disk
    from d5agent.runtime.opening import Adapters, TargetAdapters
    from d5agent.service import Plugin
    from d5agent.settings import Settings
    from d5agent.steps.servers import Servers

MIRRORED: Final = (PHASE, TOKEN, CHECKPOINT, COMPARED, LATE, KEPT, GAP, TIMELINE, CLEARING, HOLD)
"""The states that a new host takes from the bucket."""


def application(settings: Settings) -> CommandApplication:
    """Return what makes the application read-only, and lets it write again."""
    return CommandApplication(
        command=settings.cutover.command,
        call_off_command=settings.cutover.call_off_command,
        stall_seconds=settings.drain.timeout_seconds,
    )


def _issuer(agent_id: str) -> dict[str, str]:
    """Return who issues certificates here."""
    return {"agent_id": agent_id, "host": socket.gethostname(), "version": version("d5agent")}


def plugins(
    settings: Settings, adapters: Adapters, disk: Disk, is_live: Callable[[], bool]
) -> dict[Service, Callable[[], Plugin]]:
    """Return every service's factory, written out by hand. `is_live`: the mode of the restore that is under way.

    `disk` says who the agent is, once the log is taken.
    """
    at, compares_outside = adapters, settings.verify.outside == "full"
    kept = KeptChanges(source=at.source, states=at.states, store=at.store, clock=at.clock)

    def servers(target: TargetAdapters) -> Servers:
        return at.servers(target, url_of=settings.store.url_of)

    @asynccontextmanager
    async def open_clusters() -> AsyncGenerator[ComparedClusters]:
        async with at.open_target() as target:
            outside = outside_comparison(at, target, settings) if compares_outside else None
            yield ComparedClusters(servers=servers(target), outside=outside)

    def restore(target: TargetAdapters) -> Plugin:
        return Restore(
            source=at.source_reader,
            target=target.writer,
            target_reader=target.reader,
            specifications=target.specifications,
            keeps_indexes=settings.restore.keep_indexes,
            target_changes=target.changes,
            servers=servers(target),
            store=at.store,
            states=at.states,
            clock=at.clock,
            lanes=settings.restore.lanes,
            max_operations_per_second=settings.restore.max_operations_per_second,
            url_of=settings.store.url_of,
            window_bytes=settings.window_bytes,
            waiting_bytes=settings.waiting_bytes,
            is_live=is_live(),
            certifier=Certifier(store=at.store, kept=kept, timeline=at.timeline, issuer=_issuer(disk.agent_id)),
            hold=at.hold,
            guard=target.guard,
            outside=outside_comparison(at, target, settings) if compares_outside else None,
        )

    def monitor_restore(target: TargetAdapters) -> Plugin:
        return MonitorRestore(
            late=LateReporter(
                store=at.store,
                source=at.source_reader,
                target=target.reader,
                servers=servers(target),
                clock=at.clock,
                waiting_bytes=settings.waiting_bytes,
            )
        )

    def backup(target: TargetAdapters) -> Plugin:
        tools = {"target": target.dump, "source": at.source_dump()}
        return Backup(
            tools=tools,
            store=at.store,
            archives=at.large,
            clock=at.clock,
            undelivered=undelivered_writes(at, target, settings),
            target_changes=target.changes,
            target_server=target.server,
        )

    return {
        Service.REPLICATION: lambda: Replication(
            source=at.source,
            store=at.store,
            states=at.states,
            kept=kept,
            clock=at.clock,
            agent_id=disk.agent_id,
            host=socket.gethostname(),
            max_segment_bytes=settings.capture.max_segment_bytes,
            max_segment_seconds=settings.capture.max_segment_seconds,
            own_segments=settings.capture.own_segments,
            ahead_bytes=settings.ahead_bytes,
            upload_bytes=settings.upload_bytes,
            compresses=settings.capture.compression == "zstd",
            url_of=settings.store.url_of,
        ),
        Service.BACKUP: lambda: WithTarget(open_target=at.open_target, make=backup),
        Service.MONITOR_REPLICATION: lambda: MonitorReplication(
            source=at.source,
            store=at.store,
            kept=kept,
            clock=at.clock,
            quiet_seconds=settings.drain.quiet_seconds,
            timeout_seconds=settings.drain.timeout_seconds,
            application=application(settings) if is_live() else None,
        ),
        Service.RESTORE: lambda: WithTarget(open_target=at.open_target, make=restore),
        Service.VERIFY: lambda: WithTarget(
            open_target=at.open_target, make=lambda target: verify_plugin(settings, at, target)
        ),
        Service.MONITOR_RESTORE: lambda: WithTarget(open_target=at.open_target, make=monitor_restore),
        Service.CLEAN: lambda: Clean(
            source=at.source,
            store=at.store,
            uploads=at.large,
            states=at.states,
            kept=kept,
            state_names=(TOKEN, CHECKPOINT, COMPARED, LATE, KEPT, GAP, TIMELINE),
            clock=at.clock,
            timeout_seconds=settings.drain.timeout_seconds,
            hold=at.hold,
            keep_log_days=settings.clean.keep_log_days,
            url_of=settings.store.url_of,
            open_clusters=open_clusters,
        ),
        Service.MONITOR_CLEAN: lambda: MonitorClean(
            power=at.power,
            store=at.store,
            clock=at.clock,
            timeout_seconds=settings.power.timeout_seconds,
            url_of=settings.store.url_of,
        ),
    }
