"""backup: mongodump of both databases, streamed into the store; the manifest comes last."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.backup import NOT_INCLUDED, SIDES, Archive, Manifest, archive_key, run_folder
from d5agent.core.run.progress import SideProgress
from d5agent.steps.backups import is_stored, load_archives, load_manifest, store_archive, store_manifest
from d5agent.steps.compare.overwritten import note_beginning
from d5agent.steps.parallel import parallel, task_group
from d5agent.steps.probes import require_place

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from d5agent.ports import Clock, Dump, DumpTool, LargeObjectStore, ObjectStore, Server, TargetChanges
    from d5agent.service import Coordinator
    from d5agent.steps.compare.undelivered import Undelivered

TARGET: Final = SIDES[0]
_AT_ONCE: Final = 2  # dumps at the same time; each is one mongodump, which reads four collections at once


@dataclass(slots=True, kw_only=True)
class _Side:
    """One of the two databases while it is dumped. `archives` are stored, `missing` databases are not yet."""

    name: str
    tool: DumpTool
    version: str
    archives: dict[str, Archive]
    missing: list[str]
    under_way: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes and documents so far, by database."""

    def report(self, coordinator: Coordinator) -> None:
        """Report how far it is."""
        going, done = self.under_way.values(), self.archives.values()
        found = SideProgress(
            databases=len(self.archives) + len(self.missing),
            databases_stored=len(self.archives),
            documents=sum(sum(a.documents.values()) for a in done) + sum(d for _, d in going),
            bytes=sum(a.bytes for a in done) + sum(size for size, _ in going),
        )
        progress = coordinator.progress
        is_target = self.name == TARGET
        progress.backup = (
            replace(progress.backup, target=found) if is_target else replace(progress.backup, source=found)
        )


@dataclass(slots=True, kw_only=True)
class Backup:
    """Dumps each database of each side. `tools` by side: "target" and "source".

    `undelivered` looks, beside the target's dump, for what restore will overwrite and DMS had not delivered.
    `target_changes` says where the target is before its dump begins, `target_server` which target that is.
    """

    tools: Mapping[str, DumpTool]
    store: ObjectStore
    archives: LargeObjectStore
    clock: Clock
    undelivered: Undelivered
    target_changes: TargetChanges
    target_server: Server
    drains: bool = False

    async def run(self, coordinator: Coordinator) -> None:
        """Dump what has no manifest yet: the target first, since restore waits for it."""
        await require_place(self.store, run_folder(coordinator.state.run_id), what="the manifest of a backup")
        async with task_group() as group:
            if not await is_stored(self.store, coordinator.state.run_id, TARGET):  # else restore may write already
                group.create_task(self.undelivered.look(coordinator), name="undelivered")
            await self._dump_all(coordinator)

    async def _dump_all(self, coordinator: Coordinator) -> None:
        versions = await self._versions(coordinator)
        await self._abort_left_overs(coordinator, "a dump was killed")
        sides = [side for name in SIDES if (side := await self._side(coordinator, name, versions[name])) is not None]
        for side in sides:
            side.report(coordinator)
            if not side.missing:
                await self._conclude(coordinator, side)

        async def dump(job: tuple[_Side, str]) -> None:
            await self._dump(coordinator, *job)

        await parallel(dump, [(side, name) for side in sides for name in side.missing.copy()], limit=_AT_ONCE)
        await self._abort_left_overs(coordinator, "the answer to a request was lost")

    async def _versions(self, coordinator: Coordinator) -> dict[str, str]:
        """Return the tools' versions: both are asked before the first dump begins."""
        versions = {}
        for name in SIDES:
            version = await self.tools[name].version()
            versions[name] = version.number
            if version.advice:
                coordinator.journal.warning("mongodump_not_supported", side=name, advice=version.advice)
        return versions

    async def _abort_left_overs(self, coordinator: Coordinator, why: str) -> None:
        aborted = await self.archives.abort_uploads(run_folder(coordinator.state.run_id))
        if aborted:
            coordinator.journal.info("uploads_aborted", count=aborted, why=why)

    async def _side(self, coordinator: Coordinator, name: str, version: str) -> _Side | None:
        """Return what there is to do for a side; None: it has its manifest."""
        run_id = coordinator.state.run_id
        if await load_manifest(self.store, run_id, name) is not None:
            self._tell_stored(coordinator, name)
            return None
        archives = await load_archives(self.store, run_id, name)
        if name == TARGET:
            await self._note_beginning(coordinator, has_archives=bool(archives))
        missing = [database for database in await self.tools[name].databases() if database not in archives]
        return _Side(name=name, tool=self.tools[name], version=version, archives=archives, missing=missing)

    async def _note_beginning(self, coordinator: Coordinator, *, has_archives: bool) -> None:
        """Note from where on documents may be in no dump: restore keeps them apart."""
        run_id, at = coordinator.state.run_id, self._now()
        changes, server = self.target_changes, self.target_server
        why = await note_beginning(self.store, changes, server, run_id=run_id, has_archives=has_archives, at=at)
        if why:
            hint = "docs/privileges.md: the roles on MongoDB; no application may write to it until the certificate"
            coordinator.journal.warning("target_position_not_noted", why=why, hint=hint)

    async def _dump(self, coordinator: Coordinator, side: _Side, database: str) -> None:
        key = archive_key(coordinator.state.run_id, side.name, database)
        operation_time = await side.tool.operation_time()
        began = self.clock.monotonic()
        async with side.tool.dump(database) as dump:

            def on_progress(size: int) -> None:
                side.under_way[database] = (size, dump.documents_so_far())
                side.report(coordinator)

            counted = _Counted(dump, on_progress)
            async with aclosing(counted.chunks()) as chunks:
                await self.archives.upload(key, chunks)
            archive = Archive(
                database=database,
                key=key,
                bytes=counted.bytes,
                sha256=counted.sha256,
                documents=dump.documents(),
                operation_time=operation_time,
                stored_at=self._now(),
            )
        await store_archive(self.store, coordinator.state.run_id, side.name, archive)
        coordinator.journal.info(
            "database_dumped",
            side=side.name,
            database=database,
            documents=sum(archive.documents.values()),
            bytes=archive.bytes,
            seconds=round(self.clock.monotonic() - began, 3),
        )
        await self._note_stored(coordinator, side, archive)

    async def _note_stored(self, coordinator: Coordinator, side: _Side, archive: Archive) -> None:
        side.archives[archive.database] = archive
        side.missing.remove(archive.database)
        side.under_way.pop(archive.database, None)
        side.report(coordinator)
        if not side.missing:
            await self._conclude(coordinator, side)

    async def _conclude(self, coordinator: Coordinator, side: _Side) -> None:
        """Write the manifest: now it is a backup."""
        if side.name == TARGET:
            await self.undelivered.end()
        archives = [side.archives[database] for database in sorted(side.archives)]
        times = [archive.operation_time for archive in archives]
        manifest = Manifest(
            run_id=coordinator.state.run_id,
            side=side.name,
            operation_time=min(times) if times else await side.tool.operation_time(),
            stored_at=self._now(),
            mongodump=side.version,
            server=await side.tool.server_version(),
            archives=archives,
        )
        await store_manifest(self.store, manifest)
        self._tell_stored(coordinator, side.name)

    def _tell_stored(self, coordinator: Coordinator, side: str) -> None:
        folder = f"{run_folder(coordinator.state.run_id)}{side}/"
        coordinator.journal.info("backup_stored", side=side, folder=folder, not_included="; ".join(NOT_INCLUDED))

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="seconds")


class _Counted:
    """Counts and hashes a dump as it passes."""

    def __init__(self, dump: Dump, on_progress: Callable[[int], None]) -> None:
        self._dump = dump
        self._on_progress = on_progress
        self._hash = hashlib.sha256()
        self.bytes = 0

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the dump's chunks."""
        async with aclosing(self._dump.chunks()) as chunks:
            async for chunk in chunks:
                self._hash.update(chunk)
                self.bytes += len(chunk)
                self._on_progress(self.bytes)
                yield chunk

    @property
    def sha256(self) -> str:
        """The hash of what has passed."""
        return self._hash.hexdigest()
