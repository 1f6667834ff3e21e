"""Settings to adapters to plugins: the only file that knows both sides."""

from __future__ import annotations

import socket
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from d5agent.adapters.application import CommandApplication
from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.fence import Fence
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.adapters.mongodump import MongoDump
from d5agent.adapters.power import CommandPowerSwitch
from d5agent.adapters.retention import RetentionReader, host_of
from d5agent.adapters.s3 import S3Store, open_s3
from d5agent.adapters.s3_large import S3LargeObjects
from d5agent.adapters.secrets import UriOrigin
from d5agent.adapters.state import MirroredStateStore, read_state_file, write_state_file
from d5agent.core.services import Service
from d5agent.core.timeline import Timeline
from d5agent.errors import CorruptDataError
from d5agent.plugins.backup import Backup
from d5agent.plugins.clean import CLEARING, Clean
from d5agent.plugins.monitor_clean import MonitorClean
from d5agent.plugins.monitor_replication import MonitorReplication
from d5agent.plugins.monitor_restore import MonitorRestore
from d5agent.plugins.replication import Replication
from d5agent.plugins.restore import Restore
from d5agent.plugins.verify import Verify
from d5agent.runtime.phase_file import PHASE
from d5agent.runtime.timeline_watch import TIMELINE
from d5agent.settings import credentials_directory
from d5agent.steps.capture import GAP, TOKEN
from d5agent.steps.certificate import Certifier
from d5agent.steps.generations import COMPARED
from d5agent.steps.replayer import CHECKPOINT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from pathlib import Path

    from d5agent.ports import Clock, LargeObjectStore, ObjectStore
    from d5agent.service import Plugin
    from d5agent.settings import Settings, SourceSettings, TargetSettings

MIRRORED: Final = (PHASE, TOKEN, CHECKPOINT, COMPARED, GAP, TIMELINE, CLEARING)
"""The states that a new host takes from the bucket."""

_IDENTITY = "agent.json"
_READERS = 8  # connections beside the lanes: comparisons, stream, dumps' questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """The outside world, as one agent sees it.

    `fence` stands before all that writes, but for `unfenced`, where the record of who holds the log is kept.
    """

    clock: Clock
    fence: Fence
    unfenced: ObjectStore
    store: ObjectStore
    large: LargeObjectStore
    states: MirroredStateStore
    source: ChangeStreamSource
    source_reader: MongoReader
    target: MongoTarget
    target_reader: MongoReader
    dumps: Mapping[str, MongoDump]
    power: CommandPowerSwitch
    retention: RetentionReader
    timeline: Timeline = field(default_factory=Timeline)


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncGenerator[S3Store]:
    """Open the store alone: what only looks at the log needs no database."""
    store = settings.store
    async with open_s3(
        bucket=store.bucket,
        prefix=store.prefix,
        endpoint_url=store.endpoint_url,
        region=store.region,
        clock=SystemClock(),
    ) as opened:
        yield opened


@asynccontextmanager
async def open_adapters(settings: Settings) -> AsyncGenerator[Adapters]:
    """Open everything; OperatorError when a URI is wrong or a secret cannot be read."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        unfenced, fence = await stack.enter_async_context(open_store(settings)), Fence()
        store = unfenced.behind(fence)
        source_uri, target_uri = await _uri(settings, "source"), await _uri(settings, "target")
        source = await stack.enter_async_context(open_mongo(source_uri, side="source", pool_size=_READERS))
        lanes = settings.restore.lanes
        writer = await stack.enter_async_context(open_mongo(target_uri, side="target", pool_size=lanes))
        reader = await stack.enter_async_context(open_mongo(target_uri, side="target", pool_size=_READERS))
        directory = settings.state.directory

        flavor = settings.source.flavor if settings.backup.check_version else "mongodb"

        def dump(side: str) -> MongoDump:
            return MongoDump(
                source if side == "source" else reader,
                side=side,
                uri=source_uri if side == "source" else target_uri,
                program=settings.backup.mongodump,
                flavor=flavor if side == "source" else "mongodb",
                databases=settings.backup.databases,
                stall_seconds=settings.backup.stall_seconds,
                clock=clock,
            )

        yield Adapters(
            clock=clock,
            fence=fence,
            unfenced=unfenced,
            store=store,
            large=S3LargeObjects(store),
            states=MirroredStateStore(directory, store),
            source=ChangeStreamSource(
                source,
                uri=source_uri,
                flavor=settings.source.flavor,
                clock=clock,
                enables=settings.source.enable_change_streams,
                fence=fence,
            ),
            source_reader=MongoReader(source, side="source", clock=clock),
            target=MongoTarget(writer, clock=clock, fence=fence),
            target_reader=MongoReader(reader, side="target", clock=clock),
            dumps={"target": dump("target"), "source": dump("source")},
            power=CommandPowerSwitch(settings.power.command, timeout_seconds=settings.power.timeout_seconds),
            retention=RetentionReader(
                host=host_of(source_uri),
                is_documentdb=settings.source.flavor == "documentdb",
                configured=settings.source.retention_seconds,
            ),
        )


async def _uri(settings: Settings, side: str) -> str:
    section: SourceSettings | TargetSettings = settings.source if side == "source" else settings.target
    origin = UriOrigin(
        side=side,
        uri=None if section.uri is None else section.uri.get_secret_value(),
        secret_id=section.secret_id,
        credentials=credentials_directory(),
    )
    return await origin.uri_of(endpoint_url=None, region=settings.store.region)


def agent_identity(directory: Path) -> str:
    """Return this agent's own id, made once for a state directory."""
    path = directory / _IDENTITY
    known = read_state_file(path)
    if known is not None:
        if not known.get("agent_id"):
            raise CorruptDataError("a state file is damaged", hint="move it aside: a new one is made", path=path)
        return str(known["agent_id"])
    agent_id = str(uuid.uuid4())
    write_state_file(path, {"version": 1, "agent_id": agent_id})
    return agent_id


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


def verify_plugin(settings: Settings, adapters: Adapters) -> Verify:
    """Return the comparison, for the daemon or for the command line."""
    return Verify(
        source=adapters.source_reader,
        target_reader=adapters.target_reader,
        store=adapters.store,
        states=adapters.states,
        clock=adapters.clock,
        waiting_bytes=settings.waiting_bytes,
    )


def plugins(settings: Settings, adapters: Adapters, agent_id: str) -> dict[Service, Callable[[], Plugin]]:
    """Return every service's factory, written out by hand."""
    at = adapters
    return {
        Service.REPLICATION: lambda: Replication(
            source=at.source,
            store=at.store,
            states=at.states,
            clock=at.clock,
            agent_id=agent_id,
            host=socket.gethostname(),
            max_segment_bytes=settings.capture.max_segment_bytes,
            max_segment_seconds=settings.capture.max_segment_seconds,
            ahead_bytes=settings.ahead_bytes,
            upload_bytes=settings.upload_bytes,
            compresses=settings.capture.compression == "zstd",
        ),
        Service.BACKUP: lambda: Backup(tools=at.dumps, store=at.store, archives=at.large, clock=at.clock),
        Service.MONITOR_REPLICATION: lambda: MonitorReplication(
            source=at.source,
            store=at.store,
            clock=at.clock,
            quiet_seconds=settings.drain.quiet_seconds,
            timeout_seconds=settings.drain.timeout_seconds,
            application=application(settings) if settings.restore.mode == "live" else None,
        ),
        Service.RESTORE: lambda: Restore(
            source=at.source_reader,
            target=at.target,
            target_reader=at.target_reader,
            store=at.store,
            states=at.states,
            clock=at.clock,
            lanes=settings.restore.lanes,
            max_operations_per_second=settings.restore.max_operations_per_second,
            window_bytes=settings.window_bytes,
            waiting_bytes=settings.waiting_bytes,
            is_live=settings.restore.mode == "live",
            certifier=Certifier(store=at.store, timeline=at.timeline, issuer=_issuer(agent_id)),
        ),
        Service.VERIFY: lambda: verify_plugin(settings, at),
        Service.MONITOR_RESTORE: lambda: MonitorRestore(store=at.store),
        Service.CLEAN: lambda: Clean(
            source=at.source,
            store=at.store,
            uploads=at.large,
            states=at.states,
            state_names=(TOKEN, CHECKPOINT, COMPARED, GAP, TIMELINE),
            clock=at.clock,
            timeout_seconds=settings.drain.timeout_seconds,
            keep_log_days=settings.clean.keep_log_days,
        ),
        Service.MONITOR_CLEAN: lambda: MonitorClean(
            power=at.power, store=at.store, clock=at.clock, timeout_seconds=settings.power.timeout_seconds
        ),
    }
