"""What a service knows of its surroundings, without a daemon."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.run import phase
from d5agent.core.run.progress import AgentProgress
from d5agent.core.run.services import PhaseState, Service, ServiceState, Status
from tests.fakes.machine import FakeJournal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.ports import Clock

_MOMENT: Final = 0.1
SINCE: Final = "2026-11-02T08:00:00+00:00"


@dataclass(slots=True, kw_only=True)
class FakeCoordinator:
    """Keeps what a service says and asks for; the phase table decides on requests, as in the daemon.

    `reasons` are what was waited for, without repetitions, and nothing where it went on. `on_wait` is called at each
    wait, with its reason; `on_stop` ends the service that is to stop. `step`: what was begun last.
    """

    clock: Clock
    state: PhaseState
    journal: FakeJournal = field(default_factory=FakeJournal)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    progress: AgentProgress = field(default_factory=AgentProgress)
    step: str = ""
    started: list[Service] = field(default_factory=list)
    stopped: list[Service] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    on_wait: Callable[[str], None] = lambda _: None
    on_stop: Callable[[], Awaitable[object]] | None = None

    async def update(self, change: Callable[[PhaseState], PhaseState]) -> None:
        self.state = change(self.state)

    async def wait(self, reason: str) -> None:
        if self.reasons[-1:] != [reason]:
            self.reasons.append(reason)
        self.on_wait(reason)
        await self.clock.sleep(_MOMENT)

    async def go_on(self) -> None:
        self.reasons.append("")

    async def start(self, service: Service) -> None:
        self.state = phase.start(self.state, service, now=SINCE, new_run_id="another run")
        self.started.append(service)

    async def stop(self, service: Service) -> None:
        self.stopped.append(service)
        if self.on_stop is not None:
            await self.on_stop()
        self.set_status(service, Status.DONE)

    def begin_step(self, step: str) -> None:
        self.step = step

    def set_status(self, service: Service, status: Status) -> None:
        """Give a service a row of that status."""
        self.state = self.state.with_service(service, ServiceState(status=status, since=SINCE))
