"""The daemon: runs the services, moves the phases, keeps the state file, starts again what may be started again."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from d5agent.core.log.owners import LogOwners
from d5agent.core.reports.charts import duration
from d5agent.core.run import cutover, phase
from d5agent.core.run.ending import forced
from d5agent.core.run.horizon import left_near_the_end, may_try_again
from d5agent.core.run.progress import AgentProgress
from d5agent.core.run.services import Phase, PhaseState, Service, ServiceState, Status, services_of
from d5agent.core.run.words import Words, with_words
from d5agent.errors import (
    EXIT_DONE,
    AgentError,
    CredentialsError,
    LogHeldError,
    OperatorError,
    TransientError,
    UnclassifiedError,
)
from d5agent.runtime.events import Followers, ServiceJournal, named
from d5agent.runtime.phase_file import PhaseFile
from d5agent.runtime.service_context import ServiceContext
from d5agent.runtime.stopping import drained
from d5agent.steps.compare.generations import COMPARED
from d5agent.steps.parallel import forget_cancellations, leaf_of
from d5agent.steps.replay.checkpoint import CHECKPOINT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from d5agent.core.run.horizon import Horizon
    from d5agent.ports import Clock, StateStore
    from d5agent.service import Plugin

_LONGEST_PAUSE_SECONDS: Final = 60
_MOMENT_SECONDS: Final = 0.1
_TOLD: Final = "may write again"
_UNTOLD: Final = "let it write again: there is no [cutover] call_off_command"


@dataclass(slots=True, kw_only=True)
class _Running:
    """A service at work."""

    plugin: Plugin
    stopping: asyncio.Event
    task: asyncio.Task[None]
    has_drained: bool = False
    """Whether its last run ended by itself, without an error, and left nothing of what it had begun to read."""


async def _nothing() -> None:
    """Do nothing."""


async def _no_owners() -> LogOwners:
    return LogOwners()


@dataclass(slots=True, kw_only=True)
class Daemon:
    """Hosts the services of one agent. `plugins` makes a service anew each time that it starts.

    `is_live_by_default`: restore follows the log until the cutover, unless its start named a mode; `accept_writes`
    opens the application again when a cutover is called off. `refuses_writes`: a command makes it read-only; without
    one an operator does, and must say so. `give_target_back` lets others write to the target again. `horizon`: how long
    the saved position is still safe. `log_owners` reads whose the log in the bucket is. `renew_credentials` is
    called before a service tries again that was refused for its credentials.
    """

    plugins: Mapping[Service, Callable[[], Plugin]]
    states: StateStore
    clock: Clock
    drain_seconds: float
    is_live_by_default: bool = False
    accept_writes: Callable[[], Awaitable[bool]] | None = None
    refuses_writes: bool = True
    give_target_back: Callable[[], Awaitable[None]] | None = None
    horizon: Callable[[], Horizon | None] = lambda: None
    log_owners: Callable[[], Awaitable[LogOwners]] = _no_owners
    renew_credentials: Callable[[], Awaitable[None]] = _nothing
    followers: Followers = field(default_factory=Followers)
    progress: AgentProgress = field(default_factory=AgentProgress)
    exit_code: int = EXIT_DONE
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    file: PhaseFile = field(init=False)
    _running: dict[Service, _Running] = field(default_factory=dict)
    _group: asyncio.TaskGroup | None = None

    def __post_init__(self) -> None:
        """Begin with an empty state, until `load`."""
        self.file = PhaseFile(states=self.states, clock=self.clock)

    @property
    def state(self) -> PhaseState:
        """What the state file says, or will once it can be written again."""
        return self.file.state

    @property
    def is_live(self) -> bool:
        """Whether restore follows the log until the cutover, in this run."""
        return self._is_live(self.state)

    def _is_live(self, state: PhaseState) -> bool:
        return state.mode == "live" if state.mode else self.is_live_by_default

    async def load(self) -> None:
        """Take the state file. OperatorError: it is damaged, or of a newer version; nothing is changed then."""
        await self.file.load()

    async def serve(self, group: asyncio.TaskGroup) -> None:
        """Carry on with what the state file says, and run until told to end; then drain."""
        self._group = group
        mirror = group.create_task(self.file.keep_mirror(), name="mirror")
        for service in phase.to_resume(self.state, is_live=self.is_live):
            structlog.get_logger().info("service_resumed", service=str(service))
            self._launch(service)
        await self.ended.wait()
        await self._end_all()
        mirror.cancel()

    def end(self, error: AgentError | None = None) -> None:
        """End the daemon, drained; an error decides its exit code."""
        if error is not None and self.exit_code == EXIT_DONE:
            self.exit_code = error.exit_code
        self.ended.set()

    async def start(
        self,
        request: Service | Phase,
        *,
        forced_run: str | None = None,
        mode: str | None = None,
        words: Words | None = None,
    ) -> None:
        """Start a service or a phase; RefusedError when the phase table does not allow it now.

        `forced_run`: the id of the run that is to be cleaned without a proof. `mode`: how this run is restored from now
        on; None: as before. `words`: what else an operator typed.
        """
        now, run_id = self._now(), str(uuid.uuid4())
        words, said_at = words or Words(), self.clock.now().isoformat(timespec="milliseconds")
        owners = LogOwners() if forced_run is None else await self.log_owners()

        def started(state: PhaseState) -> PhaseState:
            if forced_run is not None:
                state = forced(state, forced_run, owners=owners, now=now)
            if mode is not None:
                state = cutover.in_mode(state, request, mode, is_live=self._is_live(state))
            state = with_words(state, request, words, now=said_at)
            return phase.start(state, request, now=now, new_run_id=run_id, is_live=self._is_live(state))

        if words.again is not None:
            with_words(self.state, request, words, now=said_at)  # refused before anything is forgotten
            await self._forget_applied()
        forced_before = self.state.forced_at
        await self.update(started)
        if self.state.forced_at != forced_before:
            structlog.get_logger().warning("clean_forced", run_id=forced_run, proof="not asked for")
        for option, run in words.given():
            structlog.get_logger().warning("operator_word_given", option=option, run_id=run)
        for service in phase.to_run(self.state, request, is_live=self.is_live):
            self._launch(service)

    async def _forget_applied(self) -> None:
        """Let the next restore begin at the log's beginning."""
        for name in (CHECKPOINT, COMPARED):
            await self.states.delete(name)

    async def stop(self, request: Service | Phase) -> None:
        """Stop a service or a phase, drained."""
        for service in services_of(request):
            await self._end(service, Status.STOPPED)
        await self.update(lambda state: phase.stop(state, request, now=self._now()))
        if Service.RESTORE in services_of(request) and self.give_target_back is not None:
            await self.give_target_back()  # after one that had failed, too: it is the operator's word

    async def pause(self, *, is_paused: bool) -> None:
        """Pause restore, or let it go on; RefusedError when it cannot be paused."""
        await self.update(lambda state: cutover.pause(state, is_paused=is_paused, is_live=self.is_live))

    async def call_off(self) -> None:
        """Call the cutover off: the application may write again, and restore stays live.

        RefusedError: the fence is drawn, or no cutover has been asked for. OperatorError: the application could not
        be told.
        """
        cutover.without_fence(self.state)
        await self._end(Service.MONITOR_REPLICATION, Status.STOPPED)
        # Forgotten before the application writes: nobody may trust a fence that operations come after. And only now:
        # it may have been drawn until the service had ended.
        await self.update(cutover.without_fence)
        is_told = self.accept_writes is not None and await self.accept_writes()
        await self.update(lambda state: cutover.called_off(state, now=self._now()))
        structlog.get_logger().warning("cutover_called_off", application=_TOLD if is_told else _UNTOLD)

    async def stop_as_done(self, service: Service) -> None:
        """End a service for another one; it counts as done only if it has drained.

        TransientError: it was not running, its drain failed or ran out of time, or it left something unread. It is
        started again, so that what it held, or did not see, is read after all; whoever asked must ask again.
        """
        running = self._running.get(service)
        if running is None and self.state.status(service) is Status.DONE:
            return  # before a crash of ours
        if running is not None:
            running.stopping.set()
            await drained(running.task, may_drain=running.plugin.drains, seconds=self.drain_seconds)
            if running.has_drained:
                await self.set_row(service, Status.DONE)
                return
            await self.set_row(service, Status.STOPPED)
        await self.start(service)
        raise TransientError(f"{service} has not drained", hint=f"nothing was deleted; {service} was started again")

    async def update(self, change: Callable[[PhaseState], PhaseState]) -> None:
        """Change the state and save it; it is on disk when this returns."""
        await self.file.update(change)

    async def set_row(self, service: Service, status: Status, *, reason: str = "") -> None:
        """Set a service's row, if that changes it, and save it."""
        await self.update(lambda state: self._with_row(state, service, status, reason, None))

    async def show_row(
        self, service: Service, status: Status, *, reason: str = "", error: AgentError | None = None
    ) -> None:
        """Set a service's row even if it cannot be saved; it is saved once that can be done again."""
        await self.file.show(lambda state: self._with_row(state, service, status, reason, error))

    def _with_row(
        self, state: PhaseState, service: Service, status: Status, reason: str, error: AgentError | None
    ) -> PhaseState:
        row = state.services.get(service)
        message, hint = (str(error), error.hint) if error is not None else ("", "")
        if row is not None and (row.status, row.reason, row.error) == (status, reason, message):
            return state
        new = ServiceState(status=status, since=self._now(), reason=reason, error=message, hint=hint)
        return state.with_service(service, new)

    async def wait_a_moment(self) -> None:
        """Wait before looking again whether something has changed."""
        await self.clock.sleep(_MOMENT_SECONDS)

    def is_fed(self) -> bool:
        """Whether the working loops are alive: what captures has shown a sign of life not long ago."""
        capture, is_running = self.progress.capture, self.state.status(Service.REPLICATION) is Status.RUNNING
        return not is_running or capture is None or self.clock.monotonic() - capture.seen_at < _LONGEST_PAUSE_SECONDS

    def _launch(self, service: Service) -> None:
        if service in self._running or self._group is None or self.ended.is_set():
            return
        plugin, stopping = self.plugins[service](), asyncio.Event()
        task = self._group.create_task(self._supervise(service, plugin, stopping), name=str(service))
        self._running[service] = _Running(plugin=plugin, stopping=stopping, task=task)

    async def _supervise(self, service: Service, plugin: Plugin, stopping: asyncio.Event) -> None:
        """Run a service to its end. What may pass is tried again, as systemd would; what needs a person is not."""
        journal = ServiceJournal(service, self.followers, run_id=self.state.run_id)
        attempt = 0
        self._forget_failing(service)
        try:
            while True:
                began = self.clock.monotonic()
                error = await self._run_once(service, plugin, stopping, journal)
                self._running[service].has_drained = error is None and not self.progress.has_left_unread(service)
                if error is None or isinstance(error, OperatorError):
                    self._forget_failing(service)
                    await self._conclude(service, error, journal)
                    return
                ran_well = self.clock.monotonic() - began > _LONGEST_PAUSE_SECONDS
                attempt = 1 if ran_well else attempt + 1
                pause = min(2**attempt, _LONGEST_PAUSE_SECONDS)
                await self._show_failing(service, error, journal, pause=pause)
                await self._pause(stopping, pause)
                if isinstance(error, CredentialsError):
                    await self.renew_credentials()
                if stopping.is_set():
                    return
        finally:
            self._running.pop(service, None)

    async def _run_once(
        self, service: Service, plugin: Plugin, stopping: asyncio.Event, journal: ServiceJournal
    ) -> AgentError | None:
        """Run a service once and return why it failed. The one place that logs a failure."""
        self.progress.begin(service)
        await self.show_row(service, Status.RUNNING)
        journal.info("service_started")
        try:
            await plugin.run(ServiceContext(self, service, journal, stopping))
        except (Exception, BaseExceptionGroup) as raised:  # noqa: BLE001 -- the top of a task: all ends here
            forget_cancellations()
            error = self._decided(service, leaf_of(raised))
            if isinstance(error, AgentError):
                cause = type(error.__cause__).__name__ if error.__cause__ else None
                journal.error("service_failed", error=error.message, hint=error.hint, cause=cause, **named(error.facts))
                return error
            journal.error("service_failed", error=f"a bug: {type(error).__name__}", exc_info=error)
            return TransientError(f"a bug: {type(error).__name__}", hint="report the traceback in the journal")
        return None

    def _forget_failing(self, service: Service) -> None:
        if service is Service.REPLICATION:
            self.progress.failing_since = None

    async def _show_failing(
        self, service: Service, error: AgentError, journal: ServiceJournal, *, pause: float
    ) -> None:
        """Say why a service waits for its next try. Capture says since when, and loudly how long its position is safe.

        What may pass is tried again without an end: nothing else tells an operator that the time for it runs out.
        """
        reason, left = f"trying again in {pause} s", None
        if service is Service.REPLICATION:
            left = left_near_the_end(self.horizon())
            since = self.progress.failing_since or self._now()
            self.progress.failing_since = since  # until it commits again
            if left is not None:
                reason = f"{reason}; the position is safe for {duration(left)}"
                hint = f"{error.hint}; to win time, lengthen the retention now (docs/metrics.md)".removeprefix("; ")
                journal.warning(
                    "capture_fails_near_horizon",
                    safe_seconds=round(left),
                    failing_since=since,
                    error=error.message,
                    hint=hint,
                )
        await self.show_row(service, Status.WAITING, reason=reason, error=error)

    def _decided(self, service: Service, error: BaseException) -> BaseException:
        """Return the error, or, where it must not be tried again although it might pass, one that calls a person."""
        if not isinstance(error, UnclassifiedError | CredentialsError):
            return error
        if service is not Service.REPLICATION and isinstance(error, CredentialsError):
            return error  # nothing grows old meanwhile
        if service is not Service.REPLICATION:
            hint = f"see what the server says; then type: d5agent start {service}"
        elif may_try_again(self.horizon()):
            return error
        else:
            hint = (
                "a quarter of the retention is left: lengthen it now, see what the server says (docs/failure-modes.md, "
                "'Which errors end capture'), then type: d5agent start replication"
            )
        final = OperatorError(error.message, hint=hint, **error.facts)
        final.__cause__ = error.__cause__
        return final

    async def _conclude(self, service: Service, error: AgentError | None, journal: ServiceJournal) -> None:
        if isinstance(error, LogHeldError):
            self.end(error)  # not this service's affair: nothing of this agent may go on
        elif error is not None:
            await self.show_row(service, Status.FAILED, error=error)
        elif not self.ended.is_set() and not self._is_stopping(service):
            await self.show_row(service, Status.DONE)
            journal.info("service_done")
        else:
            journal.info("service_drained")

    def _is_stopping(self, service: Service) -> bool:
        running = self._running.get(service)
        return running is not None and running.stopping.is_set()

    async def _pause(self, stopping: asyncio.Event, seconds: float) -> None:
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until and not stopping.is_set():
            await self.wait_a_moment()

    async def _end(self, service: Service, status: Status) -> None:
        running = self._running.get(service)
        if running is not None:
            running.stopping.set()
            await drained(running.task, may_drain=running.plugin.drains, seconds=self.drain_seconds)
            self._running.pop(service, None)  # a task that is cancelled before its first step clears nothing up
            is_cutover = self.is_live and service is Service.MONITOR_REPLICATION
            await self.set_row(service, status, reason=cutover.MAY_BE_READ_ONLY if is_cutover else "")

    async def _end_all(self) -> None:
        """End all services, drained, within one budget; their rows stay as they are, for the next start."""
        for running in self._running.values():
            running.stopping.set()
        for running in list(self._running.values()):
            await drained(running.task, may_drain=running.plugin.drains, seconds=self.drain_seconds)

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="seconds")
