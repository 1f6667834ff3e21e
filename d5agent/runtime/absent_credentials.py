"""What the daemon does at its start while it has no credentials: it waits, and says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from d5agent.errors import CredentialsError
from d5agent.runtime.events import named

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.ports import Clock
    from d5agent.runtime.notify import Notifier

_Result = TypeVar("_Result")
_FIRST_PAUSE_SECONDS: Final = 1
_LONGEST_PAUSE_SECONDS: Final = 30
_EXTEND: Final = f"EXTEND_TIMEOUT_USEC={4 * _LONGEST_PAUSE_SECONDS * 1_000_000}"  # systemd would end a slow start


async def with_credentials(call: Callable[[], Awaitable[_Result]], *, clock: Clock, notifier: Notifier) -> _Result:
    """Return the result of `call`, made again as long as it raises CredentialsError: each time is in the journal.

    An instance's metadata service may answer late, and a role may be given late. A daemon that ended would be started
    again a few times only.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        notifier.tell(_EXTEND)
        try:
            return await call()
        except CredentialsError as error:
            structlog.get_logger().error(
                "credentials_awaited", error=error.message, hint=error.hint, again_in=pause, **named(error.facts)
            )
            notifier.tell(_EXTEND, f"STATUS=waits: {error.message}")
        await clock.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
