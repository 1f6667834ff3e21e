"""What a command costs before its work begins: CPU of a fresh interpreter, beside one that only imports the libraries.

The verbs that talk to the daemon run to their end, `status` with and without a daemon. The others run until their work
would begin: arguments and settings are read, everything is imported. One round runs each command once, so that load on
the machine meets all of them; the figures are medians of user and system time.

    python bench/start_up.py [--rounds N] [TREE …]      trees of d5agent to compare, such as another checkout; else this
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socketserver
import statistics
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path

from typing_extensions import override

BASELINE = "import typer, rich, pydantic_settings"
_RUN = "import sys; from d5agent.cli import main; sys.argv[0] = 'd5agent'; main()"
_IMPORT = f"import asyncio; asyncio.run = lambda work: (work.close(), sys.exit(0)); {_RUN}"
_ASKED = (
    ["--help"],
    ["start", "--help"],
    ["start"],
    ["start", "replication", "--config", "absent.toml"],
    ["plan", "--config", "absent.toml"],
    ["status"],
    ["status", "--json"],
    ["status", "--config", "up.toml"],
    ["start", "replication"],
    ["stop", "replication"],
    ["pause", "restore"],
    ["resume", "restore"],
    ["cutover"],
)
_WORKING = (["log", "ls"], ["backups", "ls"], ["check"], ["plan"], ["verify"], ["serve"])
_SETTINGS = """
[source]
uri = "mongodb://127.0.0.1/"
[target]
uri = "mongodb://127.0.0.1/"
[store]
bucket = "bucket"
[state]
directory = "{directory}"
"""
_STATUS = {
    "daemon": "up",
    "phase": "idle",
    "run_id": "",
    "ready_at": "",
    "services": {},
    "capture": {"operations": None},
    "restore": {"is_paused": False},
    "fence": None,
    "verify": {"compared": None, "compared_total": None, "different": None},
}


class _Daemon(socketserver.StreamRequestHandler):
    """Answers what a daemon without a run answers to `status`."""

    @override
    def handle(self) -> None:
        """Answer one request."""
        self.rfile.readline()
        self.wfile.write(json.dumps(_STATUS).encode() + b"\n")


def cpu_seconds(code: str, arguments: list[str], tree: Path) -> float:
    """Run Python in a process of its own; return its user and system time."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "D5AGENT_CONFIG": "down.toml", "COLUMNS": "120"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed agent has its bytecode
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code, *arguments], environment, file_actions=silent)
    _, status, usage = os.wait4(pid, 0)
    assert os.WIFEXITED(status), arguments
    assert os.WEXITSTATUS(status) != 1, f"{arguments} ended with a bug in {tree}"
    return usage.ru_utime + usage.ru_stime


def measure(trees: list[Path], rounds: int) -> None:
    """Run everything once a round, and print the medians."""
    verbs = [(_RUN, verb) for verb in _ASKED] + [(_IMPORT, verb) for verb in _WORKING]
    taken: dict[tuple[str, Path], list[float]] = {}
    for number in range(rounds + 1):
        base = cpu_seconds(BASELINE, [], trees[0])
        seconds = {(" ".join(verb), tree): cpu_seconds(code, verb, tree) for code, verb in verbs for tree in trees}
        if number > 0:  # the first round writes the bytecode
            for key, value in {**seconds, (BASELINE, trees[0]): base}.items():
                taken.setdefault(key, []).append(value)
    base = statistics.median(taken[BASELINE, trees[0]])
    print(f"{BASELINE}: {base * 1000:.0f} ms of CPU, median of {rounds} rounds")
    for _, verb in verbs:
        medians = (statistics.median(taken[" ".join(verb), tree]) for tree in trees)
        figures = "   ".join(f"{median * 1000:>5.0f} ms {median / base:>5.2f}" for median in medians)
        print(f"{' '.join(verb):<45} {figures}")


def main() -> None:
    """Measure the trees named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("trees", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    chosen = parser.parse_args()
    trees = [tree.resolve() for tree in chosen.trees]
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    libraries = ("typer", "rich", "pydantic-settings", "aiobotocore", "pymongo")
    print(f"versions: Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in libraries)}")
    with tempfile.TemporaryDirectory(prefix="d5-start-") as folder:
        os.chdir(folder)
        for name in ("up", "down"):
            Path(name).mkdir()
            Path(f"{name}.toml").write_text(_SETTINGS.format(directory=Path(name).resolve()))
        with socketserver.ThreadingUnixStreamServer("up/control.sock", _Daemon) as daemon:
            threading.Thread(target=daemon.serve_forever, daemon=True).start()
            measure(trees, chosen.rounds)
            daemon.shutdown()


if __name__ == "__main__":
    main()
