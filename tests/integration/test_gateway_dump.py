"""mongodump through the gateway: what it needs, and that its dump restores."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from d5agent.drill.tools import find_tool
from tests.integration.test_gateway_rig import connected, fresh_name, rig_before

if TYPE_CHECKING:
    from pathlib import Path

    from d5agent.drill.servers import Mongod


async def _run(*argv: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_mongodump_needs_atlas_version(source_server: Mongod, tmp_path: Path) -> None:
    tool = str(find_tool("mongodump"))
    async with rig_before(source_server) as rig:
        status, output = await _run(tool, "--uri", rig.uri, "--db", "a", "--out", str(tmp_path))
        assert status == 1
        assert "Feature not supported: atlasVersion" in output


async def test_a_dump_through_the_gateway_restores(
    source_server: Mongod, target_server: Mongod, tmp_path: Path
) -> None:
    name = fresh_name()
    out = str(tmp_path / "dump")
    async with (
        rig_before(source_server, allow=frozenset({"atlasVersion"})) as rig,
        connected(target_server.uri) as target,
    ):
        rows = [{"_id": number, "x": number, "y": "z" * 2_000} for number in range(2_000)]
        await rig.client[name].a.insert_many(rows)
        await rig.client[name].a.create_index([("x", 1)], unique=True)
        dump = [str(find_tool("mongodump")), "--uri", rig.uri, "--db", name, "--out", out]
        status, output = await _run(*dump)
        assert status == 0, output
        restore = [str(find_tool("mongorestore")), "--uri", target_server.uri]
        status, output = await _run(*restore, out)
        assert status == 1
        assert "documentDB is not a registered storage engine" in output
        status, output = await _run(*restore, "--drop", "--noOptionsRestore", out)
        assert status == 0, output
        hashes = [(await each[name].command("dbHash"))["collections"] for each in (rig.direct, target)]
        assert hashes[0] == hashes[1]
        assert "x_1" in await target[name].a.index_information()
