"""A service's journal: its events go to the journal, and to whoever follows the service."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    import asyncio

    from d5agent.core.run.services import Service

_BEHIND: Final = 10_000  # events that a follower may lag; a slower one is told that it missed some


class Followers:
    """Hands events of services to those who follow them."""

    def __init__(self) -> None:
        self._queues: dict[Service, set[asyncio.Queue[dict[str, Any]]]] = defaultdict(set)

    def add(self, service: Service, queue: asyncio.Queue[dict[str, Any]]) -> None:
        """Begin to hand a service's events to a queue."""
        self._queues[service].add(queue)

    def remove(self, service: Service, queue: asyncio.Queue[dict[str, Any]]) -> None:
        """Stop handing events."""
        self._queues[service].discard(queue)

    def tell(self, service: Service, event: dict[str, Any]) -> None:
        """Hand an event to all who follow the service."""
        for queue in self._queues[service]:
            if queue.qsize() < _BEHIND:
                queue.put_nowait(event)


class ServiceJournal:
    """The Journal of one service."""

    def __init__(self, service: Service, followers: Followers, **bound: object) -> None:
        self._service = service
        self._followers = followers
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind(service=str(service), **bound)

    def info(self, event: str, **facts: object) -> None:
        """Say what happened."""
        self._log.info(event, **facts)
        self._tell("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Say what somebody should look at."""
        self._log.warning(event, **facts)
        self._tell("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        """Say what failed."""
        self._log.error(event, **facts)
        self._tell("error", event, {name: value for name, value in facts.items() if name != "exc_info"})

    def _tell(self, level: str, event: str, facts: dict[str, object]) -> None:
        self._followers.tell(self._service, {"event": event, "level": level, "facts": {**facts}})


def named(facts: dict[str, Any]) -> dict[str, Any]:
    """Return an error's facts under names that do not meet the journal's own."""
    return {f"{name}_" if name in {"event", "error", "hint", "service"} else name: v for name, v in facts.items()}
