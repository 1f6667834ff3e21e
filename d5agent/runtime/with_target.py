"""A service that needs the target: each of its runs opens the target with the URI that is there by then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from d5agent.runtime.opening import TargetAdapters
    from d5agent.service import Coordinator, Plugin


@dataclass(slots=True, kw_only=True)
class WithTarget:
    """Opens the target, and runs the service that `make` makes for it. Such a service is cancelled, never drained."""

    open_target: Callable[[], AbstractAsyncContextManager[TargetAdapters]]
    make: Callable[[TargetAdapters], Plugin]
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Do the service's work. OperatorError: the target has no URI yet, a wrong one, or a secret without a value."""
        async with self.open_target() as target:
            await self.make(target).run(coordinator)
