"""What all suites share: the run's folder, real servers, what a failed test prints, and hypothesis profiles."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, settings

from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod
from tests.running import running

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.register_profile(
    "soak",
    deadline=None,
    max_examples=5_000,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- a folder of our own in it
_MEMORY_BYTES: Final = 12 * 1024**3  # four workers were seen to write 4 GiB, and their processes to take as much
_LAST_LINES: Final = 40
_END_SECONDS: Final = 10.0
# It waits until the run has ended, however it did, and for its last processes to let go of their files.
_REMOVE: Final = 'read -r _; for _ in $(seq 50); do rm -rf "$1" 2>/dev/null && exit; sleep 0.2; done'
_began: Final = pytest.StashKey[float]()
_folder: Final = pytest.StashKey[Path]()
_remover: Final = pytest.StashKey[subprocess.Popen[bytes]]()
_numbers: Final = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a folder of its own for all that it writes; it is removed at the end, after a SIGKILL as well."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        folder = Path(tempfile.mkdtemp(prefix="d5-tests-", dir=_MEMORY if _has_memory() else None))
        config.stash[_remover] = subprocess.Popen(
            ["sh", "-c", _REMOVE, "sh", str(folder)], stdin=subprocess.PIPE, start_new_session=True
        )
    else:
        folder = Path(os.environ["TMPDIR"]) / worker
        folder.mkdir()
    config.stash[_folder] = folder
    config.option.basetemp = str(folder / "pytest")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _has_memory() -> bool:
    """Say whether the run may write to memory instead of a disk: servers and agent wait for thousands of fsyncs.

    No test takes the power away, so that none can tell the difference.
    """
    if "TMPDIR" in os.environ or not _MEMORY.is_dir() or os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
        return False
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = int(facts["MemAvailable"].removesuffix("kB")) * 1024
    return min(shutil.disk_usage(_MEMORY).free, available) > _MEMORY_BYTES


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder."""
    remover = config.stash.get(_remover, None)
    if remover is not None:
        remover.communicate()


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """See that no process outlives the run."""
    yield
    if _remover not in session.config.stash:
        return
    deadline = time.monotonic() + _END_SECONDS
    while (left := _processes_in(session.config.stash[_folder])) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        print("\nprocesses that outlive the tests:", *left, sep="\n  ")  # noqa: T201 -- pytest shows it


def _processes_in(folder: Path) -> list[str]:
    """Return the command lines of the processes, but for ours, that were told to use the run's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_one = f"TMPDIR={folder}".encode() in (process / "environ").read_bytes()
            if is_one and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended, or is another user's
    return [each for each in found if each]  # a zombie has none


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when a test begins."""
    item.stash[_began] = time.time()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show below a failed test how to repeat it, and the last lines of each process that was at work in it."""
    report = yield
    if report.failed:
        seed = item.config.getoption("randomly_seed", None)
        report.sections.append(("to repeat it", f".venv/bin/pytest '{item.nodeid}' --randomly-seed={seed}"))
        for log in sorted(item.config.stash[_folder].rglob("*.log")):
            if log.stat().st_mtime >= item.stash[_began]:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
                report.sections.append((f"the last lines of {log}", "\n".join(lines)))
    return report


@pytest.fixture(scope="session")
def source_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """The server whose changes are captured."""
    folder = tmp_path_factory.mktemp("source")
    with running(Mongod(folder), folder) as server:
        yield server


@pytest.fixture(scope="session")
def target_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """The server that is restored into."""
    folder = tmp_path_factory.mktemp("target")
    with running(Mongod(folder), folder) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    folder = tmp_path_factory.mktemp("s3")
    with running(S3Server(folder), folder) as server:
        yield server


@pytest.fixture
def fresh_name() -> str:
    """A name that no other test uses, for a bucket or a database."""
    return f"test-{next(_numbers)}"
