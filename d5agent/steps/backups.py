"""Backups in the store: what backup writes and finds again, what restore waits for, what operators list and check."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.backup import (
    DUMPS,
    SIDES,
    Archive,
    Manifest,
    decode_archive,
    decode_manifest,
    encode_archive,
    encode_manifest,
    is_record,
    manifest_key,
    record_key,
    run_folder,
)
from d5agent.core.run.services import Service, Status
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from d5agent.ports import LargeObjectStore, ObjectStore
    from d5agent.service import Coordinator


_LOOK_AGAIN: Final = 10  # moments between two looks at the store


async def wait_for_backup(coordinator: Coordinator, store: ObjectStore, side: str) -> None:
    """Wait until a side's backup of this run is stored."""
    has_waited = False
    while not await is_stored(store, coordinator.state.run_id, side):
        has_waited = True
        for _ in range(_LOOK_AGAIN):
            status = coordinator.state.status(Service.BACKUP)
            if status is Status.DONE and await is_stored(store, coordinator.state.run_id, side):
                break
            if status in {Status.FAILED, Status.STOPPED, Status.DONE, None}:
                await coordinator.wait(f"a backup of the {side}, which is not running: type d5agent start backup")
            else:
                await coordinator.wait(f"the backup of the {side}")
    if has_waited:
        await coordinator.go_on()


async def is_stored(store: ObjectStore, run_id: str, side: str) -> bool:
    """Whether a side's backup is stored: its manifest, which comes last, is there."""
    return await store.get(manifest_key(run_id, side)) is not None


async def load_manifest(store: ObjectStore, run_id: str, side: str) -> Manifest | None:
    """Return a side's manifest; None: there is no backup of it. CorruptDataError: it is damaged."""
    key = manifest_key(run_id, side)
    body = await store.get(key)
    return None if body is None else decode_manifest(body, key)


async def store_manifest(store: ObjectStore, manifest: Manifest) -> None:
    """Store a side's manifest: from now on there is a backup of it."""
    await store.put(manifest_key(manifest.run_id, manifest.side), encode_manifest(manifest))


async def store_archive(store: ObjectStore, run_id: str, side: str, archive: Archive) -> None:
    """Remember an archive that is stored, so that its database is not dumped again."""
    await store.put(record_key(run_id, side, archive.database), encode_archive(archive))


async def load_archives(store: ObjectStore, run_id: str, side: str) -> dict[str, Archive]:
    """Return the archives that are stored whole, by database."""
    sizes = await _sizes(store, f"{run_folder(run_id)}{side}/")
    found: dict[str, Archive] = {}
    for key in filter(is_record, sizes):
        body = await store.get(key)
        if body is not None:
            archive = decode_archive(body, key)
            if sizes.get(archive.key) == archive.bytes:
                found[archive.database] = archive
    return found


async def _sizes(store: ObjectStore, prefix: str) -> dict[str, int]:
    return {found.key: found.bytes async for page in store.list_objects(prefix) for found in page}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRow:
    """A side's backup in a list. `manifest` None: it was never finished, and is none."""

    run_id: str
    side: str
    manifest: Manifest | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        manifest = self.manifest
        known = (
            {}
            if manifest is None
            else {
                "stored_at": manifest.stored_at,
                "databases": len(manifest.archives),
                "documents": manifest.documents,
                "bytes": manifest.bytes,
            }
        )
        return {"run_id": self.run_id, "side": self.side, "is_stored": manifest is not None, **known}


async def list_backups(store: ObjectStore) -> list[BackupRow]:
    """Return the backups of all runs, the oldest first; what was never finished comes before them."""
    sides = {tuple(key.removeprefix(DUMPS).split("/")[:2]) for key in await _sizes(store, DUMPS)}
    rows = [
        BackupRow(run_id=run_id, side=side, manifest=await load_manifest(store, run_id, side))
        for run_id, side in sides
        if side in SIDES
    ]
    return sorted(rows, key=lambda row: (row.manifest.stored_at if row.manifest else "", row.run_id, row.side))


async def manifests_of(store: ObjectStore, run_id: str | None) -> list[Manifest]:
    """Return what is stored of a run's backup, of the last one without an id. OperatorError: there is none."""
    if run_id is None:
        stored = [row for row in await list_backups(store) if row.manifest is not None]
        if not stored:
            raise OperatorError("there is no backup", hint="d5agent start backup makes one")
        run_id = stored[-1].run_id
    found = [manifest for side in SIDES if (manifest := await load_manifest(store, run_id, side)) is not None]
    if not found:
        raise OperatorError("there is no backup of this run", hint="d5agent backups ls lists them", run_id=run_id)
    return found


async def fault_of(store: LargeObjectStore, archive: Archive, size: int | None) -> str:
    """Return what is wrong with a stored archive, which is read for it; nothing, as a rule. `size`: as it is listed."""
    if size is None:
        return "the object is missing"
    if size != archive.bytes:
        return f"it has {size:,} bytes instead of {archive.bytes:,}"
    digest = hashlib.sha256()
    async with aclosing(store.read(archive.key)) as pieces:
        async for piece in pieces:
            digest.update(piece)
    return "" if digest.hexdigest() == archive.sha256 else "its content is another one: the sha256 differs"


async def check_backup(store: ObjectStore, archives: LargeObjectStore, run_id: str | None) -> dict[str, Any]:
    """Return what is wrong with a run's backup: one row an archive, each of them read, and a row for a missing side."""
    manifests = await manifests_of(store, run_id)
    sizes = await _sizes(store, run_folder(manifests[0].run_id))
    rows = [
        {
            "side": manifest.side,
            "database": archive.database,
            "key": archive.key,
            "bytes": archive.bytes,
            "fault": await fault_of(archives, archive, sizes.get(archive.key)),
        }
        for manifest in manifests
        for archive in manifest.archives
    ]
    for side in set(SIDES) - {manifest.side for manifest in manifests}:
        fault = "it has no manifest, so there is no backup of this side: d5agent start backup"
        rows.append({"side": side, "database": "", "key": "", "bytes": 0, "fault": fault})
    return {
        "run_id": manifests[0].run_id,
        "sides": [manifest.side for manifest in manifests],
        "whole": not any(row["fault"] for row in rows),
        "archives": rows,
    }
