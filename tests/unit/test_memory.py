"""Large buffers go back to the system as soon as they are freed."""

from __future__ import annotations

import subprocess
import sys

_HELD = """
import sys
from pathlib import Path
from d5agent.runtime.memory import give_large_buffers_back

if sys.argv[1] == "yes":
    give_large_buffers_back()
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
first = bytearray(16 << 20)
del first
buffers, small = [], []
before = resident()
for _ in range(4):
    buffers.append(bytearray(16 << 20))
    small.append(bytearray(4000))  # lies behind the buffer where that one is in the heap
buffers.clear()
print((resident() - before) >> 20)
"""


def held(given: str) -> int:
    done = subprocess.run([sys.executable, "-c", _HELD, given], check=True, capture_output=True, text=True, timeout=60)
    return int(done.stdout)


def test_freed_large_buffers_are_not_resident_any_more() -> None:
    assert held("yes") <= 1
    assert held("no") >= 10
