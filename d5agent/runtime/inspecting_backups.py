"""What the command line does with backups, without the daemon: it only looks, and writes nothing."""

from __future__ import annotations

import hashlib
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from d5agent.adapters.s3_large import S3LargeObjects
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.runtime.bucket import open_store
from d5agent.steps.backups import check_backup, list_backups, manifests_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from d5agent.adapters.s3 import S3Store
    from d5agent.core.backup import Archive
    from d5agent.settings import Settings


@asynccontextmanager
async def _stores(settings: Settings) -> AsyncGenerator[tuple[S3Store, S3LargeObjects]]:
    async with open_store(settings) as store:
        yield store, S3LargeObjects(store)


async def list_all(settings: Settings) -> dict[str, Any]:
    """Return one row a run and side."""
    async with open_store(settings) as store:
        return {"backups": [row.to_json() for row in await list_backups(store)]}


async def show(settings: Settings, run_id: str | None) -> dict[str, Any]:
    """Return the manifests of a run, of the last one without an id."""
    async with open_store(settings) as store:
        manifests = await manifests_of(store, run_id)
    found = [manifest.to_json() for manifest in manifests]
    for archive in (archive for manifest in found for archive in manifest["archives"]):
        archive["url"] = settings.store.url_of(archive["key"])
    return {"run_id": manifests[0].run_id, "manifests": found}


async def verify(settings: Settings, run_id: str | None) -> dict[str, Any]:
    """Read every archive of a run, of the last one without an id, and return what is wrong."""
    async with _stores(settings) as (store, archives):
        return await check_backup(store, archives, run_id)


async def write_archive(settings: Settings, key: str, write: Callable[[bytes], object]) -> None:
    """Write an archive out. CorruptDataError, at its end: what was written is not what was stored."""
    key = settings.store.key_of(key)
    async with _stores(settings) as (store, archives):
        archive = await _archive_of(store, key)
        digest = hashlib.sha256()
        async with aclosing(archives.read(key)) as pieces:
            async for piece in pieces:
                digest.update(piece)
                write(piece)
    if digest.hexdigest() != archive.sha256:
        raise CorruptDataError(
            "this is not what was stored: do not use it",
            hint="bring the object back (bucket versioning); d5agent backups verify checks it",
            key=key,
        )


async def _archive_of(store: S3Store, key: str) -> Archive:
    folder, _, rest = key.partition("/")
    manifests = await manifests_of(store, rest.split("/")[0]) if folder == "dump" else []
    for manifest in manifests:
        for archive in manifest.archives:
            if archive.key == key:
                return archive
    raise OperatorError("no manifest names such an archive", hint="d5agent backups show lists the keys", key=key)
