"""What the command line does with the log, without the daemon: it only reads."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from d5agent.core.log.extended_json import to_text
from d5agent.errors import OperatorError
from d5agent.runtime.bucket import open_store
from d5agent.steps.log.reader import LogReader, no_log

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from d5agent.core.log.chain import Commit
    from d5agent.core.log.segment import SegmentRef
    from d5agent.settings import Settings


async def list_segments(settings: Settings, keys: list[str]) -> dict[str, Any]:
    """Return the segments that commits name."""
    async with open_store(settings) as store:
        found = [
            {"commit": commit.sequence, **asdict(ref), "url": settings.store.url_of(ref.key)}
            async for commit, ref in _segments(LogReader(store=store), keys, settings)
        ]
    return {"segments": found}


async def print_operations(settings: Settings, keys: list[str], write: Callable[[str], object]) -> None:
    """Write stored operations as canonical Extended JSON without a loss, one a line, in the log's order."""
    async with open_store(settings) as store:
        reader = LogReader(store=store)
        async for _, ref in _segments(reader, keys, settings):
            async for operation in reader.segment(ref):
                write(f"{to_text(operation.raw)}\n")


async def check_log(settings: Settings, keys: list[str]) -> dict[str, Any]:
    """Check the log, or some of its segments; CorruptDataError names the first fault."""
    async with open_store(settings) as store:
        reader = LogReader(store=store)
        if keys:
            async for _, ref in _segments(reader, keys, settings):
                async for _operation in reader.segment(ref):
                    pass
        summary = await reader.check()
    last = summary.last
    if last is None:
        raise no_log(settings.store.url)
    return {
        "whole": True,
        "commits": summary.commits,
        **asdict(last.commit.total),
        "cluster_time": str(last.commit.position.cluster_time),
        "orphans": list(summary.orphans),
    }


async def _segments(
    reader: LogReader, asked: list[str], settings: Settings
) -> AsyncGenerator[tuple[Commit, SegmentRef]]:
    """Yield the segments whose keys, or addresses, begin with one of `asked`.

    OperatorError: there is no log, or one of them names none.
    """
    keys = [settings.store.key_of(each) for each in asked]
    unmet = set(keys)
    if await reader.last() is None:
        raise no_log(settings.store.url)
    async for link in reader.links():
        for ref in link.commit.segments:
            hits = {key for key in keys if ref.key.startswith(key)}
            unmet -= hits
            if hits or not keys:
                yield link.commit, ref
    if unmet:
        raise OperatorError("no commit names such a segment", hint="d5agent log ls lists them", key=min(unmet))
