"""The PowerSwitch: a command from the settings."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from d5agent.adapters.process import run
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")  # random(4): generated once at each boot
_CAN_POWER_OFF: Final = (
    *("busctl", "call", "org.freedesktop.login1", "/org/freedesktop/login1"),
    *("org.freedesktop.login1.Manager", "CanPowerOff"),
)
_YES: Final = 's "yes"'
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

    async def require_right(self, *, user: int) -> str:
        """Return why it should go off when it is asked; OperatorError: why not. `user`: the id of the daemon's user.

        Only logind's own power-off can be asked about without harm (CanPowerOff, org.freedesktop.login1(5)).
        """
        program = self._command[0]
        if shutil.which(program) is None:
            raise OperatorError("the power-off command is missing", hint=_HINT, command=program)
        if Path(program).name != "systemctl":
            return f"{program} is there; whether it may power off is known once it does"
        if user == 0:
            return "the daemon runs as root, which may"
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if os.geteuid() == 0 else []
        said = (await run([*as_user, *_CAN_POWER_OFF], stall_seconds=self._timeout_seconds)).strip()
        if said != _YES:
            raise OperatorError("the daemon's user may not power off", hint=_HINT, user=user, logind_says=said)
        return "logind lets the daemon's user power off"

    async def boot_id(self) -> str:
        """Return the kernel's name for this boot."""
        return _BOOT_ID.read_text(encoding="ascii").strip()
