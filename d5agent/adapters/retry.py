"""The one retry policy: transient errors only, bounded, jittered, on the injected clock (ADR 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from d5agent.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.ports import Clock

_Result = TypeVar("_Result")
ATTEMPTS: Final = 6
_LONGEST_WAIT_SECONDS: Final = 5


async def retrying(call: Callable[[], Awaitable[_Result]], *, clock: Clock, attempts: int = ATTEMPTS) -> _Result:
    """Return the result of `call`, made again while it raises TransientError; then that error rises.

    `call` itself must not retry: two layers of it multiply.
    """
    policy = AsyncRetrying(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT_SECONDS),
        sleep=clock.sleep,
        reraise=True,
    )
    return await policy(call)
