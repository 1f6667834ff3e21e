"""When large buffers go back to the system."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # mallopt(3)
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE: Final = 1024 * 1024  # a batch of the stream, and a segment, may have 8 MiB, a document's reply 16


def give_large_buffers_back() -> None:
    """Make glibc map each buffer larger than any usual batch, and unmap it as soon as it is freed.

    By default the first free of a large buffer makes malloc take such buffers, up to 32 MiB each, from the heap. The
    heap then keeps their pages resident wherever something small was allocated behind them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it; other C libraries need no such setting
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, 4 * _LARGE)  # it would be 128 KiB, and the heap's end would come and go
        mallopt(_M_ARENA_MAX, 1)  # threads compress and hash, and each would get a heap of its own
