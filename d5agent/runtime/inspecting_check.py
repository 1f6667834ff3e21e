"""`d5agent check`: the preflight. It writes nothing but a probe object, which it removes."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.run.rights import lacking
from d5agent.core.run.services import Phase
from d5agent.errors import AgentError, NotGivenError, OperatorError, TransientError
from d5agent.runtime.control_client import ask, socket_path
from d5agent.runtime.listening import require_free
from d5agent.runtime.opening import Adapters, TargetAdapters, open_adapters, stored_phase
from d5agent.runtime.status import local_phase
from d5agent.steps.log.reader import LogReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from d5agent.ports import DumpTool, TargetGuard
    from d5agent.settings import Settings

_CLOCK_SKEW_SECONDS = 30
_SPACE_BYTES = 64 * 1024 * 1024
_PROBE = "state/check"
_PHASES: Final = (Phase.REPLICATION, Phase.RESTORE, Phase.CLEAN)


@dataclass(frozen=True, slots=True)
class Warned:
    """What was found, and what should be done about it although it stops nothing: usually nothing."""

    found: str
    hint: str = ""


@dataclass(slots=True, kw_only=True)
class _Preflight:
    """The rows so far. `phase`: where the agent is; what only a later phase needs may be missing until then."""

    phase: Phase
    rows: list[dict[str, Any]] = field(default_factory=list)
    unreached: set[str] = field(default_factory=set)

    async def row(
        self,
        what: str,
        look: Callable[[], Awaitable[str | Warned]],
        *,
        needs: str = "",
        phase: Phase = Phase.REPLICATION,
    ) -> bool:
        """Look, and add a row; return whether it is well. `needs`: the row without which this one is not looked at."""
        needed = "now" if phase in {self.phase, Phase.REPLICATION} or self.phase is Phase.CLEAN else str(phase)
        error: AgentError | None = None
        found = Warned("")
        try:
            if needs in self.unreached:  # else each row would wait for the same server again
                raise TransientError(f"not looked at: the {needs} is not reached", hint=f"see the row {needs}")
            answer = await look()
            found = answer if isinstance(answer, Warned) else Warned(answer)
        except AgentError as raised:
            error = raised
            if isinstance(error, TransientError | NotGivenError):
                self.unreached.add(what)
        # A target that is not there yet is no fault while operations are captured: MongoDB is down then.
        is_later = needed != "now" and isinstance(error, TransientError | NotGivenError)
        state = "later" if is_later else "no"
        said = {"found": str(error), "hint": error.hint} if error is not None else asdict(found)
        if error is None:
            state = "warning" if found.hint else "ok"
        self.rows.append({"what": what, "ok": error is None, "state": state, "needed": needed, "phase": phase, **said})
        return error is None

    def values(self) -> dict[str, Any]:
        """Return the result as JSON values. `ready`: for which phases everything is there."""
        ready, is_ready = {}, True
        for phase in _PHASES:
            is_ready &= all(row["ok"] for row in self.rows if row["phase"] is phase)
            ready[str(phase)] = is_ready
        rows = [{key: value for key, value in row.items() if key != "phase"} for row in self.rows]
        return {"ok": all(row["state"] != "no" for row in rows), "ready": ready, "checks": rows}


async def check(settings: Settings) -> dict[str, Any]:
    """Return the preflight: one row a thing that the agent needs, and when it needs it."""
    preflight = _Preflight(phase=_phase(settings))
    async with contextlib.AsyncExitStack() as stack:
        await preflight.row("state directory", lambda: _check_directory(settings))
        opened: list[Adapters] = []

        async def open_source() -> str:
            opened.append(await stack.enter_async_context(open_adapters(settings)))
            return _without_ignored("read", opened[0].ignored)

        if await preflight.row("source's URI", open_source):
            await _check_now(preflight, opened[0], settings)
            await _check_for_restore(preflight, opened[0])
            user = _owner_of(settings.state.directory)
            await preflight.row("power-off", lambda: opened[0].power.require_right(user=user), phase=Phase.CLEAN)
    return preflight.values()


def _phase(settings: Settings) -> Phase:
    try:
        return local_phase(settings.state.directory).phase
    except AgentError:  # the row of the state directory says so
        return Phase.IDLE


async def _check_now(preflight: _Preflight, adapters: Adapters, settings: Settings) -> None:
    """Add what capture needs."""
    row = preflight.row
    await row("bucket", lambda: _check_store(adapters))
    await row("source", lambda: _check_source(adapters))
    await row("source, fence marker", lambda: _check_mark(adapters), needs="source")
    await row("source, reading", lambda: _check_collections(adapters), needs="source")
    await row("clock", lambda: _check_clock(adapters), needs="source")
    await row("metrics", lambda: _check_metrics(settings))


async def _check_for_restore(preflight: _Preflight, adapters: Adapters) -> None:
    """Add what restore needs on top of that."""
    async with contextlib.AsyncExitStack() as stack:
        row = partial(preflight.row, phase=Phase.RESTORE)
        opened: list[TargetAdapters] = []

        async def open_target() -> str:
            opened.append(await stack.enter_async_context(adapters.open_target()))
            return _without_ignored("read, and its server is there", opened[0].ignored)

        await row("source, running writes", partial(_check_running_writes, adapters), needs="source")
        await row("mongodump, source", partial(_check_dump, adapters.source_dump()))
        if await row("target", open_target):
            (target,) = opened
            await row("target, reading", partial(_check_target, target))
            await row("source and target", partial(_check_apart, adapters, target), needs="source")
            await row("target, writing", partial(_check_rights, adapters, target))
            await row("target, load", partial(_check_load, target))
            await row("target, write-block mode", partial(check_guard, target.guard))
            await row("mongodump, target", partial(_check_dump, target.dump))


def _without_ignored(found: str, ignored: Sequence[str]) -> str:
    return f"{found}; options of the URI that the agent ignores: {', '.join(ignored)}" if ignored else found


async def _check_directory(settings: Settings) -> str:
    directory = settings.state.directory
    local_phase(directory)
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise OperatorError(
            "the state directory cannot be used", hint="make it, or mend [state] directory", reason=error.strerror
        ) from error
    if free < _SPACE_BYTES:
        raise OperatorError("little space for the state", hint="free some space", path=directory, bytes=free)
    return f"{free // 1024**2:,} MiB free"


async def _check_store(adapters: Adapters) -> str:
    await adapters.store.put(_PROBE, b"d5agent check\n")
    await adapters.store.delete([_PROBE])
    last = await LogReader(store=adapters.store).last()
    return "empty log" if last is None else f"log of {last.commit.total.operations:,} operations"


async def _check_source(adapters: Adapters) -> str:
    await adapters.source.check(before_enabling=None)
    return f"change stream is on and can be opened, time {await adapters.source.check_kept(None)}"


async def _check_mark(adapters: Adapters) -> str:
    if not await adapters.source.mark(f"check-{adapters.clock.now().isoformat()}"):
        raise OperatorError(
            "the agent's user may not write the fence marker",
            hint="grant it insert on the database d5agent (docs/privileges.md): without it restore, cutover and clean "
            "are refused",
        )
    return "may be written"


async def _check_collections(adapters: Adapters) -> str:
    return f"{len(await adapters.source_reader.collections())} collections"


async def _check_target(target: TargetAdapters) -> str:
    return f"{len(await target.reader.collections())} collections"


async def _check_apart(adapters: Adapters, target: TargetAdapters) -> str:
    servers = adapters.servers(target)
    both = await servers.tell_apart()
    await servers.require_own_log(LogReader(store=adapters.store), (await stored_phase(adapters)).fence)
    return f"two clusters: {both.source.hosts[0]} and {both.target.hosts[0]}"


async def _check_running_writes(adapters: Adapters) -> str:
    try:
        return f"{len(await adapters.source.running_writes())} at this moment"
    except OperatorError as error:
        raise OperatorError(
            "the agent's user may not see which writes are running on the source",
            hint="grant it clusterMonitor on admin (docs/privileges.md): the fence waits for them",
            **{**error.facts, "reason": error.message},
        ) from error


async def _check_rights(adapters: Adapters, target: TargetAdapters) -> str:
    """See that the user may write what restore writes, in every database that the source has."""
    try:
        databases = sorted({namespace.database for namespace in await adapters.source_reader.collections()})
    except AgentError:  # the row of the source says so
        databases = []
    missing = lacking(await target.grants(), databases)
    if missing:
        raise OperatorError(
            "the agent's user lacks rights on the target",
            hint="grant it readWriteAnyDatabase and dbAdminAnyDatabase on admin there (docs/privileges.md)",
            **{f"on {database or 'any database'}": ", ".join(actions) for database, actions in missing.items()},
        )
    return "restore may write"


async def _check_load(target: TargetAdapters) -> str:
    if await target.writer.tickets() is None:
        raise OperatorError(
            "the target does not say how busy it is, so that restore knows only how long a write takes",
            hint="grant the agent's user clusterMonitor on admin there (docs/privileges.md)",
        )
    return "it says how busy it is"


async def _check_metrics(settings: Settings) -> str:
    """See that the address can be had, unless the daemon has it."""
    if settings.metrics.listen is None:
        return "not served: [metrics] listen is not set"
    try:
        async for _ in ask(socket_path(settings.state.directory), {"verb": "status"}):
            return "served by the daemon, which is up"
    except TransientError:
        pass  # it is down
    await require_free(settings.metrics.listen)
    return f"{settings.metrics.listen} is free"


def _owner_of(directory: Path) -> int:
    """Return the user that the daemon runs as: it owns the state directory."""
    try:
        return directory.stat().st_uid
    except OSError:
        return os.geteuid()


async def check_guard(guard: TargetGuard) -> Warned:
    """Say whether restore can keep others from writing to the target. OperatorError: it keeps the agent from it."""
    found = await guard.write_block()
    if found.is_on and found.obstacle:
        raise OperatorError(
            "the target is in write-block mode, and the agent's user may not bypass it",
            hint=f"{found.hint}, or end that mode on MongoDB",
            reason=found.obstacle,
        )
    if found.obstacle:
        return Warned(f"others can write to the target while restore is at work: {found.obstacle}", hint=found.hint)
    return Warned("is on already: somebody else has set it" if found.is_on else "can be used")


async def _check_clock(adapters: Adapters) -> str:
    skew = adapters.clock.now().timestamp() - (await adapters.source.now()).seconds
    if abs(skew) > _CLOCK_SKEW_SECONDS:
        raise OperatorError("the clock differs from the source's", hint="start chrony", seconds=round(skew))
    return f"within {abs(skew):.0f} s of the source's"


async def _check_dump(dump: DumpTool) -> str:
    version = await dump.version()
    return "; ".join(filter(None, (version.number, version.advice)))
