"""What a running service knows of its surroundings: the Coordinator, by the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.core.run.services import Service, Status

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from d5agent.core.run.progress import AgentProgress
    from d5agent.core.run.services import PhaseState
    from d5agent.runtime.daemon import Daemon
    from d5agent.runtime.events import ServiceJournal


class Surroundings:
    """The Coordinator of one service."""

    def __init__(self, daemon: Daemon, service: Service, journal: ServiceJournal, stopping: asyncio.Event) -> None:
        self._daemon = daemon
        self._service = service
        self.journal = journal
        self.stopping = stopping

    @property
    def state(self) -> PhaseState:
        """The phase state as it is now."""
        return self._daemon.state

    @property
    def progress(self) -> AgentProgress:
        """What all services have reported."""
        return self._daemon.progress

    async def update(self, change: Callable[[PhaseState], PhaseState]) -> None:
        """Change the phase state and save it."""
        await self._daemon.update(change)

    async def wait(self, reason: str) -> None:
        """Say what the service waits for, and wait a moment."""
        await self._daemon.set_row(self._service, Status.WAITING, reason=reason)
        await self._daemon.wait_a_moment()

    async def go_on(self) -> None:
        """Say that the service works again."""
        await self._daemon.set_row(self._service, Status.RUNNING)

    async def start(self, service: Service) -> None:
        """Start another service."""
        await self._daemon.start(service)

    async def stop(self, service: Service) -> None:
        """End another service, drained."""
        await self._daemon.stop_as_done(service)

    def begin_step(self, step: str) -> None:
        """Say what the service begins."""
        self._daemon.progress.steps[self._service] = step
