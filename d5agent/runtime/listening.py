"""The address that metrics are served at: whether it can be had, and what is said when not."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Final

from d5agent.errors import OperatorError
from d5agent.settings import parse_address

_HINTS: Final = {
    errno.EADDRINUSE: "see who has it (ss -ltnp), or choose another port in [metrics] listen",
    errno.EADDRNOTAVAIL: "give [metrics] listen an address of this machine (ip address)",
    errno.EACCES: "choose a port from 1024 on in [metrics] listen",
}


async def require_free(listen: str) -> None:
    """Bind to an address, and give it back. OperatorError: it cannot be had."""
    host, port = parse_address(listen)
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as error:
        raise refusal(error, listen) from error
    server.close()


def refusal(error: OSError, listen: str) -> OperatorError:
    """Return what an address that cannot be had means."""
    unknown = isinstance(error, socket.gaierror)
    hint = "give [metrics] listen an address, or a name that this machine can look up" if unknown else ""
    return OperatorError(
        "metrics cannot be served",
        hint=hint or _HINTS.get(error.errno or 0, "mend [metrics] listen"),
        listen=listen,
        reason=error.strerror,
    )
