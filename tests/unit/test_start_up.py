"""What each verb imports: one that only talks to the daemon must not load the drivers, which take half a second."""

from __future__ import annotations

import asyncio
import json
import pkgutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import d5agent
import d5agent.plugins
from d5agent.core.run.progress import AgentProgress
from d5agent.core.run.services import PhaseState
from d5agent.core.run.status import status_of
from d5agent.errors import EXIT_DONE, EXIT_OPERATOR, EXIT_TRANSIENT, EXIT_USAGE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ROOT: Final = Path(d5agent.__file__).parents[1]
VENDORS: Final = ("aiobotocore", "aiohttp", "boto3", "botocore", "bson", "pymongo", "structlog", "tenacity", "urllib3")
OURS: Final = ("d5agent.drill", "d5agent.plugins", "d5agent.ports", "d5agent.steps", "d5agent.runtime.wiring")
LIGHT_ADAPTERS: Final = {"d5agent.adapters", "d5agent.adapters.clock", "d5agent.adapters.state"}
CLIENT_VERBS: Final = (
    ["status"],
    ["status", "--json"],
    ["start", "replication"],
    ["start", "restore", "--follow"],
    ["stop", "replication"],
    ["cutover"],
    ["cutover", "--yes"],
    ["start", "restore", "--mode", "live"],
    ["pause", "restore"],
    ["resume", "restore"],
)
WORKING_VERBS: Final = (["serve"], ["plan"], ["verify"], ["check"], ["log", "ls"], ["backups", "ls"])
_RUN: Final = """
import json, sys
from d5agent.cli import main
sys.argv[0] = "d5agent"
try:
    main()
finally:
    sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""
_BEGIN: Final = """
import asyncio, gc, json, sys
from d5agent.cli import main

def begin(work):
    work.close()
    looks = sum(generation["collections"] for generation in gc.get_stats()) - before
    found = {"modules": [*sys.modules], "looks": looks, "frozen": gc.get_freeze_count()}
    print(json.dumps({**found, "collects": gc.isenabled(), "threshold": gc.get_threshold()}))
    sys.exit(0)

asyncio.run = begin
sys.argv[0] = "d5agent"
before = sum(generation["collections"] for generation in gc.get_stats())
main()
"""
_TRACEBACK: Final = """
import sys
from d5agent.runtime.logs import configure_logs
configure_logs(to_journald=True)
import structlog
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().error("failed", exc_info=True)
assert "rich.console" not in sys.modules
from rich.console import Console
"""
_IMPORT: Final = "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps([*sys.modules]))"


async def python(code: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run a fresh interpreter; return its exit code and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        *arguments,
        cwd=ROOT,  # where -c looks first
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def run_cli(*arguments: str, **variables: str) -> tuple[int, set[str]]:
    """Run a verb; return its exit code and the modules that it has loaded."""
    code, _, err = await python(_RUN, *arguments, **variables)
    return code, set(json.loads(err.splitlines()[-1]))


async def begun(*arguments: str, **variables: str) -> dict[str, Any]:
    """Run a verb until its work would begin; return the modules that it has loaded, and how it collects garbage."""
    code, out, err = await python(_BEGIN, *arguments, **variables)
    assert (code, err) == (EXIT_DONE, "")
    found: dict[str, Any] = json.loads(out)
    return found


def heavy(modules: set[str]) -> list[str]:
    """Return what only a verb that works on data may load."""
    return sorted(
        name
        for name in modules
        if any(name == root or name.startswith(f"{root}.") for root in (*VENDORS, *OURS))
        or (name.startswith("d5agent.adapters") and name not in LIGHT_ADAPTERS)
    )


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Settings whose state directory is the test's own, without a daemon."""
    path = tmp_path / "d5agent.toml"
    path.write_text(
        f'[source]\nuri = "mongodb://a/"\n[target]\nuri = "mongodb://b/"\n[store]\nbucket = "c"\n'
        f'[state]\ndirectory = "{tmp_path}"\n'
    )
    return str(path)


@asynccontextmanager
async def fake_daemon(directory: Path, *answers: dict[str, Any]) -> AsyncGenerator[None]:
    """Answer each request on the control socket with `answers`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.writelines(json.dumps(answer).encode() + b"\n" for answer in answers)
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(serve, directory / "control.sock"):
        yield


@pytest.mark.parametrize("verb", CLIENT_VERBS, ids=" ".join)
async def test_client_verbs_load_no_driver(verb: list[str], config: str) -> None:
    code, modules = await run_cli(*verb, "--config", config)
    assert (code, heavy(modules)) == (EXIT_TRANSIENT, [])


async def test_status_of_daemon_loads_no_driver(config: str, tmp_path: Path) -> None:
    async with fake_daemon(tmp_path, status_of(PhaseState(), AgentProgress(), is_up=True)):
        code, modules = await run_cli("status", "--config", config)
    assert (code, heavy(modules)) == (EXIT_DONE, [])


async def test_accepted_start_loads_no_driver(config: str, tmp_path: Path) -> None:
    async with fake_daemon(tmp_path, {"accepted": "replication"}, {"exit": EXIT_DONE}):
        code, modules = await run_cli("start", "replication", "--config", config)
    assert (code, heavy(modules)) == (EXIT_DONE, [])


@pytest.mark.parametrize("verb", [["--help"], ["start", "--help"], ["log", "--help"]], ids=" ".join)
async def test_help_loads_neither_drivers_nor_settings(verb: list[str]) -> None:
    code, modules = await run_cli(*verb)
    assert (code, heavy(modules)) == (EXIT_DONE, [])
    assert "d5agent.settings" not in modules


@pytest.mark.parametrize("verb", [["start"], ["nonsense"], ["plan", "--nonsense"]], ids=" ".join)
async def test_wrong_usage_loads_no_driver(verb: list[str]) -> None:
    code, modules = await run_cli(*verb)
    assert (code, heavy(modules)) == (EXIT_USAGE, [])


async def test_completion_loads_no_driver() -> None:
    request = {"_D5AGENT_COMPLETE": "complete_bash", "COMP_WORDS": "d5agent sta", "COMP_CWORD": "1"}
    code, modules = await run_cli(**request)
    assert (code, heavy(modules)) == (EXIT_DONE, [])


@pytest.mark.parametrize("verb", [*CLIENT_VERBS, *WORKING_VERBS], ids=" ".join)
async def test_wrong_configuration_loads_no_driver(verb: list[str], config: str) -> None:
    code, modules = await run_cli(*verb, "--config", config, D5AGENT_NONSENSE="1")
    assert (code, heavy(modules)) == (EXIT_OPERATOR, [])


@pytest.mark.parametrize("module", ["inspecting_log", "inspecting_backups"])
async def test_log_and_backup_verbs_load_no_database_driver(module: str) -> None:
    _, out, _ = await python(_IMPORT, f"d5agent.runtime.{module}")
    modules = set(json.loads(out))
    assert {"pymongo", "structlog", "d5agent.plugins", "d5agent.runtime.wiring"} & modules == set()
    assert "aiobotocore" in modules


@pytest.mark.parametrize("module", ["inspecting_check", "inspecting_plan"])
async def test_check_and_plan_load_no_service(module: str) -> None:
    _, out, _ = await python(_IMPORT, f"d5agent.runtime.{module}")
    modules = set(json.loads(out))
    assert {"structlog", "d5agent.plugins", "d5agent.runtime.wiring", "d5agent.runtime.daemon"} & modules == set()
    assert "pymongo" in modules


async def test_plan_loads_no_page(config: str) -> None:
    modules = (await begun("plan", "--config", config))["modules"]
    assert [name for name in modules if name in {"d5agent.core.reports.html", "d5agent.core.reports.page_style"}] == []
    assert "d5agent.steps.plan.report" in modules


async def test_verify_loads_its_own_comparison_alone(config: str) -> None:
    modules = set((await begun("verify", "--config", config))["modules"])
    daemons = {"structlog", *(f"d5agent.runtime.{name}" for name in ("comparing_outside", "daemon", "wiring"))}
    comparisons = {f"d5agent.steps.compare.{name}" for name in ("outside", "undelivered", "divergence")}
    others = {*comparisons, "d5agent.steps.replay.lanes", "d5agent.steps.replay.replayer"}
    assert (daemons | others) & modules == set()
    assert "d5agent.plugins.verify" in modules


@pytest.mark.parametrize("verb", WORKING_VERBS, ids=" ".join)
async def test_imports_are_never_searched_for_garbage(verb: list[str], config: str) -> None:
    found = await begun(*verb, "--config", config)
    assert found["looks"] == 0
    assert found["frozen"] > len(found["modules"])
    assert (found["collects"], found["threshold"]) == (True, [50_000, 20, 50])


async def test_serve_loads_every_service_and_no_screen(config: str) -> None:
    modules = set((await begun("serve", "--config", config))["modules"])
    services = {name for _, name, _ in pkgutil.iter_modules(d5agent.plugins.__path__, "d5agent.plugins.")}
    assert services - modules == set()
    drawing = {name for name in modules if name.startswith(("rich.", "pygments", "d5agent.screen"))}
    assert drawing <= {"rich._extension"}  # all that `import rich` loads
    assert "structlog" in modules


@pytest.mark.parametrize("listen", ["", "127.0.0.1:9464"])
async def test_serve_loads_server_only_for_metrics(listen: str, config: str) -> None:
    modules = (await begun("serve", "--config", config, D5AGENT_METRICS__LISTEN=listen))["modules"]
    assert [name in modules for name in ("aiohttp.web", "d5agent.runtime.metrics")] == [bool(listen)] * 2


async def test_journal_shows_traceback_without_rich() -> None:
    _, out, err = await python(_TRACEBACK)
    assert ("Traceback (most recent call last)" in out, "ZeroDivisionError" in out, err) == (True, True, "")
