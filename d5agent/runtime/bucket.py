"""Settings to the object store alone: what only reads the log or the backups needs no database driver."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.s3 import S3Store, open_s3

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.settings import Settings


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncGenerator[S3Store]:
    """Open the store."""
    store = settings.store
    async with open_s3(
        bucket=store.bucket,
        prefix=store.prefix,
        endpoint_url=store.endpoint_url,
        region=store.region,
        clock=SystemClock(),
    ) as opened:
        yield opened
