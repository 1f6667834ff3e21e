"""Copies the whole log to another place in the store, each copy checked against the hash that the log itself has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.log.chain import ROLLUPS
from d5agent.errors import CorruptDataError
from d5agent.steps.log.reader import LogReader, link_of
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.ports import ObjectStore

ARCHIVES: Final = "archive/"
KEEP_DAYS_TAG: Final = "d5agent-keep-log-days"
_AT_ONCE: Final = 16  # copies; a server-side copy of a small object takes some milliseconds
_BATCH: Final = 512
_HINT: Final = (
    "nothing of the log was deleted; d5agent log verify names each fault. To delete the log without an archive: take"
    " [clean] keep_log_days out of the configuration, restart the daemon, then type: d5agent start clean"
)


def archive_prefix(run_id: str) -> str:
    """Return what comes before the keys of a run's archived log, which stay as they were."""
    return f"{ARCHIVES}{run_id}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogArchive:
    """The archive of one run's log. `keep_days`: how long its objects are to be kept; each bears it as a tag."""

    store: ObjectStore
    run_id: str
    keep_days: int

    async def copy(self, *, after: int, on_copied: Callable[[int, int], Awaitable[None]]) -> None:
        """Copy the log behind the commit `after` (-1: all), and the roll-ups.

        `on_copied` is told the last commit whose objects are all copied, and how many objects came with it.
        CorruptDataError: a copy is not what the log says, or the chain is broken.
        """
        reader = LogReader(store=self.store)
        batch: list[tuple[str, str]] = []
        last = after
        async for link in reader.links(after=None if after < 0 else await link_of(self.store, after)):
            batch += [(ref.key, ref.sha256) for ref in link.commit.segments] + [(link.commit.key, link.digest)]
            last = link.commit.sequence
            if len(batch) >= _BATCH:
                await parallel(self._copy, batch, limit=_AT_ONCE)
                await on_copied(last, len(batch))
                batch = []
        await parallel(self._copy, batch, limit=_AT_ONCE)
        await on_copied(last, len(batch))
        await on_copied(last, await self._copy_rollups())

    async def _copy_rollups(self) -> int:
        """Copy roll-ups and packs: copies themselves, whose hashes no commit tells."""
        count = 0
        async for page in self.store.list_objects(ROLLUPS):
            for found in page:
                await self._copy((found.key, hashlib.sha256(await self.store.get(found.key) or b"").hexdigest()))
                count += 1
        return count

    async def _copy(self, expected: tuple[str, str]) -> None:
        key, sha256 = expected
        to = archive_prefix(self.run_id) + key
        copied = await self.store.copy(key, to, tags={KEEP_DAYS_TAG: str(self.keep_days)})
        if copied is None:
            raise CorruptDataError("an object of the log is missing: it cannot be archived", hint=_HINT, key=key)
        if copied != sha256:
            raise CorruptDataError("an object of the log is not what was stored", hint=_HINT, key=key, copy=to)
