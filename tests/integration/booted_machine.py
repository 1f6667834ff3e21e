"""A machine of a test's own: systemd booted in a container, from a root that nothing changes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import typing_extensions

import d5agent
from d5agent.drill.tools import inherited_environment, tools_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Result = TypeVar("_Result")
_PATH: Final = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
_OURS: Final = "/opt/d5agent"  # where the package lies in there
# What the daemon's unit takes away from it.
_HARDENED: Final = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "ProtectProc=invisible",
    "ProtectKernelTunables=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
)


def until(done: Callable[[], _Result], *, what: str, seconds: float = 120) -> _Result:
    """Return the first answer that is true; AssertionError if none comes."""
    deadline = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return result


class Machine:
    """A booted systemd: commands run in it as root, or as a user in a hardened unit."""

    def __init__(self, root: Path, console: Path) -> None:
        self._console = console
        package = Path(d5agent.__file__).parent
        with console.open("wb") as output:
            # It ends with us, even when we are killed. By TERM: its init would survive a KILL of nspawn.
            self._nspawn = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "TERM", "--"),
                    *("systemd-nspawn", "--quiet", "--boot", "--console=pipe", f"--directory={root}"),
                    *(f"--machine=d5agent-{os.getpid()}", "--register=no", "--keep-unit"),
                    *("--volatile=overlay", "--private-network"),
                    f"--bind-ro={package}:{_OURS}/{package.name}",
                    f"--bind-ro={typing_extensions.__file__}:{_OURS}/typing_extensions.py",
                ],
                env=inherited_environment(SYSTEMD_NSPAWN_LOCK="0"),  # nobody writes to the root: many may boot it
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._init = 0

    def until_up(self) -> None:
        """Wait for the end of the boot."""
        self._init = until(self._find_init, what="systemd starts in the container")
        until(self.is_up, what="systemd has booted")

    def _find_init(self) -> int:
        assert self._nspawn.poll() is None, f"systemd-nspawn cannot boot here: {self._last_words()}"
        pid = self._nspawn.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            with suppress(FileNotFoundError, ProcessLookupError):  # nspawn has helpers, which come and go
                if Path(f"/proc/{child}/comm").read_text(encoding="ascii").strip() == "systemd":
                    return int(child)
        return 0

    def _last_words(self) -> str:
        return self._console.read_text(encoding="utf-8", errors="replace")[-2000:].strip()

    def run(self, *argv: str, stdin: str = "", ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in there as root; AssertionError if it fails, unless `ok` is false."""
        place = f"/proc/{self._init}/root"
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        enter = ("nsenter", f"--target={self._init}", *namespaces, f"--root={place}", f"--wd={place}")
        ended = subprocess.run(
            [*enter, "--", "env", "-i", _PATH, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ended.returncode == 0 or not ok, f"{argv[0]}: {ended.stderr or ended.stdout}"
        return ended

    def run_hardened(self, user: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in there as the user, in a unit as strict as the daemon's; it may fail."""
        unit = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--property=User={user}"]
        unit += [f"--property={each}" for each in _HARDENED]
        unit += [f"--setenv=PYTHONPATH={_OURS}", "--setenv=PYTHONDONTWRITEBYTECODE=1"]
        return self.run(*unit, "--", *argv, ok=False)

    def keep_running(self, user: str) -> int:
        """Start a unit of the user's that does nothing; return its process id in there."""
        name = f"idle-{user}"
        unit = ("systemd-run", "--quiet", f"--unit={name}", "--property=Type=exec", f"--property=User={user}")
        self.run(*unit, "--", "sleep", "infinity")
        return int(self.run("systemctl", "show", "--property=MainPID", "--value", name).stdout)

    def is_up(self) -> bool:
        """Whether it runs and nothing has begun to shut it down."""
        if self._nspawn.poll() is not None:
            return False
        return self.run("systemctl", "is-system-running", ok=False).stdout.strip() in {"running", "degraded"}

    def how_it_ended(self) -> int:
        """Wait until it is off; return nspawn's exit status: 0 after a power-off, 133 after a reboot."""
        try:
            return self._nspawn.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it is still up: {self._last_words()}") from None

    def is_gone(self) -> bool:
        """Whether its init is no more, and so nothing that ran under it."""
        return not self._init or not Path(f"/proc/{self._init}").exists()

    def end(self) -> None:
        """Switch it off at once, whatever it does; nothing of it is left."""
        try:
            if self._init and self._nspawn.poll() is None:
                self.run("systemctl", "poweroff", "--force", "--force", ok=False)
            self._nspawn.terminate()  # unless it is over: nspawn then sees to the end of what it has begun
            self._nspawn.wait(timeout=15)
        finally:
            if self._nspawn.poll() is None:
                self._kill()

    def _kill(self) -> None:
        """Take init away, and all with it; then nspawn."""
        if init := self._find_init():
            os.kill(init, signal.SIGKILL)
        self._nspawn.kill()
        self._nspawn.wait()


@contextmanager
def booted_machine(folder: Path) -> Iterator[Machine]:
    """A machine from the root that `make test-system` sets up."""
    root = tools_folder().resolve() / "container"
    assert root.is_dir(), f"no root to boot at {root}: tools/setup.sh --with-container makes it"
    assert os.getuid() == 0, "only root can boot a container"
    machine = Machine(root, folder / "console")
    try:
        machine.until_up()
        yield machine
    finally:
        machine.end()
        assert machine.is_gone(), "a process of the container is left"
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
        assert str(root) not in mounts, "a mount of the container is left"
