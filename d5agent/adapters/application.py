"""The Application: commands from the settings, for whoever makes its writes stop outside of AWS's Lambda."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.adapters.process import run
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence


class CommandApplication:
    """Runs `[cutover] command` and `call_off_command`; without one, somebody else does it.

    `stall_seconds`: how long a command may say nothing before it is ended.
    """

    def __init__(
        self, *, command: Sequence[str] | None, call_off_command: Sequence[str] | None, stall_seconds: float
    ) -> None:
        self._command = command
        self._call_off_command = call_off_command
        self._stall_seconds = stall_seconds

    async def refuse_writes(self) -> bool:
        """Make the application read-only; False: there is no command for it."""
        return await self._run(self._command, "the application could not be made read-only")

    async def accept_writes(self) -> bool:
        """Let it write again; False: there is no command for it."""
        return await self._run(self._call_off_command, "the application could not be told that it may write again")

    async def _run(self, command: Sequence[str] | None, message: str) -> bool:
        if command is None:
            return False
        try:
            await run(command, stall_seconds=self._stall_seconds)
        except OperatorError as error:
            hint = "look whether it may write now; mend the command of [cutover], then type the same again"
            facts = {**error.facts, "command": command[0], "reason": error.message}
            raise OperatorError(message, hint=hint, **facts) from error
        return True
