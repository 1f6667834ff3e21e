"""Services over fakes, one at a time: cluster, log, target, and one coordinator for all of them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.compare.comparison import Comparison, Part
from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.operation import OWN_DATABASE, Namespace
from d5agent.core.reports.certificate import Evidence
from d5agent.core.run.services import Fence, Phase, PhaseState, Service, Status, Verified
from d5agent.core.run.timeline import Timeline
from d5agent.plugins.backup import Backup
from d5agent.plugins.clean import ComparedClusters
from d5agent.plugins.monitor_replication import MonitorReplication
from d5agent.plugins.replication import Replication
from d5agent.plugins.restore import Restore
from d5agent.plugins.verify import Verify
from d5agent.steps.capture.expiries import Expiries
from d5agent.steps.capture.kept_changes import KeptChanges
from d5agent.steps.certificate import Certifier
from d5agent.steps.compare.outside import Outside
from d5agent.steps.compare.undelivered import Undelivered
from d5agent.steps.late.report import LateReporter
from d5agent.steps.log.reader import LogReader
from d5agent.steps.replay.target_hold import TargetHold
from d5agent.steps.servers import MARKS, Servers
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import FakeCluster, Op, token_of
from tests.fakes.coordinator import SINCE, FakeCoordinator
from tests.fakes.documents import FakeDatabase, raw_document, raw_id
from tests.fakes.guard import FakeGuard
from tests.fakes.machine import FakeApplication
from tests.fakes.servers import FakeServer, source_server, target_server
from tests.fakes.source import FakeChangeSource
from tests.fakes.store import FakeObjectStore, FakeStateStore
from tests.fakes.target import FakeReader, FakeTarget, FakeTargetChanges

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from d5agent.core.log.chain import Commit
    from d5agent.core.log.operation import Operation
    from d5agent.core.log.raw import DocumentId
    from d5agent.service import Plugin
    from tests.fakes.machine import FakeDumpTool

ORDERS: Final = Namespace("shop", "orders")
_PATIENCE: Final = 5_000


async def until(clock: FakeClock, condition: Callable[[], object]) -> None:
    """Wait, in virtual time, until something is so."""
    for _ in range(_PATIENCE):
        if condition():
            return
        await clock.sleep(0.1)
    raise AssertionError("it did not come true")


@dataclass(slots=True, kw_only=True)
class Stage:
    """One world and its services. The state is that of a run whose replication is at work."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: FakeObjectStore = field(default_factory=lambda: FakeObjectStore(page_size=3))
    states: FakeStateStore = field(default_factory=FakeStateStore)
    database: FakeDatabase = field(default_factory=FakeDatabase)
    target: FakeTarget = field(default_factory=FakeTarget)
    timeline: Timeline = field(default_factory=Timeline)
    source_server: FakeServer = field(default_factory=source_server)
    target_server: FakeServer = field(default_factory=target_server)
    changes: FakeTargetChanges = field(init=False)
    cluster: FakeCluster = field(init=False)
    source: FakeChangeSource = field(init=False)
    guard: FakeGuard = field(init=False)
    coordinator: FakeCoordinator = field(init=False)

    def __post_init__(self) -> None:
        self.cluster = FakeCluster(clock=self.clock, database=self.database)
        self.changes = FakeTargetChanges(self.target)
        self.source = FakeChangeSource(cluster=self.cluster, clock=self.clock)
        self.guard = FakeGuard(target=self.target, changes=self.changes, server=self.target_server)
        self.coordinator = self.new_coordinator()

    def new_coordinator(self) -> FakeCoordinator:
        """Return the surroundings of another agent of the same run."""
        state = PhaseState(phase=Phase.REPLICATION, run_id="run", since=SINCE)
        coordinator = FakeCoordinator(clock=self.clock, state=state)
        coordinator.set_status(Service.REPLICATION, Status.RUNNING)
        return coordinator

    def replication(self, **changed: Any) -> Replication:  # noqa: ANN401 -- fields of the service
        """Return the service."""
        service = Replication(
            source=self.source,
            store=self.store,
            states=self.states,
            kept=self.kept(changed.get("source", self.source)),
            clock=self.clock,
            agent_id="agent",
            host="host",
            max_segment_bytes=10_000,
            max_segment_seconds=1,
            own_segments=32,
            ahead_bytes=1_000,
            upload_bytes=1_000,
        )
        return replace(service, **changed)

    def restore(self, **changed: Any) -> Restore:  # noqa: ANN401 -- fields of the service
        """Return the service."""
        self.changes.target = self.target
        service = Restore(
            source=FakeReader(self.cluster),
            target=self.target,
            target_reader=self.target,
            target_changes=self.changes,
            servers=self.servers(),
            specifications=self.target,
            store=self.store,
            states=self.states,
            clock=self.clock,
            lanes=2,
            window_bytes=10_000,
            waiting_bytes=10_000,
            certifier=self.certifier(),
            hold=self.hold(),
            guard=self.guard,
            outside=self.outside(),
        )
        return replace(service, **changed)

    def reporter(self) -> LateReporter:
        """Return what reports late operations."""
        return LateReporter(
            store=self.store,
            source=FakeReader(self.cluster),
            target=self.target,
            servers=self.servers(),
            clock=self.clock,
            waiting_bytes=10_000,
        )

    def clusters(self, outside: Outside | None = None) -> AbstractAsyncContextManager[ComparedClusters]:
        """Return both clusters, as clean opens them."""
        return nullcontext(ComparedClusters(servers=self.servers(), outside=outside))

    def servers(self) -> Servers:
        """Return both servers, to be told apart."""
        return Servers(
            changes=self.source,
            source=self.source_server,
            target=self.target_server,
            source_reader=FakeReader(self.cluster),
            target_reader=self.target,
            store=self.store,
            states=self.states,
            clock=self.clock,
        )

    def outside(self, **changed: Any) -> Outside:  # noqa: ANN401 -- its fields
        """Return the comparison of what the log does not touch."""
        self.changes.target = self.target
        comparison = Outside(
            source=FakeReader(self.cluster),
            target=self.target,
            server=self.target_server,
            changes=self.changes,
            store=self.store,
            clock=self.clock,
            waiting_bytes=10_000,
        )
        return replace(comparison, **changed)

    def backup(self, target: FakeDumpTool, source: FakeDumpTool) -> Backup:
        """Return the service."""
        self.changes.target = self.target
        tools = {"target": target, "source": source}
        return Backup(
            tools=tools,
            store=self.store,
            archives=self.store,
            clock=self.clock,
            undelivered=Undelivered(
                source=FakeReader(self.cluster),
                target=self.target,
                store=self.store,
                clock=self.clock,
                now=self.source.now,
                memory_bytes=2_000,
            ),
            target_changes=self.changes,
            target_server=self.target_server,
        )

    def verify(self) -> Verify:
        """Return the service."""
        return Verify(
            source=FakeReader(self.cluster),
            target_reader=self.target,
            store=self.store,
            states=self.states,
            servers=self.servers(),
            clock=self.clock,
            waiting_bytes=10_000,
        )

    def cutover(self, application: FakeApplication | None = None) -> MonitorReplication:
        """Return the monitor of a live restore's cutover."""
        return MonitorReplication(
            source=self.source,
            store=self.store,
            kept=self.kept(),
            clock=self.clock,
            quiet_seconds=0,
            timeout_seconds=60,
            application=application or FakeApplication(),
        )

    def hold(self) -> TargetHold:
        """Return what closes the target to others, as another daemon would make it."""
        return TargetHold(open_guard=self.guard.opened, states=self.states, clock=self.clock)

    def kept(self, source: FakeChangeSource | None = None) -> KeptChanges:
        """Return who looks for gaps in the stream."""
        return KeptChanges(source=source or self.source, states=self.states, store=self.store, clock=self.clock)

    def expiries(self) -> Expiries:
        """Return what tells expiries from deletes of applications."""
        return Expiries(source=FakeReader(self.cluster), open_target=lambda: nullcontext(self.target), store=self.store)

    def certifier(self) -> Certifier:
        """Return who issues certificates."""
        return Certifier(
            store=self.store, kept=self.kept(), timeline=self.timeline, issuer={"host": "host", "version": "0"}
        )

    @asynccontextmanager
    async def running(self, plugin: Plugin) -> AsyncGenerator[asyncio.Task[None]]:
        """Run a service beside the block, and stop it, drained, at the block's end."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(plugin.run(self.coordinator))
            yield task
            self.coordinator.stopping.set()
        self.coordinator.stopping.clear()

    async def capture(self, *ops: Op) -> None:
        """Start replication, let operations happen once it is ready, and stop when the log holds all that happened."""
        async with self.running(self.replication()):
            await until(self.clock, lambda: self.coordinator.state.ready_at)
            for op in ops:
                self.cluster.apply(op)
            await self.wait_until_captured()

    async def wait_until_captured(self) -> None:
        """Wait until the log holds all that happened."""
        for _ in range(_PATIENCE):
            if sorted(await self.stored()) == sorted(self.happened()):  # collections have no order among each other
                return
            await self.clock.sleep(0.1)
        raise AssertionError("not all was captured")

    def happened(self) -> list[bytes]:
        """Return the tokens of the applications' events."""
        touched = enumerate(self.cluster.touched())
        return [token_of(number) for number, namespace in touched if namespace.database != OWN_DATABASE]

    async def stored(self) -> list[bytes]:
        """Return the tokens of the applications' operations in the log, which is checked."""
        return [operation.token for operation in await self.operations()]

    async def operations(self) -> list[Operation]:
        """Return the applications' operations in the log."""
        reader = LogReader(store=self.store)
        return [o async for _, o in reader.operations_of(reader.links()) if o is not None and not o.is_ours]

    async def commits(self) -> list[Commit]:
        """Return the log's commits."""
        return [link.commit async for link in LogReader(store=self.store).links()]

    async def draw_fence(self) -> None:
        """Let the state say that the stream was drained, up to the log's end."""
        last = (await self.commits())[-1]
        marker = "fence-of-the-stage"
        self.cluster.database.put(MARKS, raw_id(marker), raw_document({"_id": marker}))
        fence = Fence(sequence=last.sequence, cluster_time=last.position.cluster_time, at=SINCE, marker=marker)
        self.coordinator.state = replace(self.coordinator.state, fence=fence, ready_at=SINCE, phase=Phase.RESTORE)

    async def prove(self) -> None:
        """Let the state say that restore has verified the log, up to its end, with its certificate in the store."""
        if self.coordinator.state.fence is None:
            await self.draw_fence()
        last = (await self.commits())[-1]
        proof = Verified(sequence=last.sequence, operations=last.total.operations, compared=1, at=SINCE)
        report = VerifyReport(scope="touched", run_id="run", sequence=last.sequence, compared=1)
        proof = await self.certifier().certify(self.coordinator.state, proof, report, await self.evidence())
        self.coordinator.state = replace(self.coordinator.state, verified=proof, ready_at=SINCE, phase=Phase.RESTORE)
        self.coordinator.set_status(Service.RESTORE, Status.DONE)

    def forget_proof(self) -> None:
        """Let it be as if restore had not got to its proof."""
        self.coordinator.state = replace(self.coordinator.state, verified=None)
        for form in ("json", "html"):
            self.store.objects.pop(f"reports/run/certificate.{form}", None)

    async def evidence(self) -> Evidence:
        """Return what a certificate rests on."""
        part = Part(first=0, last=0, documents=1, began_at=SINCE, ended_at=SINCE)
        return Evidence(
            source=self.source_server.told,
            target=self.target_server.told,
            first=await anext(LogReader(store=self.store).links()),
            comparison=Comparison(parts=[part]),
        )

    def foreign_contents(self) -> dict[Namespace, dict[DocumentId, bytes]]:
        """Return what the applications have in the source."""
        return {n: d for n, d in self.cluster.database.contents().items() if n.database != "d5agent"}
