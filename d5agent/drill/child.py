"""A server process of the drill: it never outlives us, and its output goes to a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

from d5agent.drill.tools import find_tool
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path
    from typing import IO, Protocol

    class Process(Protocol):
        """What is needed of a Popen."""

        returncode: int | None
        """The exit status, once `poll` or `wait` has seen it."""

        @property
        def pid(self) -> int: ...

        def poll(self) -> int | None:
            """Return the exit status, or None while it runs."""

        def wait(self, timeout: float | None = None) -> int:
            """Return the exit status; subprocess.TimeoutExpired when it runs on."""

    class Start(Protocol):
        """What starts a process. Its standard input is empty."""

        def __call__(
            self, argv: Sequence[str], *, output: IO[bytes], errors: IO[bytes], environment: Mapping[str, str] | None
        ) -> Process: ...


_PROBE_SECONDS = 0.02
_REAP_SECONDS = 10.0
_held: list[socket.socket] = []


async def pause(seconds: float) -> None:
    """Sleep in real time: real servers know no other."""
    await asyncio.sleep(seconds)  # noqa: TID251 - the drill's only sleep, see above


async def wait_until(probe: Callable[[], Awaitable[bool]], *, seconds: float, what: str, log: Path) -> None:
    """Return when the probe says yes; after so many seconds say what did not come true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await probe():
        if asyncio.get_running_loop().time() > deadline:
            raise OperatorError(f"not within {seconds:g} s: {what}", hint=f"read {log}")
        await pause(_PROBE_SECONDS)


def free_port() -> int:
    """Return a port of 127.0.0.1 for a server of ours; no other process is given it as long as this one lives.

    It stays bound here: the kernel hands it to nobody. Since SO_REUSEADDR is set afterwards, a server that sets it too,
    as all of ours do, can bind it, stop, and bind it again.
    """
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held.append(holder)
    port: int = holder.getsockname()[1]
    return port


async def accepts_connections(port: int) -> bool:
    """Say whether anybody listens on that port of 127.0.0.1."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def start_process(
    argv: Sequence[str], *, output: IO[bytes], errors: IO[bytes], environment: Mapping[str, str] | None
) -> Process:
    """Start a process in a session of its own; SIGKILL reaches it when the thread that started it ends."""
    # setpriv instead of a preexec_fn: no Python code runs between fork and exec.
    return subprocess.Popen(
        [str(find_tool("setpriv")), "--pdeathsig", "KILL", "--", *argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=environment,
        start_new_session=True,
    )


class Child:
    """One process, whose output goes to a file.

    It is bound to no event loop: a test session starts it in one loop and stops it in another.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        start: Start = start_process,
    ) -> None:
        self.log = log
        self._argv = list(argv)
        self._environment = environment
        self._start = start
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.pid is not None:
            return
        with self.log.open("ab") as output:
            self._process = self._start(self._argv, output=output, errors=output, environment=self._environment)

    def require_alive(self) -> None:
        """Complain when it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise OperatorError(
                "a server of the drill has ended by itself",
                hint=f"read {self.log}",
                program=self._argv[0],
                status=self._process.returncode,
            )

    async def kill(self) -> None:
        """SIGKILL, as a power cut would end it."""
        await self._signal(signal.SIGKILL, _REAP_SECONDS)

    async def stop(self, *, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL when the grace is over."""
        try:
            await self._signal(signal.SIGTERM, grace_seconds)
        finally:
            self.kill_now()

    def kill_now(self) -> None:
        """SIGKILL without waiting for anything but the kernel: for a finally."""
        if self._process is not None and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_SECONDS)

    async def _signal(self, number: signal.Signals, seconds: float) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = asyncio.get_running_loop().time() + seconds
        while process.poll() is None and asyncio.get_running_loop().time() < deadline:
            await pause(_PROBE_SECONDS)
