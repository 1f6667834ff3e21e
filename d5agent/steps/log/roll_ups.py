"""Writes the roll-ups of a log, beside capture: each thousand commits, and their small segments, in two objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.log.chain import ROLLUP_SIZE, decode_commit, encode_rollup, rollup_key
from d5agent.core.log.naming import commit_key
from d5agent.core.log.pack import encode_pack, pack_key, to_packs
from d5agent.errors import CorruptDataError
from d5agent.steps.log.reader import LogReader
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.ports import ObjectStore

_PARALLEL_GETS: Final = 8  # beside the uploads of a busy stream


@dataclass(frozen=True, slots=True, kw_only=True)
class RollUps:
    """The roll-ups of one log. What is written once is never written again; a reader does without what is missing."""

    store: ObjectStore

    async def write_missing(self, end: int) -> int:
        """Write what a log lacks whose last commit comes before the number `end`; return how many were written.

        A crash may have left some out. The thousand in which a log begins is not rolled up unless it is whole.
        """
        reader = LogReader(store=self.store)
        present = await reader.rolled_up()
        begin = -(-await reader.first_sequence() // ROLLUP_SIZE) * ROLLUP_SIZE
        missing = [first for first in range(begin, end - ROLLUP_SIZE + 1, ROLLUP_SIZE) if first not in present]
        for first in missing:
            await self._write(first)
        return len(missing)

    async def _write(self, first: int) -> None:
        keys = [commit_key(number) for number in range(first, first + ROLLUP_SIZE)]
        bodies = await self._get_all(keys)
        commits = (decode_commit(body, key=key) for key, body in zip(keys, bodies, strict=True))
        # The pack first: who finds the roll-up then finds the pack.
        for part, refs in enumerate(to_packs(commits), 1):
            packed = [ref.key for ref in refs]
            pack = encode_pack(zip(packed, await self._get_all(packed), strict=True))
            await self.store.put_once(pack_key(first, part), pack)
        await self.store.put_once(rollup_key(first), encode_rollup(bodies))

    async def _get_all(self, keys: Sequence[str]) -> list[bytes]:
        return await parallel(self._get, keys, limit=_PARALLEL_GETS)

    async def _get(self, key: str) -> bytes:
        body = await self.store.get(key)
        if body is None:
            raise CorruptDataError("an object of the log has vanished", hint="d5agent log verify", key=key)
        return body
