"""What the command line does without the daemon: it looks at the log, the databases and the state, and writes nothing.

(But for the reports of `plan` and `verify`, and a probe object of `check`, which it removes.)
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from bson import decode
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.state import read_state_file
from d5agent.core.phase_codec import PHASE, decode_phase
from d5agent.core.plan import Plan
from d5agent.core.services import PhaseState
from d5agent.errors import AgentError, OperatorError, TransientError
from d5agent.runtime.bucket import open_store
from d5agent.runtime.control_client import ask, socket_path
from d5agent.runtime.opening import Adapters, open_adapters, stored_phase
from d5agent.runtime.status import status_of
from d5agent.runtime.wiring import verify_plugin
from d5agent.steps.certificate import certificate_state
from d5agent.steps.log_reader import LogReader
from d5agent.steps.planner import Planner
from d5agent.steps.reports import store_plan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from d5agent.core.log import Commit
    from d5agent.core.report import VerifyReport
    from d5agent.core.segment import SegmentRef
    from d5agent.ports import DumpTool
    from d5agent.settings import Settings

_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_JSON = CANONICAL_JSON_OPTIONS.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)
_CLOCK_SKEW_SECONDS = 30
_SPACE_BYTES = 64 * 1024 * 1024
_PROBE = "state/check"


async def pause(seconds: float) -> None:
    """Wait."""
    await SystemClock().sleep(seconds)


async def status(settings: Settings) -> dict[str, Any]:
    """Return the daemon's status; when it is down, what its state file says."""
    try:
        async for answer in ask(socket_path(settings.state.directory), {"verb": "status"}):
            return answer
    except TransientError:
        pass  # said in the status itself
    return status_of(local_phase(settings), {}, is_up=False)


def local_phase(settings: Settings) -> PhaseState:
    """Return the state that this machine's state file tells of."""
    value = read_state_file(settings.state.directory / f"{PHASE}.json")
    return PhaseState() if value is None else decode_phase(value)


async def verify(
    settings: Settings, *, is_full: bool, on_progress: Callable[[VerifyReport], None] = lambda _: None
) -> dict[str, Any]:
    """Compare, store the report, return it; with what has become of the certificate, if restore has issued one."""
    async with open_adapters(settings) as adapters:
        state = await stored_phase(adapters)
        report, key = await verify_plugin(settings, adapters).compare(
            state.run_id, is_full=is_full, on_progress=on_progress
        )
        certificate = await certificate_state(adapters.store, state.verified)
    return {**report.to_json(), "report": key, "certificate": certificate}


async def plan(settings: Settings, *, with_divergence: bool) -> dict[str, Any]:
    """Return what restore would do; the plan is stored among the reports, and nothing else is written."""
    async with open_adapters(settings) as adapters:
        at = adapters.clock.now().isoformat(timespec="seconds")
        planner = Planner(
            reader=LogReader(store=adapters.store),
            source=adapters.source_reader,
            target=adapters.target_reader,
            clock=adapters.clock,
            now=adapters.source.now,
            memory_bytes=settings.limits.memory_bytes,
            window_bytes=settings.window_bytes,
            waiting_bytes=settings.waiting_bytes,
            plan=Plan(run_id=(await stored_phase(adapters)).run_id, at=at),
        )
        values = (await planner.make(with_divergence=with_divergence)).to_json()
        return {**values, "report": await store_plan(adapters.store, values)}


async def list_segments(settings: Settings, keys: list[str]) -> dict[str, Any]:
    """Return the segments that commits name."""
    async with open_store(settings) as store:
        found = [
            {"commit": commit.sequence, **asdict(ref)} async for commit, ref in _segments(LogReader(store=store), keys)
        ]
    return {"segments": found}


async def print_operations(settings: Settings, keys: list[str], write: Callable[[str], object]) -> None:
    """Write stored operations as canonical Extended JSON, one a line, in the log's order."""
    async with open_store(settings) as store:
        reader = LogReader(store=store)
        async for _, ref in _segments(reader, keys):
            async for operation in reader.segment(ref):
                write(dumps(decode(operation.raw, _CODEC), json_options=_JSON, ensure_ascii=False) + "\n")


async def check_log(settings: Settings, keys: list[str]) -> dict[str, Any]:
    """Check the log, or some of its segments; CorruptDataError names the first fault."""
    async with open_store(settings) as store:
        reader = LogReader(store=store)
        if keys:
            async for _, ref in _segments(reader, keys):
                async for _operation in reader.segment(ref):
                    pass
        summary = await reader.check()
    last = summary.last
    return {
        "whole": True,
        "commits": 0 if last is None else last.commit.sequence + 1,
        **({"operations": 0, "bytes": 0, "segments": 0} if last is None else asdict(last.commit.total)),
        "cluster_time": None if last is None else str(last.commit.position.cluster_time),
        "orphans": list(summary.orphans),
    }


async def _segments(reader: LogReader, keys: list[str]) -> AsyncGenerator[tuple[Commit, SegmentRef]]:
    """Yield the segments whose keys begin with one of `keys`; OperatorError when a key names none."""
    unmet = set(keys)
    async for link in reader.links():
        for ref in link.commit.segments:
            hits = {key for key in keys if ref.key.startswith(key)}
            unmet -= hits
            if hits or not keys:
                yield link.commit, ref
    if unmet:
        raise OperatorError("no commit names such a segment", hint="d5agent log ls lists them", key=min(unmet))


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
        await row("source, marks", lambda: _check_mark(adapters), needs="source")
        await row("source, reading", lambda: _check_collections(adapters), needs="source")
        await row("target", lambda: _check_target(adapters))
        await row("clock", lambda: _check_clock(adapters), needs="source")
        for side, dump in adapters.dumps.items():
            await row(f"mongodump, {side}", partial(_check_dump, dump))
    return {"ok": all(r["ok"] for r in rows), "checks": rows}


async def _check_directory(settings: Settings) -> str:
    directory = settings.state.directory
    local_phase(settings)
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
            "the agent's user may not write marks",
            hint="grant it insert on the database d5agent: the fence is then a proof, not a waiting time",
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
