"""backup: mongodump of both databases, streamed into the store; the manifest comes last."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.backup import Archive, archive_key, encode_manifest, manifest_key
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from d5agent.ports import Coordinator, Dump, DumpTool, ObjectStore

_AT_ONCE: Final = 2  # dumps at the same time; each is one mongodump, which reads four collections at once


@dataclass(slots=True, kw_only=True)
class Backup:
    """Dumps each database of each side. `tools` by side: "target" and "source"."""

    tools: Mapping[str, DumpTool]
    store: ObjectStore
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Dump what has no manifest yet: the target first, since restore waits for it."""
        for side, tool in self.tools.items():
            await tool.version()  # both are asked before the first dump begins
            coordinator.report(**{f"{side}_bytes": 0})
        for side, tool in self.tools.items():
            key = manifest_key(coordinator.state.run_id, side)
            if await self.store.get(key) is None:
                await self.store.put(key, await self._dump_side(coordinator, side, tool))
            coordinator.journal.info("backup_stored", side=side, manifest=key)

    async def _dump_side(self, coordinator: Coordinator, side: str, tool: DumpTool) -> bytes:
        operation_time = await tool.operation_time()

        async def dump(database: str) -> Archive:
            return await self._dump(coordinator, side, tool, database)

        archives = await parallel(dump, await tool.databases(), limit=_AT_ONCE)
        return encode_manifest(
            run_id=coordinator.state.run_id,
            side=side,
            operation_time=operation_time,
            tool_version=await tool.version(),
            archives=archives,
        )

    async def _dump(self, coordinator: Coordinator, side: str, tool: DumpTool, database: str) -> Archive:
        key = archive_key(coordinator.state.run_id, side, database)
        async with tool.dump(database) as dump:
            counted = _Counted(dump)
            async with aclosing(counted.chunks()) as chunks:
                await self.store.upload(key, chunks)
            documents = dump.result().documents
        stored = int(str(coordinator.facts.get(f"{side}_bytes", 0)))
        coordinator.report(**{f"{side}_bytes": stored + counted.bytes})
        coordinator.journal.info("database_dumped", side=side, database=database, bytes=counted.bytes)
        return Archive(database=database, key=key, bytes=counted.bytes, sha256=counted.sha256, documents=documents)


class _Counted:
    """Counts and hashes a dump as it passes."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self._hash = hashlib.sha256()
        self.bytes = 0

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the dump's chunks."""
        async with aclosing(self._dump.chunks()) as chunks:
            async for chunk in chunks:
                self._hash.update(chunk)
                self.bytes += len(chunk)
                yield chunk

    @property
    def sha256(self) -> str:
        """The hash of what has passed."""
        return self._hash.hexdigest()
