"""Servers that fixtures start."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Server(Protocol):
    async def start(self) -> None: ...

    async def kill(self) -> None: ...


_Started = TypeVar("_Started", bound=_Server)


@contextmanager
def running(server: _Started, folder: Path) -> Iterator[_Started]:
    """Start a server; afterwards kill it, and remove its folder.

    A plain function, for fixtures of a session or a module: a server is bound to no event loop, and each test has a
    loop of its own.
    """
    try:
        asyncio.run(server.start())
        yield server
    finally:
        asyncio.run(server.kill())
        shutil.rmtree(folder, ignore_errors=True)
