"""The PowerSwitch: a command from the settings."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from d5agent.adapters.process import run
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")  # random(4): generated once at each boot
_HINT: Final = (
    "may user d5agent power off? (polkit/49-d5agent.rules, docs/runbook); power the machine off by hand, or mend"
    " [power] command, then type: d5agent start monitor-clean"
)


class CommandPowerSwitch:
    """Switches the machine off by running a command, `systemctl poweroff` by default."""

    def __init__(self, command: Sequence[str], *, timeout_seconds: float) -> None:
        self._command = command
        self._timeout_seconds = timeout_seconds

    async def off(self) -> None:
        """Ask for it; OperatorError when the command failed or hangs, and it is ended then."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await run(self._command)
        except TimeoutError:
            raise OperatorError(
                "the power-off hangs", hint=_HINT, command=self._command[0], after_seconds=self._timeout_seconds
            ) from None
        except OperatorError as error:
            raise OperatorError(
                "the power-off failed",
                hint=_HINT,
                **{**error.facts, "command": self._command[0], "reason": error.message},
            ) from error

    async def boot_id(self) -> str:
        """Return the kernel's name for this boot."""
        return _BOOT_ID.read_text(encoding="ascii").strip()
