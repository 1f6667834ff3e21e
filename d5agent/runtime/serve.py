"""`d5agent serve`: the lock, the lease, the state, the socket, the services, and the way to end."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from d5agent.adapters.clock import SystemClock
from d5agent.errors import AgentError, CorruptDataError, OperatorError
from d5agent.runtime.absent_credentials import with_credentials
from d5agent.runtime.control import control_server
from d5agent.runtime.control_client import socket_path
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.disk import Disk
from d5agent.runtime.events import named
from d5agent.runtime.hold_watch import HoldWatch
from d5agent.runtime.holder import Holder, Lease
from d5agent.runtime.horizon_watch import HorizonWatch
from d5agent.runtime.lock import locked
from d5agent.runtime.memory import give_large_buffers_back
from d5agent.runtime.notify import Notifier
from d5agent.runtime.opening import Adapters, open_adapters
from d5agent.runtime.stopping import on_signals
from d5agent.runtime.timeline_watch import TimelineWatch
from d5agent.runtime.wiring import MIRRORED, application, plugins
from d5agent.steps.log.owners import owners_of_log
from d5agent.steps.log.reader import LogReader
from d5agent.steps.parallel import task_group

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from d5agent.adapters.state import MirroredStateStore
    from d5agent.ports import ObjectStore
    from d5agent.settings import Settings

_WATCHDOG_SECONDS: Final = 5


async def serve(
    settings: Settings,
    *,
    reread: Callable[[], Settings],
    notify_socket: str | None,
    serve_metrics: Callable[[Daemon], AbstractAsyncContextManager[None]] | None = None,
) -> int:
    """Run the daemon until a signal ends it; return its exit code.

    `reread` returns the settings as the file says at that moment: [target] may be written while capture runs, and user
    or password of the source be renewed. `serve_metrics` serves metrics while its block runs.
    AgentError, before anything is written: another daemon, a damaged state file, a bucket that is missing.
    """
    give_large_buffers_back()
    directory = settings.state.directory
    notifier = Notifier(notify_socket)
    with locked(directory):
        path = socket_path(directory)
        async with _opened(settings, reread, notifier) as adapters:
            disk = Disk.open(directory)

            def is_live() -> bool:
                return daemon.is_live

            daemon = Daemon(
                plugins=plugins(settings, adapters, disk, is_live),
                states=adapters.states,
                clock=adapters.clock,
                drain_seconds=settings.limits.drain_seconds,
                is_live_by_default=settings.restore.mode == "live",
                accept_writes=application(settings).accept_writes,
                renew_credentials=partial(_renew_source, adapters),
                log_owners=lambda: owners_of_log(adapters.store),
                refuses_writes=settings.cutover.command is not None,
                give_target_back=partial(adapters.hold.give_back, structlog.get_logger()),
            )
            lease = Lease(
                store=adapters.ungated,
                clock=adapters.clock,
                journal=structlog.get_logger(),
                me=await _me(adapters, disk),
                run_id=lambda: daemon.state.run_id,
                tenures=disk.tenures,
                on_taking=lambda before: disk.keep(disk.agent_id, before, lease.me.tenure),
            )
            adapters.gate.held = lease
            await with_credentials(daemon.load, clock=adapters.clock, notifier=notifier)
            await with_credentials(lease.acquire, clock=adapters.clock, notifier=notifier)
            try:
                await take_up(daemon, lease, adapters.states, adapters.store)
                disk.keep(lease.me.agent_id, lease.me.tenure)
                async with (
                    serve_metrics(daemon) if serve_metrics else nullcontext(),
                    control_server(path, daemon),
                    task_group() as group,
                ):
                    watches = (
                        _watch(settings, adapters, daemon),
                        TimelineWatch(daemon=daemon, timeline=adapters.timeline),
                        HoldWatch(daemon=daemon, hold=adapters.hold),
                    )
                    await _run(daemon, lease, watches, notifier, group)
            finally:
                with suppress(AgentError):  # the next agent then waits for it to show no life
                    await lease.release()
            return daemon.exit_code


@asynccontextmanager
async def _opened(settings: Settings, reread: Callable[[], Settings], notifier: Notifier) -> AsyncGenerator[Adapters]:
    """Open the adapters, once there are credentials to read the source's secret with."""
    async with AsyncExitStack() as stack:
        yield await with_credentials(
            lambda: stack.enter_async_context(open_adapters(settings, reread=reread)),
            clock=SystemClock(),
            notifier=notifier,
        )


async def _renew_source(adapters: Adapters) -> None:
    """Take a renewed user or password of the source up; what keeps the agent from reading them is in the journal."""
    try:
        if await adapters.renew_source():
            structlog.get_logger().info("source_uri_renewed")
    except AgentError as error:
        structlog.get_logger().warning(
            "source_uri_not_read", error=error.message, hint=error.hint, **named(error.facts)
        )


async def take_up(daemon: Daemon, lease: Lease, states: MirroredStateStore, store: ObjectStore) -> None:
    """Take the state of whoever held the log until now: the disk's, or that of another host from the bucket.

    CorruptDataError: there is a log, and no state says what is to be done with it.
    """
    await states.take_over(MIRRORED, owner=lease.me.owner, confirm=lease.confirm, from_another=lease.follows_another)
    await daemon.load()
    last = None if daemon.state.run_id else await LogReader(store=store).last()
    await lease.renew()  # it tells the run, now that it is known; and what was read is nobody else's
    if last is not None:
        writer = last.commit.writer
        raise CorruptDataError(
            "the bucket holds a log, and the state that belongs to it is missing",
            hint="bring state/phase.json back (bucket versioning), or put the lost host's phase.json into the state"
            " directory; then start the daemon again, which goes on from the last commit",
            run_id=writer.run_id,
            host=writer.host,
            since=writer.since,
            sequence=last.commit.sequence,
        )


async def _run(
    daemon: Daemon,
    lease: Lease,
    watches: tuple[HorizonWatch | TimelineWatch | HoldWatch, ...],
    notifier: Notifier,
    group: asyncio.TaskGroup,
) -> None:
    log = structlog.get_logger()
    with on_signals(daemon.end):
        helpers = [
            group.create_task(_keep(lease, daemon), name="lease"),
            group.create_task(_tell_systemd(daemon, notifier), name="watchdog-ping"),
            *(group.create_task(watch.keep(), name=type(watch).__name__) for watch in watches),
        ]
        notifier.tell("READY=1")
        log.info("daemon_started", phase=str(daemon.state.phase), run_id=daemon.state.run_id)
        await daemon.serve(group)
        notifier.tell("STOPPING=1")
        log.info("daemon_drained", exit=daemon.exit_code)
        for helper in helpers:
            helper.cancel()


async def _keep(lease: Lease, daemon: Daemon) -> None:
    """Keep the lease; when another agent has taken the log, end the daemon, drained."""
    try:
        await lease.keep()
    except OperatorError as error:  # LogHeldError, as a rule
        structlog.get_logger().error("log_lost", error=error.message, hint=error.hint, **error.facts)
        daemon.end(error)


async def _tell_systemd(daemon: Daemon, notifier: Notifier) -> None:
    """Ping the watchdog while the working loops show life, and say how things stand."""
    while True:
        if daemon.is_fed():
            active = [f"{service} {row.status}" for service, row in daemon.state.services.items()]
            notifier.tell("WATCHDOG=1", f"STATUS={daemon.state.phase}: {', '.join(active) or 'nothing to do'}")
        await daemon.clock.sleep(_WATCHDOG_SECONDS)


def _watch(settings: Settings, adapters: Adapters, daemon: Daemon) -> HorizonWatch:
    return HorizonWatch(
        daemon=daemon,
        read_retention=adapters.retention.read,
        read_cluster_time=adapters.source.now,
        is_documentdb=settings.source.flavor == "documentdb",
    )


async def _me(adapters: Adapters, disk: Disk) -> Holder:
    return Holder(
        agent_id=disk.agent_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        since=adapters.clock.now().isoformat(timespec="seconds"),
        tenure=str(uuid.uuid4()),
        place=disk.place(await adapters.power.boot_id()),
    )
