"""The PowerSwitch: a command from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.adapters.process import run

if TYPE_CHECKING:
    from collections.abc import Sequence


class CommandPowerSwitch:
    """Switches the machine off by running a command, `systemctl poweroff` by default."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    async def off(self) -> None:
        """Ask for it; OperatorError when the command failed."""
        await run(self._command)
