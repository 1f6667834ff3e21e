"""A world around an agent that may die: cluster, target, store, disk, and an operator who never gives up."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from d5agent.core.log.naming import LOG, SEGMENTS
from d5agent.core.log.operation import OWN_DATABASE, Namespace
from d5agent.core.run.services import Phase, Service, Status
from d5agent.core.run.timeline import Timeline
from d5agent.plugins.backup import Backup
from d5agent.plugins.clean import Clean, ComparedClusters
from d5agent.plugins.monitor_clean import MonitorClean
from d5agent.plugins.monitor_replication import MonitorReplication
from d5agent.plugins.monitor_restore import MonitorRestore
from d5agent.plugins.replication import Replication
from d5agent.plugins.restore import Restore
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.hold_watch import HoldWatch
from d5agent.steps.capture.capture import TOKEN
from d5agent.steps.capture.kept_changes import GAP, KEPT, KeptChanges
from d5agent.steps.certificate import Certifier
from d5agent.steps.compare.generations import COMPARED
from d5agent.steps.compare.outside import Outside
from d5agent.steps.compare.undelivered import Undelivered
from d5agent.steps.late.report import LateReporter
from d5agent.steps.late.restore import LATE
from d5agent.steps.log.owners import owners_of_log
from d5agent.steps.log.reader import LogReader
from d5agent.steps.parallel import leaf_of
from d5agent.steps.replay.checkpoint import CHECKPOINT
from d5agent.steps.replay.target_hold import TargetHold
from d5agent.steps.servers import Servers
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import FakeCluster, Op, delete, drop, drop_database, insert, rename, replace, update
from tests.fakes.documents import FakeDatabase
from tests.fakes.guard import FakeGuard, opened
from tests.fakes.indexes import sparse
from tests.fakes.machine import FakeApplication, FakeDumpTool, FakeJournal, FakePowerSwitch
from tests.fakes.mortal import DiedError, Life, mortal
from tests.fakes.servers import source_server, target_server
from tests.fakes.source import FakeChangeSource
from tests.fakes.store import FakeObjectStore, FakeStateStore
from tests.fakes.target import FakeReader, FakeTarget, FakeTargetChanges

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.core.log.chain import Link
    from d5agent.core.log.raw import DocumentId

ORDERS: Final = Namespace("shop", "orders")
ACCOUNTS: Final = Namespace("shop", "accounts")
OLD: Final = Namespace("shop", "old")
SCRATCH: Final = Namespace("scratch", "one")
UNIQUE: Final = {ACCOUNTS: sparse("email")}
BEFORE: Final = (
    (insert(ACCOUNTS, {"_id": 1, "email": "a"}),),
    (insert(ACCOUNTS, {"_id": 2, "email": "b"}),),
    (insert(ORDERS, {"_id": 1, "n": 0}),),
    (insert(OLD, {"_id": 9, "n": 9}),),
)
# Each entry is one cluster time: several operations in it are a transaction.
HISTORY: Final[tuple[tuple[Op, ...], ...]] = (
    (insert(ORDERS, {"_id": 2, "n": 0}),),
    (
        update(ORDERS, {"_id": 1, "n": 1}),
        update(ORDERS, {"_id": 1, "n": 2}),
        update(ORDERS, {"_id": 1, "n": 3}),
    ),
    (update(ORDERS, {"_id": 2, "n": 1}),),
    (delete(ORDERS, 2),),  # the look-up of the update before finds nothing
    (
        update(ACCOUNTS, {"_id": 1, "email": None}),
        update(ACCOUNTS, {"_id": 2, "email": "a"}),
        update(ACCOUNTS, {"_id": 1, "email": "b"}),
    ),
    (insert(SCRATCH, {"_id": 1}),),
    (insert(ORDERS, {"_id": 2, "again": True}),),
    (replace(ORDERS, {"_id": 2, "n": 5}),),
    (update(OLD, {"_id": 9, "n": 10}),),
    (rename(OLD, Namespace("shop", "new")),),  # the look-up of the update before finds nothing
    (insert(OLD, {"_id": 9, "other": True}),),
    (rename(OLD, Namespace("shop", "orders archive")),),
    (insert(OLD, {"_id": 1, "third": True}),),
    (rename(Namespace("shop", "orders archive"), OLD),),  # onto what is there
    (drop_database("scratch"),),
    (delete(ACCOUNTS, 1),),
    (insert(ACCOUNTS, {"_id": 3, "email": "b"}),),
    (drop(Namespace("shop", "new")),),
    (insert(Namespace("shop", "new"), {"_id": 9, "reborn": True}),),
)
Act = Callable[["World", Daemon], Awaitable[bool]]
_PATIENCE: Final = 4000  # looks of the operator; virtual time, so this is seconds of the real one at most


def _copied() -> FakeDatabase:
    clock = FakeClock()
    cluster = FakeCluster(clock=clock, database=FakeDatabase(unique=dict(UNIQUE)))
    for ops in BEFORE:
        cluster.apply(*ops)
    return cluster.database


class GuardedStore(FakeObjectStore):
    """Nothing of the log may be deleted before the target is what the source is."""

    def __init__(self) -> None:
        super().__init__(page_size=7)
        self.may_delete: Callable[[], bool] = lambda: False

    @override
    async def delete(self, keys: Sequence[str]) -> None:
        if any(key.startswith(SEGMENTS) and key in self.objects for key in keys):
            assert self.may_delete(), "operations were deleted before they were restored"
        await super().delete(keys)


@dataclass(slots=True, kw_only=True)
class World:
    """What outlives the agent's process. `script`: what operator and applications do, one act after the other.

    `obstacle`: why the agent may not put the target into write-block mode.
    """

    is_live: bool = False
    clock: FakeClock = field(default_factory=FakeClock)
    store: GuardedStore = field(default_factory=GuardedStore)
    states: FakeStateStore = field(default_factory=FakeStateStore)
    power: FakePowerSwitch = field(default_factory=FakePowerSwitch)
    target: FakeTarget = field(default_factory=lambda: FakeTarget(_copied()))
    keep_log_days: int | None = None
    obstacle: str = ""
    history: tuple[tuple[Op, ...], ...] = HISTORY
    dumps: FakeDumpTool = field(default_factory=lambda: FakeDumpTool(archives={"shop": [b"archive"]}))
    cluster: FakeCluster = field(init=False)
    source: FakeChangeSource = field(init=False)
    application: FakeApplication = field(init=False)
    hold: TargetHold = field(init=False)
    done_of_history: int = 0
    may_clean: Callable[[World], bool] = field(
        default=lambda world: world.target.database.contents() == world.contents()
    )
    """Whether the target holds all that it is to hold before the log may go."""
    _act: int = 0
    _counted: int = 0
    _counted_at: tuple[int, str] = (0, "")

    def __post_init__(self) -> None:
        self.cluster = FakeCluster(clock=self.clock, database=_copied())
        self.source = FakeChangeSource(
            cluster=self.cluster, clock=self.clock, batch_sizes=(3, 1, 5), is_enabled=False, enables=True
        )
        self.application = FakeApplication()
        self._connect()

    def _connect(self) -> None:
        """Let what stands around the agent see this world."""
        self.store.may_delete = lambda: self.may_clean(self)
        self.application.last_writes = lambda: self.happen(len(self.history))

    def copied(self) -> World:
        """Return another world in which all is as it is here at this moment, but no agent lives."""
        # What is never changed once it is there need not be copied; nor is what belongs to the agent.
        kept = [*self.cluster._happened, *(value for _, value in self.states.history)]
        seen: dict[int, object] = {id(value): value for value in kept}
        seen[id(self.target.before_each)] = _nothing
        other = copy.copy(self)
        for name in ("clock", "store", "states", "power", "target", "dumps", "cluster", "source", "application"):
            setattr(other, name, copy.deepcopy(getattr(self, name), seen))
        other._connect()
        return other

    @property
    def foreign_events(self) -> int:
        """How many events of others there were."""
        return sum(namespace.database != OWN_DATABASE for namespace in self.cluster.touched())

    def daemon(self, life: Life) -> Daemon:
        """Return an agent that lives so long."""
        store, states = mortal(self.store, life), mortal(self.states, life)
        source, target = mortal(self.source, life), mortal(self.target, life)
        reader = mortal(FakeReader(self.cluster), life)
        dumps = mortal(self.dumps, life)
        application = mortal(self.application, life)
        guard = FakeGuard(target=self.target, obstacle=self.obstacle)
        closing = mortal(guard, life)
        self.hold = hold = TargetHold(open_guard=partial(opened, closing), states=states, clock=self.clock)
        changes = mortal(FakeTargetChanges(self.target), life)
        self.target.before_each = life.spend
        kept = KeptChanges(source=source, states=states, store=store, clock=self.clock)
        servers = Servers(
            changes=source,
            source=mortal(source_server(), life),
            target=mortal(target_server(), life),
            source_reader=reader,
            target_reader=target,
            store=store,
            states=states,
            clock=self.clock,
        )

        def outside() -> Outside:
            return Outside(
                source=reader,
                target=target,
                server=mortal(target_server(), life),
                changes=changes,
                store=store,
                clock=self.clock,
                waiting_bytes=500,
            )

        return Daemon(
            plugins={
                Service.REPLICATION: lambda: Replication(
                    source=source,
                    store=store,
                    states=states,
                    kept=kept,
                    clock=self.clock,
                    agent_id="agent",
                    host="host",
                    max_segment_bytes=400,
                    max_segment_seconds=1,
                    own_segments=2,
                    ahead_bytes=500,
                    upload_bytes=500,
                ),
                Service.BACKUP: lambda: Backup(
                    tools={"target": dumps, "source": dumps},
                    store=store,
                    archives=store,
                    clock=self.clock,
                    undelivered=Undelivered(
                        source=reader,
                        target=target,
                        store=store,
                        clock=self.clock,
                        now=source.now,
                        memory_bytes=2_000,
                    ),
                    target_changes=changes,
                    target_server=mortal(target_server(), life),
                ),
                Service.MONITOR_REPLICATION: lambda: MonitorReplication(
                    source=source,
                    store=store,
                    kept=kept,
                    clock=self.clock,
                    quiet_seconds=0,
                    timeout_seconds=600,
                    application=application if self.is_live else None,
                ),
                Service.RESTORE: lambda: Restore(
                    source=reader,
                    target=target,
                    target_reader=target,
                    target_changes=changes,
                    servers=servers,
                    specifications=target,
                    store=store,
                    states=states,
                    clock=self.clock,
                    lanes=2,
                    window_bytes=700,
                    waiting_bytes=500,
                    is_live=self.is_live,
                    certifier=Certifier(
                        store=store, kept=kept, timeline=Timeline(), issuer={"host": "host", "version": "0"}
                    ),
                    hold=hold,
                    guard=closing,
                    outside=outside(),
                ),
                Service.MONITOR_RESTORE: lambda: MonitorRestore(
                    late=LateReporter(
                        store=store,
                        source=reader,
                        target=target,
                        servers=servers,
                        clock=self.clock,
                        waiting_bytes=500,
                    )
                ),
                Service.CLEAN: lambda: Clean(
                    source=source,
                    store=store,
                    uploads=store,
                    states=states,
                    kept=kept,
                    state_names=(TOKEN, CHECKPOINT, COMPARED, LATE, KEPT, GAP),
                    clock=self.clock,
                    timeout_seconds=600,
                    hold=hold,
                    keep_log_days=self.keep_log_days,
                    open_clusters=lambda: nullcontext(ComparedClusters(servers=servers, outside=outside())),
                ),
                Service.MONITOR_CLEAN: lambda: MonitorClean(
                    power=mortal(self.power, life), store=store, clock=self.clock, timeout_seconds=60
                ),
            },
            states=states,
            clock=self.clock,
            drain_seconds=5,
            is_live_by_default=self.is_live,
            accept_writes=application.accept_writes,
            log_owners=lambda: owners_of_log(store),
            give_target_back=partial(hold.give_back, FakeJournal()),
        )

    async def live(self, life: Life, script: tuple[Act, ...]) -> bool:
        """Let an agent live; False when it died before the script's end."""
        daemon = self.daemon(life)
        try:
            await daemon.load()
            async with asyncio.TaskGroup() as group:
                group.create_task(daemon.serve(group))
                watch = group.create_task(HoldWatch(daemon=daemon, hold=self.hold).keep())
                await asyncio.sleep(0)
                await self._play(daemon, script)
                daemon.end()
                watch.cancel()
        except BaseException as raised:  # noqa: BLE001 -- a death is one
            if isinstance(leaf_of(raised), DiedError):
                return False
            raise leaf_of(raised) from None
        return True

    async def _play(self, daemon: Daemon, script: tuple[Act, ...]) -> None:
        while self._act < len(script):
            for _ in range(_PATIENCE):
                if await script[self._act](self, daemon):
                    break
                await self.clock.sleep(0.1)
            else:
                rows = {str(s): (str(r.status), r.reason, r.error) for s, r in daemon.state.services.items()}
                raise AssertionError(f"act {self._act} did not come true: {rows}")
            self._act += 1

    def happen(self, until: int) -> None:
        """Let the history go on; what has happened does not happen again."""
        while self.done_of_history < until:
            self.cluster.apply(*self.history[self.done_of_history])
            self.done_of_history += 1

    async def captured(self) -> int:
        """Return how many operations of others the log holds."""
        commits = [key for key in self.store.objects if key.startswith(LOG)]
        log = (len(commits), max(commits, default=""))
        if log != self._counted_at:  # the operator looks often, and the log grows rarely
            reader = LogReader(store=self.store)
            self._counted = sum([not o.is_ours async for _, o in reader.operations_of(self.links()) if o])
            self._counted_at = log
        return self._counted

    def links(self) -> AsyncGenerator[Link]:
        """Return the commits, checked."""
        return LogReader(store=self.store).links()

    def contents(self) -> dict[Namespace, dict[DocumentId, bytes]]:
        """Return what the applications have in the source."""
        found = self.cluster.database.contents()
        return {namespace: documents for namespace, documents in found.items() if namespace.database != OWN_DATABASE}


def _nothing() -> None:
    """Cost no life."""


async def replication_is_ready(_: World, daemon: Daemon) -> bool:
    """Start replication, and wait until it is ready."""
    if daemon.state.status(Service.REPLICATION) is None:
        await daemon.start(Phase.REPLICATION)
    return bool(daemon.state.ready_at)


async def half_of_it_happens(world: World, _: Daemon) -> bool:
    """Let the applications write, up to a moment at which some is captured."""
    world.happen(len(world.history) // 2)
    return await world.captured() > 0


async def all_is_captured(world: World, _: Daemon) -> bool:
    """Let the applications end, and wait until the log holds all of it."""
    world.happen(len(world.history))
    return await world.captured() == world.foreign_events


async def restore_is_verified(_: World, daemon: Daemon) -> bool:
    """Start the restore, and wait for its proof."""
    if daemon.state.status(Service.RESTORE) is None:
        await daemon.start(Phase.RESTORE)
    return daemon.state.verified is not None and daemon.state.status(Service.RESTORE) is Status.DONE


async def restore_follows(world: World, daemon: Daemon) -> bool:
    """Start the live restore, let applications write on, three writes at a time, and wait until it has caught up."""
    if daemon.state.status(Service.RESTORE) is None:
        await daemon.start(Phase.RESTORE)
    has_caught_up = daemon.progress.restore.can_cutover is True
    world.happen(min(world.done_of_history + 3, len(world.history) - 2))
    return has_caught_up and world.done_of_history == len(world.history) - 2


async def cutover_is_done(_: World, daemon: Daemon) -> bool:
    """Ask for the cutover, and wait for its proof. The application writes until it is refused."""
    if daemon.state.status(Service.MONITOR_REPLICATION) is None:
        await daemon.start(Service.MONITOR_REPLICATION)
    is_done = all(daemon.state.status(s) is Status.DONE for s in (Service.MONITOR_REPLICATION, Service.RESTORE))
    return is_done and daemon.state.verified is not None


async def all_is_clean(world: World, daemon: Daemon) -> bool:
    """Start monitor-restore, and wait until the power-off is asked for: nothing else is left to do."""
    if daemon.state.phase is Phase.RESTORE:
        await daemon.start(Service.MONITOR_RESTORE)
    return daemon.state.phase is Phase.IDLE and world.power.requests > 0


async def clean_is_forced(world: World, daemon: Daemon) -> bool:
    """Give the run up: stop replication, and have clean delete what nobody has restored."""
    world.store.may_delete = lambda: True
    if daemon.state.status(Service.REPLICATION) is not Status.STOPPED and not daemon.state.forced_at:
        await daemon.stop(Service.REPLICATION)
    if daemon.state.phase is not Phase.IDLE and not daemon.state.forced_at:
        await daemon.start(Service.CLEAN, forced_run=daemon.state.run_id)
    return daemon.state.phase is Phase.IDLE


CAPTURE: Final[tuple[Act, ...]] = (replication_is_ready, half_of_it_happens, all_is_captured)
RESTORE: Final[tuple[Act, ...]] = (restore_is_verified,)
FOLLOW: Final[tuple[Act, ...]] = (replication_is_ready, half_of_it_happens, restore_follows)
CUTOVER: Final[tuple[Act, ...]] = (cutover_is_done,)
CLEAN: Final[tuple[Act, ...]] = (all_is_clean,)
FORCE: Final[tuple[Act, ...]] = (clean_is_forced,)
