"""Settings to adapters."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.fence import Fence
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.adapters.mongodump import MongoDump
from d5agent.adapters.power import CommandPowerSwitch
from d5agent.adapters.retention import RetentionReader, host_of
from d5agent.adapters.s3_large import S3LargeObjects
from d5agent.adapters.secrets import UriOrigin
from d5agent.adapters.state import MirroredStateStore
from d5agent.core.phase_codec import PHASE, decode_phase
from d5agent.core.services import PhaseState
from d5agent.core.timeline import Timeline
from d5agent.runtime.bucket import open_store
from d5agent.settings import credentials_directory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from d5agent.ports import Clock, LargeObjectStore, ObjectStore
    from d5agent.settings import Settings, SourceSettings, TargetSettings

_READERS: Final = 8  # connections beside the lanes: comparisons, stream, dumps' questions


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


async def stored_phase(adapters: Adapters) -> PhaseState:
    """Return the phase state: this machine's, else its mirror in the bucket."""
    value = await adapters.states.load(PHASE)
    return PhaseState() if value is None else decode_phase(value)


async def _uri(settings: Settings, side: str) -> str:
    section: SourceSettings | TargetSettings = settings.source if side == "source" else settings.target
    origin = UriOrigin(
        side=side,
        uri=None if section.uri is None else section.uri.get_secret_value(),
        secret_id=section.secret_id,
        credentials=credentials_directory(),
    )
    return await origin.uri_of(endpoint_url=None, region=settings.store.region)
