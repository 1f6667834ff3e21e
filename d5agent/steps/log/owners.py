"""Reads whose the log in the store is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from d5agent.core.log.chain import decode_commit, is_commit_key
from d5agent.core.log.naming import LOG
from d5agent.core.log.owners import LogOwners
from d5agent.errors import CorruptDataError
from d5agent.steps.log.reader import LogReader
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from d5agent.ports import ObjectStore

_AT_ONCE: Final = 16


async def owners_of_log(store: ObjectStore) -> LogOwners:
    """Return the runs that the commits name. A log that is damaged is read commit by commit."""
    try:
        return LogOwners(runs=frozenset({link.commit.writer.run_id async for link in LogReader(store=store).links()}))
    except CorruptDataError:
        return await _owners_of_commits(store)


async def _owners_of_commits(store: ObjectStore) -> LogOwners:
    runs: set[str] = set()
    unreadable = 0

    async def run_of(key: str) -> str | None:
        body = await store.get(key)
        try:
            return None if body is None else decode_commit(body, key=key).writer.run_id
        except CorruptDataError:
            return None

    async for page in store.list_objects(LOG):
        keys = [found.key for found in page if is_commit_key(found.key)]
        found = await parallel(run_of, keys, limit=_AT_ONCE)
        runs.update(run for run in found if run is not None)
        unreadable += found.count(None)
    return LogOwners(runs=frozenset(runs), unreadable=unreadable)
