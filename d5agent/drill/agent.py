"""The agent under drill: the daemon as a process of its own, and the command line beside it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d5agent.drill.child import Child, pause, start_process, wait_until
from d5agent.drill.tools import inherited_environment
from d5agent.errors import OperatorError
from d5agent.runtime.control_client import ask, socket_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from d5agent.drill.child import Start
    from d5agent.drill.stage import Stage

_START_SECONDS = 60.0
_PROBE_SECONDS = 0.05
_END_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a verb of the command line ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


class Agent:
    """Starts, kills and asks the agent, as an operator and a power cut would."""

    def __init__(self, stage: Stage, *, start: Start = start_process) -> None:
        self._stage = stage
        self._start = start
        self.log = stage.folder / "d5agent.log"
        self._socket = socket_path(stage.folder / "state")
        environment = inherited_environment(
            AWS_ACCESS_KEY_ID=stage.s3.access_key, AWS_SECRET_ACCESS_KEY=stage.s3.secret_key
        )
        self._daemon = Child(self._argv("serve"), log=self.log, environment=environment, start=start)
        self._environment = environment
        self.peak_bytes = 0

    async def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self._daemon.start()
        await wait_until(self._answers, seconds=_START_SECONDS, what="the daemon answers", log=self.log)

    async def kill(self) -> None:
        """SIGKILL; of a daemon that has ended already, nothing."""
        if self._daemon.pid is not None:
            self.note_memory()
        await self._daemon.kill()

    async def stop(self) -> None:
        """SIGTERM, and time to drain."""
        await self._daemon.stop(grace_seconds=30)

    def note_memory(self) -> None:
        """Remember the most memory that any of the daemons has had in use (VmHWM, proc(5))."""
        status = Path(f"/proc/{self._daemon.pid}/status").read_text(encoding="utf-8")
        kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        self.peak_bytes = max(self.peak_bytes, int(kibibytes) * 1024)

    async def run(self, *arguments: str) -> Ended:
        """Run a verb of the command line to its end."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = self._start(self._argv(*arguments), output=output, errors=errors, environment=self._environment)
            try:
                while process.poll() is None:
                    await pause(_END_SECONDS)
            finally:
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)
            output.seek(0)
            errors.seek(0)
            return Ended(code=process.returncode or 0, out=output.read().decode(), err=errors.read().decode())

    async def call(self, *arguments: str) -> str:
        """Run a verb and return what it printed; OperatorError unless it ended with 0."""
        ended = await self.run(*arguments)
        if ended.code != 0:
            raise OperatorError(
                f"d5agent {' '.join(arguments)} ended with {ended.code}",
                hint=f"read {self.log}",
                said=(ended.out + ended.err).strip()[-2000:],
            )
        return ended.out

    async def json(self, *arguments: str) -> dict[str, Any]:
        """Return what a verb prints with --json."""
        values: dict[str, Any] = json.loads(await self.call(*arguments, "--json"))
        return values

    async def status(self) -> dict[str, Any]:
        """Ask the daemon how things stand."""
        async for answer in ask(self._socket, {"verb": "status"}):
            return answer
        raise OperatorError("the daemon said nothing", hint=f"read {self.log}")

    async def until(
        self,
        is_so: Callable[[dict[str, Any]], bool],
        *,
        what: str,
        seconds: float,
        failed_before: Collection[str] = (),
    ) -> dict[str, Any]:
        """Wait until the status is so; OperatorError when a service fails, or time is over.

        `failed_before`: services whose failure is known, until something starts them again.
        """
        known = set(failed_before)
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            status = await self.status()
            if is_so(status):
                return status
            known &= {name for name, row in status["services"].items() if row["state"] == "failed"}
            for name, row in status["services"].items():
                if row["state"] == "failed" and name not in known:
                    raise OperatorError(f"{name} failed: {row['error']}", hint=row["hint"], log=self.log)
            if asyncio.get_running_loop().time() > deadline:
                raise OperatorError(f"not within {seconds:g} s: {what}", hint=f"read {self.log}")
            await pause(_PROBE_SECONDS)

    def _argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "d5agent", *arguments, "--config", str(self._stage.config)]

    async def _answers(self) -> bool:
        self._daemon.require_alive()
        try:
            await self.status()
        except Exception:  # noqa: BLE001 -- not yet, whatever the reason: the log has it
            return False
        return True
