"""The asking side of the control socket: one line of JSON asks, lines of JSON answer."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, Final

from d5agent.errors import OperatorError, TransientError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

VERSION: Final = 1
LINE_LIMIT: Final = 1024 * 1024
_LONGEST_PATH: Final = 107  # bytes of a Unix socket's path, unix(7)


def socket_path(directory: Path) -> Path:
    """Return where the socket stands; OperatorError when the path is longer than a socket's may be."""
    path = directory / "control.sock"
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OperatorError(
            "the control socket's path is too long", hint="choose a shorter [state] directory", path=path
        )
    return path


async def ask(path: Path, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    """Send a request and yield the answers. TransientError: no daemon listens."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
    except (ConnectionError, FileNotFoundError) as error:
        raise TransientError("the daemon is not running", hint="type: systemctl start d5agent", socket=path) from error
    except PermissionError as error:
        raise OperatorError("the control socket may not be used", hint="type it as root, or with sudo") from error
    try:
        writer.write(json.dumps({"version": VERSION, **request}).encode() + b"\n")
        await writer.drain()
        while line := await reader.readline():
            yield json.loads(line)
    except ConnectionError as error:
        raise TransientError("the daemon has gone", hint="see journalctl -u d5agent") from error
    finally:
        writer.close()
