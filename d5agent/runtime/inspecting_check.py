"""`d5agent check`: the preflight. It writes nothing but a probe object, which it removes."""

from __future__ import annotations

import contextlib
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

from d5agent.errors import AgentError, OperatorError, TransientError
from d5agent.runtime.opening import Adapters, open_adapters
from d5agent.runtime.status import local_phase
from d5agent.steps.log_reader import LogReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.ports import DumpTool
    from d5agent.settings import Settings

_CLOCK_SKEW_SECONDS = 30
_SPACE_BYTES = 64 * 1024 * 1024
_PROBE = "state/check"


async def check(settings: Settings) -> dict[str, Any]:
    """Return the preflight: one row a thing that the agent needs."""
    rows: list[dict[str, Any]] = []
    unreached: set[str] = set()

    async def row(what: str, look: Callable[[], Awaitable[str]], *, needs: str = "") -> None:
        if needs in unreached:  # else each row would wait for the same server again
            found, hint = f"not looked at: the {needs} is not reached", f"mend the {needs} first"
            rows.append({"what": what, "ok": False, "found": found, "hint": hint})
            return
        try:
            rows.append({"what": what, "ok": True, "found": await look(), "hint": ""})
        except AgentError as error:
            rows.append({"what": what, "ok": False, "found": str(error), "hint": error.hint})
            if isinstance(error, TransientError):
                unreached.add(what)

    async with contextlib.AsyncExitStack() as stack:
        try:
            adapters = await stack.enter_async_context(open_adapters(settings))
        except AgentError as error:
            return {"ok": False, "checks": [{"what": "URIs", "ok": False, "found": str(error), "hint": error.hint}]}
        await row("state directory", lambda: _check_directory(settings))
        await row("bucket", lambda: _check_store(adapters))
        await row("source", lambda: _check_source(adapters))
        await row("source, fence marker", lambda: _check_mark(adapters), needs="source")
        await row("source, reading", lambda: _check_collections(adapters), needs="source")
        await row("target", lambda: _check_target(adapters))
        await row("clock", lambda: _check_clock(adapters), needs="source")
        for side, dump in adapters.dumps.items():
            await row(f"mongodump, {side}", partial(_check_dump, dump))
    return {"ok": all(r["ok"] for r in rows), "checks": rows}


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
    return f"change stream is on, time {await adapters.source.now()}"


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


async def _check_target(adapters: Adapters) -> str:
    return f"{len(await adapters.target_reader.collections())} collections"


async def _check_clock(adapters: Adapters) -> str:
    skew = adapters.clock.now().timestamp() - (await adapters.source.now()).seconds
    if abs(skew) > _CLOCK_SKEW_SECONDS:
        raise OperatorError("the clock differs from the source's", hint="start chrony", seconds=round(skew))
    return f"within {abs(skew):.0f} s of the source's"


async def _check_dump(dump: DumpTool) -> str:
    version = await dump.version()
    return "; ".join(filter(None, (version.number, version.advice)))
