"""Settings to adapters."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import hello, open_mongo, require_set
from d5agent.adapters.mongo_guard import MongoGuard
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.mongo_specifications import MongoSpecifications
from d5agent.adapters.mongo_target import MongoTarget
from d5agent.adapters.mongodump import MongoDump
from d5agent.adapters.power import CommandPowerSwitch
from d5agent.adapters.renewable_client import RenewableClient
from d5agent.adapters.retention import RetentionReader, host_of
from d5agent.adapters.rights import grants_of
from d5agent.adapters.s3_large import S3LargeObjects
from d5agent.adapters.secrets import UriOrigin
from d5agent.adapters.server import MongoServer
from d5agent.adapters.state import MirroredStateStore
from d5agent.adapters.target_changes import MongoTargetChanges
from d5agent.adapters.uri import read_uri
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.run.phase_codec import PHASE, decode_phase
from d5agent.core.run.services import PhaseState
from d5agent.core.run.timeline import Timeline
from d5agent.runtime.bucket import open_store
from d5agent.settings import credentials_directory
from d5agent.steps.replay.target_hold import TargetHold
from d5agent.steps.servers import Servers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from d5agent.adapters.mongo import Client
    from d5agent.core.run.rights import Grant
    from d5agent.ports import Clock, LargeObjectStore, ObjectStore
    from d5agent.settings import Settings, SourceSettings, TargetSettings

_READERS: Final = 8  # connections beside the lanes: comparisons, stream, dumps' questions


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetAdapters:
    """The target, while it is open."""

    writer: MongoTarget
    reader: MongoReader
    changes: MongoTargetChanges
    server: MongoServer
    guard: MongoGuard
    specifications: MongoSpecifications
    dump: MongoDump
    grants: Callable[[], Awaitable[Sequence[Grant]]]
    """What the agent's user may do there."""
    ignored: tuple[str, ...]
    """The options of its URI that the agent ignores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """The outside world, as one agent sees it.

    All writes pass `gate`, but those to `ungated`, where the record of who holds the log is kept.
    `open_target` reads the target's URI each time: capture needs no target, which is down then (ADR 40).
    """

    clock: Clock
    gate: WriteGate
    ungated: ObjectStore
    store: ObjectStore
    large: LargeObjectStore
    states: MirroredStateStore
    source: ChangeStreamSource
    source_reader: MongoReader
    source_dump: Callable[[], MongoDump]
    renew_source: Callable[[], Awaitable[bool]]
    """Reads the source's URI again, and returns whether it has changed: its user or password may have been renewed."""
    open_target: Callable[[], AbstractAsyncContextManager[TargetAdapters]]
    hold: TargetHold
    power: CommandPowerSwitch
    retention: RetentionReader
    ignored: tuple[str, ...]
    """The options of the source's URI that the agent ignores."""
    source_server: MongoServer
    timeline: Timeline = field(default_factory=Timeline)

    def servers(self, target: TargetAdapters, *, url_of: Callable[[str], str] = str) -> Servers:
        """Return both clusters, to tell them apart. `url_of`: where an object is, in an operator's words."""
        return Servers(
            changes=self.source,
            source=self.source_server,
            target=target.server,
            source_reader=self.source_reader,
            target_reader=target.reader,
            store=self.store,
            states=self.states,
            clock=self.clock,
            url_of=url_of,
        )


@asynccontextmanager
async def open_adapters(
    settings: Settings, *, reread: Callable[[], Settings] | None = None
) -> AsyncGenerator[Adapters]:
    """Open everything but the target; OperatorError when the source's URI is wrong or its secret cannot be read.

    `reread` returns the settings as they are when the target is opened, or the source has refused its user; of these
    only [target] and [source] count. Without it, what `settings` say.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        ungated, gate = await stack.enter_async_context(open_store(settings)), WriteGate()
        store = ungated.behind(gate)
        read = reread or (lambda: settings)
        source_uri = await _uri(settings, "source", settings.source)
        open_source = partial(open_mongo, side="source", pool_size=_READERS)
        renewable = RenewableClient(
            await stack.enter_async_context(open_source(source_uri)),
            source_uri,
            side="source",
            read=lambda: _uri(settings, "source", read().source),
            open_client=open_source,
        )
        stack.push_async_callback(renewable.close)
        source = renewable.as_client()
        states = MirroredStateStore(settings.state.directory, store)
        open_target = partial(_open_target, settings, read=lambda: read().target, gate=gate, clock=clock)
        yield Adapters(
            clock=clock,
            gate=gate,
            ungated=ungated,
            store=store,
            large=S3LargeObjects(store),
            states=states,
            source=ChangeStreamSource(
                source,
                uri=source_uri,
                flavor=settings.source.flavor,
                clock=clock,
                enables=settings.source.enable_change_streams,
                gate=gate,
            ),
            source_reader=MongoReader(source, side="source", clock=clock),
            source_dump=lambda: _dump(settings, source, side="source", uri=renewable.uri, clock=clock),
            renew_source=renewable.renew,
            open_target=open_target,
            hold=TargetHold(open_guard=partial(_open_guard, open_target), states=states, clock=clock),
            power=CommandPowerSwitch(settings.power.command, timeout_seconds=settings.power.timeout_seconds),
            retention=RetentionReader(
                host=host_of(source_uri),
                is_documentdb=settings.source.flavor == "documentdb",
                configured=settings.source.retention_seconds,
            ),
            ignored=read_uri(source_uri, "source").ignored,
            source_server=MongoServer(
                source,
                side="source",
                asked=read_uri(source_uri, "source").hosts.split(","),
                has_id=settings.source.flavor == "mongodb",
                clock=clock,
            ),
        )


@asynccontextmanager
async def _open_target(
    settings: Settings, *, read: Callable[[], TargetSettings], gate: WriteGate, clock: Clock
) -> AsyncGenerator[TargetAdapters]:
    """Open the target, and see that it is there. OperatorError: its URI or its secret is missing or wrong."""
    async with AsyncExitStack() as stack:
        uri = await _uri(settings, "target", read())
        asked = read_uri(uri, "target").hosts.split(",")
        lanes = settings.restore.lanes
        writer = await stack.enter_async_context(open_mongo(uri, side="target", pool_size=lanes))
        reader = await stack.enter_async_context(open_mongo(uri, side="target", pool_size=_READERS))
        await require_set(partial(hello, reader, "target"), uri, "target")
        yield TargetAdapters(
            writer=MongoTarget(writer, clock=clock, gate=gate),
            reader=MongoReader(reader, side="target", clock=clock),
            changes=MongoTargetChanges(reader, clock=clock, gate=gate),
            server=MongoServer(reader, side="target", asked=asked, has_id=True, clock=clock),
            guard=MongoGuard(writer, clock=clock, gate=gate, asked=asked),
            specifications=MongoSpecifications(reader, clock=clock, gate=gate),
            dump=_dump(settings, reader, side="target", uri=uri, clock=clock),
            grants=partial(grants_of, reader, "target"),
            ignored=read_uri(uri, "target").ignored,
        )


@asynccontextmanager
async def _open_guard(
    open_target: Callable[[], AbstractAsyncContextManager[TargetAdapters]],
) -> AsyncGenerator[MongoGuard]:
    """Open the target for whoever only closes it to others, or gives it back."""
    async with open_target() as target:
        yield target.guard


def _dump(settings: Settings, client: Client, *, side: str, uri: str, clock: Clock) -> MongoDump:
    is_checked = side == "source" and settings.backup.check_version
    return MongoDump(
        client,
        side=side,
        uri=uri,
        program=settings.backup.mongodump,
        flavor=settings.source.flavor if is_checked else "mongodb",
        databases=settings.backup.databases,
        stall_seconds=settings.backup.stall_seconds,
        clock=clock,
    )


async def stored_phase(adapters: Adapters) -> PhaseState:
    """Return the phase state: this machine's, else its mirror in the bucket."""
    value = await adapters.states.load(PHASE)
    return PhaseState() if value is None else decode_phase(value)


async def _uri(settings: Settings, side: str, section: SourceSettings | TargetSettings) -> str:
    origin = UriOrigin(
        side=side,
        uri=None if section.uri is None else section.uri.get_secret_value(),
        secret_id=section.secret_id,
        credentials=credentials_directory(),
    )
    return await origin.uri_of(endpoint_url=None, region=settings.store.region)
