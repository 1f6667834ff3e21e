"""The drill, short: both ways to restore end equal; `make demo` performs the classical one at length."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from d5agent.drill.tools import inherited_environment

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("mode", "window"), [("live", "read-only window"), ("drained", "read-only window, with backup and the kill")]
)
async def test_a_short_drill_ends_equal(mode: str, window: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "d5agent", "drill", "--mode", mode, "--operations", "1000", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=inherited_environment(),
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
    assert process.returncode == 0, err.decode()
    found = json.loads(out)
    assert found["equal"]
    assert all(row["equal"] for row in found["db_hash"])
    assert window in found["figures"]
    assert found["checks"]["after the certificate nothing is written to MongoDB without a word"]
    assert found["checks"]["MongoDB has the application's later writes and the accepted stray write"]
