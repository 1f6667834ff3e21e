"""The Coordinator that the daemon gives to a running service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from d5agent.core.run.services import Service, Status

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from d5agent.core.run.progress import AgentProgress
    from d5agent.core.run.services import PhaseState
    from d5agent.runtime.events import ServiceJournal


class Host(Protocol):
    """What runs services: the daemon."""

    progress: AgentProgress

    @property
    def state(self) -> PhaseState:
        """The phase state as it is now."""
        ...

    async def update(self, change: Callable[[PhaseState], PhaseState]) -> None:
        """Change the phase state and save it."""
        ...

    async def set_row(self, service: Service, status: Status, *, reason: str = "") -> None:
        """Set a service's row, and save it."""
        ...

    async def wait_a_moment(self) -> None:
        """Wait before looking again whether something has changed."""
        ...

    async def start(self, request: Service) -> None:
        """Start a service."""
        ...

    async def stop_as_done(self, service: Service) -> None:
        """End a service, drained."""
        ...


@dataclass
class ServiceContext:
    """The Coordinator of one service."""

    _host: Host
    _service: Service
    journal: ServiceJournal
    stopping: asyncio.Event

    @property
    def state(self) -> PhaseState:
        """The phase state as it is now."""
        return self._host.state

    @property
    def progress(self) -> AgentProgress:
        """What all services have reported."""
        return self._host.progress

    async def update(self, change: Callable[[PhaseState], PhaseState]) -> None:
        """Change the phase state and save it."""
        await self._host.update(change)

    async def wait(self, reason: str) -> None:
        """Say what the service waits for, and wait a moment."""
        await self._host.set_row(self._service, Status.WAITING, reason=reason)
        await self._host.wait_a_moment()

    async def go_on(self) -> None:
        """Say that the service works again."""
        await self._host.set_row(self._service, Status.RUNNING)

    async def start(self, service: Service) -> None:
        """Start another service."""
        await self._host.start(service)

    async def stop(self, service: Service) -> None:
        """End another service, drained."""
        await self._host.stop_as_done(service)

    def begin_step(self, step: str) -> None:
        """Say what the service begins."""
        self._host.progress.steps[self._service] = step
