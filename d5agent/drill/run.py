"""`d5agent drill`: the whole failback on this machine, on real servers, and the proof that nothing was lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from d5agent.drill import acts
from d5agent.drill.agent import Agent
from d5agent.drill.findings import Findings
from d5agent.drill.stage import BUCKET, open_stage
from d5agent.drill.workload import Workload
from d5agent.errors import EXIT_DONE, EXIT_OPERATOR, AgentError
from d5agent.steps.parallel import leaf_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.drill.stage import Stage

_ACTS = {"drained": 8, "live": 9}


class _Show:
    """Progress on standard error, so that --json keeps standard output for machines."""

    def __init__(self, acts_of_it: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._loop = asyncio.get_running_loop()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("", total=acts_of_it)

    @asynccontextmanager
    async def act(self, what: str) -> AsyncGenerator[None]:
        """Show an act while it runs, and leave a line with its time."""
        self._progress.start()
        self._progress.update(self._task, description=what)
        began = self._loop.time()
        try:
            yield
        except BaseException:
            self.console.print(f"[red]✗[/] {what}")
            self._progress.stop()
            raise
        self.console.print(f"[green]✓[/] {what} [dim]{self._loop.time() - began:.1f} s[/]")
        self._progress.advance(self._task)

    def now(self) -> float:
        """Return seconds that never go back."""
        return self._loop.time()

    def end(self) -> None:
        """Take the progress bar away."""
        self._progress.stop()


class Drill(NamedTuple):
    """What the acts are played with."""

    stage: Stage
    agent: Agent
    workload: Workload
    show: _Show
    findings: Findings


async def run_drill(*, operations: int, seed: int, mode: str, keep: bool, as_json: bool) -> int:
    """Perform the drill; return the exit code: 0 only if all is equal. `mode`: how to restore, "drained" or "live"."""
    folder = Path(tempfile.mkdtemp(prefix="d5-"))  # private; and short, since a Unix socket's path must fit
    show, findings = _Show(_ACTS[mode]), Findings()
    try:
        async with AsyncExitStack() as stack:
            stack.callback(show.end)
            async with show.act("MongoDB twice, DocumentDB gateway and S3 server start"):
                stage = await stack.enter_async_context(open_stage(folder, mode=mode))
            agent = Agent(stage)
            stack.push_async_callback(agent.stop)
            workload = Workload(stage.application_uri, seed)
            await _perform(Drill(stage, agent, workload, show, findings), operations, is_live=mode == "live")
            show.end()
            _print(findings, as_json=as_json)
            if keep:
                await _keep(stage, show.console)
    except (AgentError, ExceptionGroup) as raised:
        error = leaf_of(raised)
        if isinstance(error, AgentError):
            error.facts.setdefault("logs", folder)
        raise error from None
    if not findings.is_good:
        show.console.print(f"The logs are kept in {folder}")
        return EXIT_OPERATOR
    shutil.rmtree(folder)
    return EXIT_DONE


async def _perform(drill: Drill, operations: int, *, is_live: bool) -> None:
    stage, agent, workload, show, findings = drill
    began = show.now()
    async with show.act("both hold the same data, as DMS would have copied it"):
        await acts.copy_forward(stage, findings)
    async with show.act("capture begins: change stream on, replication ready"):
        await acts.begin_capture(agent)
    meanwhile = operations // 2 if is_live else 0  # what they write while restore follows
    async with show.act("MongoDB is down: the outage; the daemon is killed once"):
        await acts.outage(agent, workload, operations - meanwhile)
    await (_restore_live(drill, meanwhile) if is_live else _restore_drained(drill))
    async with show.act("log against books, every document, both dbHash"):
        await acts.compare(stage, agent, workload.ledger, findings)
    async with show.act("the application moves to MongoDB; a stray write reaches DocumentDB"):
        moved = await acts.move_over(stage, agent, findings)
    async with show.act("the stray write accepted; clean, power off"):
        await acts.clean(stage, agent, moved, findings)
    findings.figures["whole drill"] = show.now() - began


async def _restore_drained(drill: Drill) -> None:
    stage, agent, _, show, findings = drill
    read_only = show.now()
    async with show.act("backup, fence, restore, verify; the daemon is killed once"):
        await acts.make_read_only(stage)
        await acts.restore(agent, stage)
    findings.figures["read-only window, with backup and the kill"] = show.now() - read_only


async def _restore_live(drill: Drill, operations: int) -> None:
    stage, agent, workload, show, findings = drill
    async with show.act("backup, live restore while they write on; the daemon is killed once"):
        await acts.follow(agent, stage, workload, operations)
    read_only = show.now()
    async with show.act("cutover: read-only, fence, last operations, verify"):
        await acts.make_read_only(stage)
        await acts.cut_over(agent)
    findings.figures["read-only window"] = show.now() - read_only


def _print(findings: Findings, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(findings.to_json()) + "\n")
    else:
        Console(highlight=False).print(findings.table())


async def _keep(stage: Stage, console: Console) -> None:
    """Leave the servers up until Ctrl-C, and say how to look at them."""
    console.print("The servers stay up until Ctrl-C. To look at them, from another terminal:")
    for what, how in (
        ("the agent", f"d5agent status --config {stage.config}"),
        ("DocumentDB, through the gateway", f'mongosh "{stage.admin_uri}"'),
        ("MongoDB", f'mongosh "{stage.target.uri}"'),
        ("the bucket", f"aws --endpoint-url {stage.s3.endpoint_url} s3 ls --recursive s3://{BUCKET}/"),
        ("logs and configuration", str(stage.folder)),
    ):
        console.print(f"  {what}:\n    {how}", markup=False, soft_wrap=True)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        console.print("Stopping the servers.")
        raise
