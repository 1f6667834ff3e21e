"""What a side of a benchmark has held in memory at most."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """Return the peak of this process since its program began (`VmHWM`, proc(5)).

    `getrusage` will not do: its `ru_maxrss` begins with what the process held that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
