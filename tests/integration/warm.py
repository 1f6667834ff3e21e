"""Agents that start at once: each is forked from a process that has imported all of the agent.

Most of the time of a short test went into imports, over and over. What runs after the fork is what `python -m d5agent`
runs, in a process of its own; tests of the start itself (test_daemon_process.py) and the drill start it cold.
"""

from __future__ import annotations

import ctypes
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from d5agent.drill.child import start_process
from d5agent.drill.tools import inherited_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.drill.child import Process

_PROJECT: Final = Path(__file__).resolve().parents[2]
_COLD: Final = [sys.executable, "-m", "d5agent"]
_MOST_BYTES: Final = 200_000  # of a request: arguments and environment
_PR_SET_PDEATHSIG: Final = 1
_WAIT_SECONDS: Final = 0.005


class WarmProcess:
    """A process that the server has forked; it looks like a Popen."""

    def __init__(self, pid: int, server: WarmStart) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.status_of(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; TimeoutExpired when it runs on."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("d5agent", timeout or 0)
            time.sleep(_WAIT_SECONDS)
        return status


class WarmStart:
    """Starts agents by a fork of its server, and everything else as usual."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended: dict[int, int] = {}
        self._server = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                sys.executable,
                "-m",
                "tests.integration.warm",
                str(theirs.fileno()),
            ],
            cwd=_PROJECT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()

    def close(self) -> None:
        """End the server, and with it all that it has started."""
        self._socket.close()
        self._server.kill()
        self._server.wait()

    def __call__(
        self, argv: Sequence[str], *, output: IO[bytes], errors: IO[bytes], environment: Mapping[str, str] | None
    ) -> Process:
        """Start an agent, or another program."""
        if list(argv[: len(_COLD)]) != _COLD:
            return start_process(argv, output=output, errors=errors, environment=environment)
        request = {"arguments": list(argv[len(_COLD) :]), "environment": environment or inherited_environment()}
        socket.send_fds(self._socket, [json.dumps(request).encode()], [output.fileno(), errors.fileno()])
        while "started" not in (answer := self._read()):
            pass
        return WarmProcess(int(answer["started"]), self)

    def status_of(self, pid: int) -> int | None:
        """Return the exit status of a process that has ended, as a Popen's: negative for a signal."""
        while pid not in self._ended:
            try:
                self._read(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
        return self._ended.pop(pid)

    def _read(self, flags: int = 0) -> dict[str, int]:
        """Read one message; who has ended is noted."""
        message = self._socket.recv(_MOST_BYTES, flags)
        if not message:
            raise ConnectionError("the process that forks agents has ended: its words are above")
        answer: dict[str, int] = json.loads(message)
        if "ended" in answer:
            self._ended[answer["ended"]] = answer["status"]
        return answer


def _serve(requests: socket.socket) -> list[str]:
    """Fork on request, and tell who has ended. Returns in the children: what each is to be started with."""
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            if key.data is not None:
                selector.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(key.data, 0)
                _tell(requests, ended=key.data, status=os.waitstatus_to_exitcode(status))
                continue
            message, fds, _, _ = socket.recv_fds(requests, _MOST_BYTES, 2)
            if not message:
                sys.exit(0)
            pid = os.fork()
            if pid == 0:
                selector.close()
                requests.close()
                return _become(json.loads(message), fds)
            for fd in fds:
                os.close(fd)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            _tell(requests, started=pid)


def _tell(requests: socket.socket, **answer: int) -> None:
    requests.send(json.dumps(answer).encode())


def _become(request: dict[str, object], fds: list[int]) -> list[str]:
    """Make a process of its own of this one, as `start_process` does; return its arguments."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    for number, fd in enumerate(fds, start=1):
        os.dup2(fd, number)
        os.close(fd)
    environment, arguments = request["environment"], request["arguments"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, list)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def main() -> None:
    """Import all of the agent, then serve."""
    package = import_module("d5agent")
    for module in pkgutil.walk_packages(package.__path__, "d5agent."):
        if not module.name.startswith(("d5agent.drill", "d5agent.__main__")):
            import_module(module.name)
    sys.argv[1:] = _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("d5agent", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
