"""Gives the target back where restore has not: after a stop, a crash, on another host, once the run is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from d5agent.core.run.hold import is_due
from d5agent.core.run.services import Phase
from d5agent.errors import AgentError
from d5agent.runtime.events import named

if TYPE_CHECKING:
    from d5agent.runtime.daemon import Daemon
    from d5agent.steps.replay.target_hold import TargetHold

_LOOK_SECONDS: Final = 5


@dataclass(slots=True, kw_only=True)
class HoldWatch:
    """Looks whether the state still wants the target held."""

    daemon: Daemon
    hold: TargetHold
    _said: str = ""

    async def keep(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            await self.daemon.clock.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Give back what is due. A failure is reported once, and tried again at each look."""
        try:
            if is_due(await self.hold.current(), self.daemon.state):
                await self.hold.give_back(structlog.get_logger(), is_due=lambda hold: is_due(hold, self.daemon.state))
                if self.daemon.state.phase is Phase.IDLE:
                    await self.hold.forget()  # clean has gone on without
            self._said = ""
        except AgentError as error:
            if error.message != self._said:
                self._said = error.message
                structlog.get_logger().error(
                    "target_not_given_back", error=error.message, hint=error.hint, **named(error.facts)
                )
