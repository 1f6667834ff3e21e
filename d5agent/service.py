"""What a service is, and what a running one is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from d5agent.core.run.progress import AgentProgress
    from d5agent.core.run.services import PhaseState, Service


class Journal(Protocol):
    """Events with facts, one line each (a structlog logger)."""

    def info(self, event: str, **facts: object) -> None:
        """Say what happened."""
        ...

    def warning(self, event: str, **facts: object) -> None:
        """Say what somebody should look at."""
        ...


class Coordinator(Protocol):
    """What a running service knows of its run, and how it speaks to the daemon."""

    @property
    def journal(self) -> Journal:
        """Where the service's events go."""
        ...

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the service is to end, drained."""
        ...

    @property
    def state(self) -> PhaseState:
        """The phase state as it is now."""
        ...

    @property
    def progress(self) -> AgentProgress:
        """What all services have reported so far. A service replaces its own attribute, and only reads the others."""
        ...

    async def update(self, change: Callable[[PhaseState], PhaseState]) -> None:
        """Change the phase state and save it."""
        ...

    async def wait(self, reason: str) -> None:
        """Say what the service waits for, and wait a moment; the caller looks again."""
        ...

    async def go_on(self) -> None:
        """Say that the service works again, after it has waited."""
        ...

    async def start(self, service: Service) -> None:
        """Start another service, as an operator would."""
        ...

    async def stop(self, service: Service) -> None:
        """End another service, drained; returns when it has ended. It counts as done."""
        ...

    def begin_step(self, step: str) -> None:
        """Say what the service begins, in words that `status` shows."""
        ...


class Plugin(Protocol):
    """A service: `run` returns when it is done, raises when it cannot be, and may be cancelled at any moment."""

    drains: bool
    """Whether it ends by itself, soon, once `stopping` is set; if not, it is cancelled."""

    async def run(self, coordinator: Coordinator) -> None:
        """Do the service's work."""
        ...
