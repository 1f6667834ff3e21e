"""What systemd is told: READY=1, STATUS=…, WATCHDOG=1, STOPPING=1 (sd_notify(3))."""

from __future__ import annotations

import socket


class Notifier:
    """Sends to systemd's notification socket; without one, to nobody."""

    def __init__(self, address: str | None) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address

    def tell(self, *assignments: str) -> None:
        """Send assignments such as READY=1."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto("\n".join(assignments).encode(), self._address)
