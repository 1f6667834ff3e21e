"""The command line: arguments to settings to the daemon, the control socket or the log; errors to exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d5agent import screen
from d5agent.errors import EXIT_BUG, EXIT_DONE, EXIT_TRANSIENT, AgentError, TransientError
from d5agent.runtime import inspecting
from d5agent.runtime.control import ask, socket_path
from d5agent.runtime.logs import configure_logs
from d5agent.runtime.serve import serve as serve_daemon
from d5agent.settings import Settings, load_settings, settings_path

if TYPE_CHECKING:
    from collections.abc import Coroutine

app = typer.Typer(
    help="The way back from Amazon DocumentDB to MongoDB.", no_args_is_help=True, pretty_exceptions_enable=False
)
log_app = typer.Typer(help="The stored operations, and their chain.", no_args_is_help=True)
app.add_typer(log_app, name="log")

Config = Annotated[
    Path | None,
    typer.Option("--config", help="The TOML file; else $D5AGENT_CONFIG, else /etc/d5agent/d5agent.toml."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Name = Annotated[str, typer.Argument(help="A service or a phase, such as replication, restore or clean.")]
Follow = Annotated[bool, typer.Option("--follow", help="Stay until it ends, and end with its result.")]
Keys = Annotated[list[str] | None, typer.Argument(help="Keys of segments, or beginnings of keys; all without one.")]


@app.command()
def serve(config: Config = None) -> None:
    """Run the daemon."""
    configure_logs(to_journald="JOURNAL_STREAM" in os.environ)  # noqa: TID251 -- says who reads our output
    notify_socket = os.environ.get("NOTIFY_SOCKET")  # noqa: TID251 -- systemd's, not a setting
    _end(_run(serve_daemon(_settings(config), notify_socket=notify_socket)))


@app.command()
def start(name: Name, *, follow: Follow = False, config: Config = None) -> None:
    """Start a service or a phase."""
    _end(_run(_ask(_settings(config), {"verb": "start", "name": name, "follow": follow})))


@app.command()
def stop(name: Name, config: Config = None) -> None:
    """Stop a service or a phase, drained."""
    _end(_run(_ask(_settings(config), {"verb": "stop", "name": name})))


@app.command()
def status(
    *,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")] = False,
    config: Config = None,
) -> None:
    """Say how things stand."""
    settings = _settings(config)
    while True:
        values = _run(inspecting.status(settings))
        _show(values, as_json=as_json, table=screen.status_table)
        if not watch:
            break
        _run(inspecting.pause(1))
    _end(EXIT_DONE if values["daemon"] == "up" else EXIT_TRANSIENT)


@app.command()
def cutover(*, follow: Follow = False, config: Config = None) -> None:
    """End a live restore: fence, last operations, verify."""
    _end(_run(_ask(_settings(config), {"verb": "cutover", "name": "restore", "follow": follow})))


@app.command()
def plan(
    *,
    divergence: Annotated[
        bool, typer.Option("--divergence", help="Compare as well what the outage did not touch.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Say what restore would do; write nothing."""
    values = _run(inspecting.plan(_settings(config), with_divergence=divergence))
    _show(values, as_json=as_json, table=screen.plan_table)


@app.command()
def verify(
    *,
    full: Annotated[bool, typer.Option("--full", help="Whole collections, not only what was touched.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Compare source and target; exit 0 only if they are equal."""
    values = _run(inspecting.verify(_settings(config), is_full=full))
    _show(values, as_json=as_json, table=screen.verify_table)
    _end(EXIT_DONE if values["equal"] else 78)


@app.command()
def check(*, as_json: Json = False, config: Config = None) -> None:
    """Look at all that the agent needs before it is needed, and say what to mend."""
    values = _run(inspecting.check(_settings(config)))
    _show(values, as_json=as_json, table=screen.check_table)
    _end(EXIT_DONE if values["ok"] else 78)


@log_app.command("ls")
def log_ls(keys: Keys = None, *, as_json: Json = False, config: Config = None) -> None:
    """List the segments that commits name."""
    values = _run(inspecting.list_segments(_settings(config), keys or []))
    _show(values, as_json=as_json, table=screen.segments_table)


@log_app.command("cat")
def log_cat(keys: Keys = None, *, as_json: Json = False, config: Config = None) -> None:
    """Print stored operations as extended JSON, one a line (--json changes nothing: it is JSON)."""
    del as_json
    _run(inspecting.print_operations(_settings(config), keys or [], sys.stdout.write))


@log_app.command("verify")
def log_verify(keys: Keys = None, *, as_json: Json = False, config: Config = None) -> None:
    """Check the chain, every hash and every count."""
    values = _run(inspecting.check_log(_settings(config), keys or []))
    _show(values, as_json=as_json, table=screen.log_table)


@app.command()
def drill(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up, and say how to look at them.")] = False,
    as_json: Json = False,
    operations: Annotated[int, typer.Option(help="Operations that the microservices acknowledge.", min=100)] = 4000,
    seed: Annotated[int, typer.Option(help="The workload's seed.")] = 5,
) -> None:
    """Perform the whole failback on this machine, on embedded servers."""
    from d5agent.drill.run import run_drill  # noqa: PLC0415 -- its data packages are not there in production

    _end(_run(run_drill(operations=operations, seed=seed, keep=keep, as_json=as_json)))


def main() -> None:
    """Run the command line. The only place that decides exit codes."""
    try:
        app()
    except AgentError as error:
        screen.print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output (head, a pager) has enough; not to fail again when it is flushed at the end:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BUG)


def _settings(config: Path | None) -> Settings:
    return load_settings(settings_path(config))


def _run(work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 -- whatever the work returns
    return asyncio.run(work)


def _end(code: int) -> None:
    raise typer.Exit(code)


def _show(values: dict[str, Any], *, as_json: bool, table: Any) -> None:  # noqa: ANN401 -- one of screen's tables
    if as_json:
        sys.stdout.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
    else:
        screen.print_(table(values))


async def _ask(settings: Settings, request: dict[str, Any]) -> int:
    """Send a request to the daemon, print what it answers, return the exit code that it names."""
    async for answer in ask(socket_path(settings.state.directory), request):
        screen.print_answer(answer)
        if "exit" in answer:
            return int(answer["exit"])
    raise TransientError(
        "the daemon has gone", hint="see journalctl -u d5agent; what it was asked goes on when it is up"
    )
