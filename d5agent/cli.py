"""The command line: arguments to settings to the daemon, the control socket or the log; errors to exit codes.

Each verb imports what it needs (ADR 30): the drivers take longer to import than the daemon takes to answer.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from d5agent.core.reports.addresses import addressed, addressed_json
from d5agent.errors import EXIT_BUG, EXIT_DONE, EXIT_OPERATOR, EXIT_TRANSIENT, AgentError, TransientError
from d5agent.runtime.garbage import collect_garbage_rarely, skip_collection_of_imports, skip_last_collection

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager

    from d5agent.runtime.daemon import Daemon
    from d5agent.settings import Settings

app = typer.Typer(
    help="The way back from Amazon DocumentDB to MongoDB.", no_args_is_help=True, pretty_exceptions_enable=False
)
log_app = typer.Typer(help="The stored operations, and their chain.", no_args_is_help=True)
app.add_typer(log_app, name="log")
backups_app = typer.Typer(help="The dumps of both databases.", no_args_is_help=True)
app.add_typer(backups_app, name="backups")

Config = Annotated[
    Path | None,
    typer.Option("--config", help="The TOML file; else $D5AGENT_CONFIG, else /etc/d5agent/d5agent.toml."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Name = Annotated[str, typer.Argument(help="A service or a phase, such as replication, restore or clean.")]
Follow = Annotated[bool, typer.Option("--follow", help="Stay until it ends, and end with its result.")]
RunId = Annotated[str | None, typer.Argument(help="The run of a backup; the last one without it.")]
Mode = Literal["drained", "live"]
Keys = Annotated[
    list[str] | None, typer.Argument(help="Keys or addresses of segments, or their beginnings; all without one.")
]


@app.command()
def serve(config: Config = None) -> None:
    """Run the daemon."""
    settings = _settings(config)
    from d5agent.runtime.logs import configure_logs
    from d5agent.runtime.serve import serve as serve_daemon

    to_journald = "JOURNAL_STREAM" in os.environ  # noqa: TID251 -- says who reads our output
    configure_logs(to_journald=to_journald, url_of=settings.store.url_of)
    notify_socket = os.environ.get("NOTIFY_SOCKET")  # noqa: TID251 -- systemd's, not a setting
    work = serve_daemon(
        settings,
        reread=lambda: _settings(config),
        notify_socket=notify_socket,
        serve_metrics=_metrics(settings.metrics.listen),
    )
    _end(_run(settings, work))


@app.command()
def start(  # noqa: PLR0913 -- an option is a parameter to typer
    name: Name,
    *,
    follow: Follow = False,
    force: Annotated[
        str | None,
        typer.Option(
            "--force", metavar="RUN_ID", help="With clean: delete the log of this run though nothing proves it."
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option("--mode", help="With restore: read-only first, or while applications write on; kept for the run."),
    ] = None,
    accept_differences: Annotated[
        str | None,
        typer.Option(
            "--accept-differences", metavar="RUN_ID", help="With clean: go on although the reports name differences."
        ),
    ] = None,
    accept_late: Annotated[
        str | None,
        typer.Option(
            "--accept-late", metavar="RUN_ID", help="With monitor-restore: write the late operations that it reported."
        ),
    ] = None,
    discard_late: Annotated[
        str | None,
        typer.Option(
            "--discard-late", metavar="RUN_ID", help="With monitor-restore: leave MongoDB as it is, without them."
        ),
    ] = None,
    again: Annotated[
        str | None,
        typer.Option("--again", metavar="RUN_ID", help="With restore: the certificate is void, restore all of it."),
    ] = None,
    config: Config = None,
) -> None:
    """Start a service or a phase."""
    words = {
        "accept_differences": accept_differences,
        "accept_late": accept_late,
        "discard_late": discard_late,
        "again": again,
    }
    request = {"verb": "start", "name": name, "follow": follow, "force": force, "mode": mode, **words}
    _end(_asked(config, request))


@app.command()
def stop(name: Name, config: Config = None) -> None:
    """Stop a service or a phase, drained."""
    _end(_asked(config, {"verb": "stop", "name": name}))


@app.command()
def status(
    *,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")] = False,
    config: Config = None,
) -> None:
    """Say how things stand."""
    settings = _settings(config)
    values = _run(settings, _status(settings, as_json=as_json, again=watch))
    _end(EXIT_DONE if values["daemon"] == "up" else EXIT_TRANSIENT)


@app.command()
def cutover(
    *,
    follow: Follow = False,
    call_off: Annotated[
        bool, typer.Option("--call-off", help="Call it off before the fence: the application may write again.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Without \\[cutover] command: the application is read-only, I have proved it.")
    ] = False,
    config: Config = None,
) -> None:
    """End a live restore: the application read-only, fence, last operations, verify."""
    request = {"verb": "cutover", "follow": follow, "call_off": call_off, "confirmed": yes}
    _end(_asked(config, request))


@app.command()
def pause(name: Name, config: Config = None) -> None:
    """Let restore write nothing until it is resumed; a restart leaves it paused."""
    _end(_asked(config, {"verb": "pause", "name": name}))


@app.command()
def resume(name: Name, config: Config = None) -> None:
    """Let a paused restore go on."""
    _end(_asked(config, {"verb": "resume", "name": name}))


@app.command()
def plan(
    *,
    divergence: Annotated[
        bool, typer.Option("--divergence", help="Compare as well what the outage did not touch.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Say what restore would do, and write nothing but a report of it; exit 0 only if it would get through."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_plan
    from d5agent.screen.plan import plan_table

    values = _run(settings, inspecting_plan.plan(settings, with_divergence=divergence))
    _show(settings, values, as_json=as_json, table=plan_table)
    _end(EXIT_DONE if values["go"] else 78)


@app.command()
def verify(
    *,
    full: Annotated[bool, typer.Option("--full", help="Whole collections, not only what was touched.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Compare source and target; exit 0 only if they are equal."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_verify
    from d5agent.screen.verify import verify_progress, verify_table

    with verify_progress() as on_progress:
        values = _run(settings, inspecting_verify.verify(settings, is_full=full, on_progress=on_progress))
    _show(settings, values, as_json=as_json, table=verify_table)
    is_certified = values["certificate"] is None or values["certificate"]["valid"]
    _end(EXIT_DONE if values["equal"] and is_certified else 78)


@app.command()
def check(*, as_json: Json = False, config: Config = None) -> None:
    """Look at all that the agent needs before it is needed, and say what to mend."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_check
    from d5agent.screen.terminal import check_table

    values = _run(settings, inspecting_check.check(settings))
    _show(settings, values, as_json=as_json, table=check_table)
    _end(EXIT_DONE if values["ok"] else 78)


@log_app.command("ls")
def log_ls(keys: Keys = None, *, as_json: Json = False, config: Config = None) -> None:
    """List the segments that commits name."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_log
    from d5agent.screen.terminal import segments_table

    values = _run(settings, inspecting_log.list_segments(settings, keys or []))
    _show(settings, values, as_json=as_json, table=segments_table)


@log_app.command("cat")
def log_cat(keys: Keys = None, *, as_json: Json = False, config: Config = None) -> None:
    """Print stored operations as extended JSON, one a line (--json changes nothing: it is JSON)."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_log

    del as_json
    _run(settings, inspecting_log.print_operations(settings, keys or [], sys.stdout.write))


@log_app.command("verify")
def log_verify(keys: Keys = None, *, as_json: Json = False, config: Config = None) -> None:
    """Check the chain, every hash and every count."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_log
    from d5agent.screen.terminal import log_table

    values = _run(settings, inspecting_log.check_log(settings, keys or []))
    _show(settings, values, as_json=as_json, table=log_table)


@backups_app.command("ls")
def backups_ls(*, as_json: Json = False, config: Config = None) -> None:
    """List the backups of all runs."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_backups
    from d5agent.screen.backups import backups_text

    _show(settings, _run(settings, inspecting_backups.list_all(settings)), as_json=as_json, table=backups_text)


@backups_app.command("show")
def backups_show(run_id: RunId = None, *, as_json: Json = False, config: Config = None) -> None:
    """Show what a backup holds, and the keys of its archives."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_backups
    from d5agent.screen.backups import manifests_text

    _show(settings, _run(settings, inspecting_backups.show(settings, run_id)), as_json=as_json, table=manifests_text)


@backups_app.command("verify")
def backups_verify(run_id: RunId = None, *, as_json: Json = False, config: Config = None) -> None:
    """Read every archive of a backup; exit 0 only if each is there, whole, and has its sha256."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_backups
    from d5agent.screen.backups import archives_table

    values = _run(settings, inspecting_backups.verify(settings, run_id))
    _show(settings, values, as_json=as_json, table=archives_table)
    _end(EXIT_DONE if values["whole"] else EXIT_OPERATOR)


@backups_app.command("cat")
def backups_cat(
    key: Annotated[str, typer.Argument(help="The address or the key of an archive, as show lists it.")],
    config: Config = None,
) -> None:
    """Write an archive to standard output, for mongorestore --archive --gzip."""
    settings = _settings(config)
    from d5agent.runtime import inspecting_backups

    _run(settings, inspecting_backups.write_archive(settings, key, sys.stdout.buffer.write))


@app.command()
def drill(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up, and say how to look at them.")] = False,
    as_json: Json = False,
    operations: Annotated[int, typer.Option(help="Operations that the microservices acknowledge.", min=100)] = 4000,
    seed: Annotated[int, typer.Option(help="The workload's seed.")] = 5,
    mode: Annotated[Mode, typer.Option(help="How to restore: read-only first, or while they write on.")] = "drained",
) -> None:
    """Perform the whole failback on this machine, on embedded servers."""
    from d5agent.drill.run import run_drill  # its data packages are not there in production

    _end(_run(None, run_drill(operations=operations, seed=seed, mode=mode, keep=keep, as_json=as_json)))


def main() -> None:
    """Run the command line. The only place that decides exit codes."""
    skip_collection_of_imports()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that is not UTF-8; in JSON its escapes are valid
    try:
        app()
    except AgentError as error:
        from d5agent.screen.terminal import print_error

        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output (head, a pager) has enough; not to fail again when it is flushed at the end:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BUG)
    finally:
        skip_last_collection()


def _settings(config: Path | None) -> Settings:
    from d5agent.settings import load_settings, settings_path

    return load_settings(settings_path(config))


def _metrics(listen: str | None) -> Callable[[Daemon], AbstractAsyncContextManager[None]] | None:
    """Return what serves metrics; without an address nothing, and aiohttp's server is not imported."""
    if listen is None:
        return None
    from d5agent.runtime.metrics import metrics_server

    return partial(metrics_server, listen)


def _run(settings: Settings | None, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 -- whatever the work returns
    """Run a verb. Keys in its errors become addresses in the bucket of the settings."""
    import asyncio

    collect_garbage_rarely()
    try:
        return asyncio.run(work)
    except AgentError as error:
        if settings is not None:
            error.say(lambda value: addressed(value, settings.store.url_of))
        raise


def _asked(config: Path | None, request: dict[str, Any]) -> int:
    settings = _settings(config)
    code: int = _run(settings, _ask(settings, request))
    return code


def _end(code: int) -> None:
    raise typer.Exit(code)


def _show(settings: Settings, values: dict[str, Any], *, as_json: bool, table: Any) -> None:  # noqa: ANN401 -- one of screen's tables
    if as_json:
        _print_json(addressed_json(values, settings.store.url_of))
        return
    from d5agent.screen.terminal import print_

    print_(table(addressed(values, settings.store.url_of)))


def _print_json(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")


async def _status(settings: Settings, *, as_json: bool, again: bool) -> dict[str, Any]:
    """Show the status, with `again` every second: in its place on a terminal, one after the other elsewhere."""
    from d5agent.adapters.clock import SystemClock

    with _status_screen(as_json=as_json, again=again) as show:
        while True:
            values: dict[str, Any] = addressed(await _current_status(settings.state.directory), settings.store.url_of)
            show(values)
            if not again:
                return values
            await SystemClock().sleep(1)


async def _current_status(directory: Path) -> dict[str, Any]:
    """Return the daemon's status; when it is down, what its state file says."""
    from d5agent.runtime.control_client import ask, socket_path

    try:
        async for answer in ask(socket_path(directory), {"verb": "status"}):
            return answer
    except TransientError:
        pass  # said in the status itself
    from d5agent.core.run.progress import AgentProgress
    from d5agent.core.run.status import status_of
    from d5agent.runtime.status import local_phase

    return status_of(local_phase(directory), AgentProgress(), is_up=False)


@contextmanager
def _status_screen(*, as_json: bool, again: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give what shows a status: as a table, or as JSON, which needs no rich."""
    if as_json:
        yield _print_json
        return
    from rich.console import Console

    from d5agent.core.run.read_status import read_status
    from d5agent.screen.status import status_table
    from d5agent.screen.terminal import redrawn

    with redrawn(Console(highlight=False), is_wanted=again) as show:
        yield lambda values: show(status_table(read_status(values)))


async def _ask(settings: Settings, request: dict[str, Any]) -> int:
    """Send a request to the daemon, print what it answers, return the exit code that it names.

    What it asks is put to whoever sits at a terminal; elsewhere nobody can say yes.
    """
    from d5agent.runtime.control_client import ask, socket_path
    from d5agent.screen.terminal import print_answer

    async for said in ask(socket_path(settings.state.directory), request):
        answer: dict[str, Any] = addressed(said, settings.store.url_of)
        if "question" in answer and sys.stdin.isatty() and typer.confirm(answer["question"]):
            return await _ask(settings, {**request, "confirmed": True})
        print_answer(answer)
        if "exit" in answer:
            return int(answer["exit"])
    raise TransientError(
        "the daemon has gone", hint="see journalctl -u d5agent; what it was asked goes on when it is up"
    )
