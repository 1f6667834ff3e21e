"""The journal's lines: an event and its facts, readable by people and by grep."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from d5agent.runtime.without_rich import without_rich

with without_rich():
    import structlog

from d5agent.core.reports.addresses import addressed

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

# sd-daemon(3): journald takes the level from a line's beginning.
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def _with_priority(_: Any, level: str, line: str) -> str:  # noqa: ANN401 -- structlog's processor signature
    return f"<{_PRIORITY.get(level, 6)}>{line}"


def _without_empty(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
    return {key: value for key, value in event.items() if value not in ("", None)}


def configure_logs(*, to_journald: bool, url_of: Callable[[str], str] = str) -> None:
    """Set up structlog: `event key=value …` on standard output, with time and level where journald adds none.

    `url_of`: where an object of the bucket is; a line names each by its address.
    """

    def with_addresses(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401
        return {name: addressed(value, url_of) for name, value in event.items()}

    processors: list[Any] = [structlog.contextvars.merge_contextvars, _without_empty]
    if not to_journald:
        processors += [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.add_log_level]
    processors += [
        structlog.processors.format_exc_info,
        with_addresses,
        structlog.processors.KeyValueRenderer(
            key_order=["timestamp", "level", "event", "service"] if not to_journald else ["event", "service"],
            drop_missing=True,
            repr_native_str=False,
        ),
    ]
    if to_journald:
        processors.append(_with_priority)
    structlog.configure(
        processors=processors,
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
