"""What tests of backups share: a mongodump that can be told to hang or to die, and what a backup may leave behind."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d5agent.drill.tools import find_tool, inherited_environment
from tests.integration.agent_rig import OURS, PATIENCE_SECONDS, Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.drill.agent import Agent
    from d5agent.drill.servers import Mongod
    from tests.integration.agent_rig import AgentRig

MEBIBYTE = 1024 * 1024
# It notes each dump by its database and its pid, then does what the file of the database's name says, if there is one.
_SCRIPT = """#!/bin/sh
for argument in "$@"; do case "$argument" in --db=*) database=${argument#--db=} ;; esac; done
[ -n "$database" ] || [ ! -e FOLDER/version ] || exec cat FOLDER/version
[ -n "$database" ] || exec MONGODUMP "$@"
echo "$database" >> FOLDER/dumped
echo $$ >> FOLDER/pids
case "$(cat "FOLDER/acts/$database" 2>/dev/null)" in
hang)
    MONGODUMP "$@" | head -c 100
    echo "the server has not answered for a while" >&2
    exec sleep 1000 ;;
die)
    MONGODUMP "$@" | head -c 100
    echo "Failed: error reading collection: connection closed unexpectedly" >&2
    exit 1 ;;
esac
exec MONGODUMP "$@"
"""


class TamedMongodump:
    """The real mongodump, unless it is told otherwise for a database. Put `path` into `[backup] mongodump`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "acts").mkdir(parents=True)
        self.path = folder / "mongodump"
        text = _SCRIPT.replace("FOLDER", str(folder)).replace("MONGODUMP", str(find_tool("mongodump")))
        self.path.write_text(text, encoding="utf-8")
        self.path.chmod(0o755)

    def tell(self, database: str, act: str) -> None:
        """Let dumps of a database hang or die from now on; nothing: let them work again."""
        (self._folder / "acts" / database).write_text(act, encoding="utf-8")

    def claim(self, version: str) -> None:
        """Let it say that it is of another version."""
        (self._folder / "version").write_text(f"mongodump version: {version}\n", encoding="utf-8")

    def dumped(self) -> list[str]:
        """Return the databases in the order in which their dumps were begun."""
        return self._lines("dumped")

    def alive(self) -> list[int]:
        """Return the pids of the dumps that still run."""
        return [int(pid) for pid in self._lines("pids") if _is_alive(int(pid))]

    async def until_begun(self, count: int) -> None:
        """Wait until so many dumps have been begun."""
        await until(lambda: len(self.dumped()) >= count)

    async def until_gone(self) -> None:
        """Wait until none runs any more."""
        await until(lambda: not self.alive())

    def _lines(self, name: str) -> list[str]:
        with suppress(FileNotFoundError):
            return (self._folder / name).read_text(encoding="utf-8").split()
        return []


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something outside of us is so."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while not is_so():
        assert asyncio.get_running_loop().time() < deadline, "it did not come true"
        await asyncio.sleep(0.02)


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False


async def fill(server: Mongod, database: str, *, mebibytes: int) -> None:
    """Insert bytes that no compression makes smaller."""
    async with Client(server.uri) as client:
        for _ in range(mebibytes):
            await client[database]["random"].insert_many([{"x": os.urandom(MEBIBYTE // 8)} for _ in range(8)])


async def empty(server: Mongod) -> None:
    """Drop all that applications have."""
    async with Client(server.uri) as client:
        for name in set(await client.list_database_names()) - OURS:
            await client.drop_database(name)


async def contents(server: Mongod) -> dict[str, tuple[str, Any]]:
    """Return the hash of each collection, and its indexes."""
    found: dict[str, tuple[str, Any]] = {}
    async with Client(server.uri) as client:
        for name in sorted(set(await client.list_database_names()) - OURS):
            for collection, digest in (await client[name].command("dbHash"))["collections"].items():
                found[f"{name}.{collection}"] = (digest, await client[name][collection].index_information())
    return found


async def half_way(rig: AgentRig) -> list[str]:
    """Return the keys of the multipart uploads that stand half-way in the bucket."""
    async with rig.s3.client() as s3:
        answer = await s3.list_multipart_uploads(Bucket=rig.bucket)
        return [upload["Key"] for upload in answer.get("Uploads", [])]


async def backup_state(agent: Agent, *states: str) -> dict[str, Any]:
    """Wait until backup has one of these states, and return its row."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            row: dict[str, Any] = (await agent.status())["services"]["backup"]
            if row["state"] in states:
                return row
            await asyncio.sleep(0.05)


async def require_whole(rig: AgentRig, agent: Agent) -> None:
    """Both sides are backed up, each archive is what its manifest says, and nothing is left half-way."""
    report = await agent.json("backups", "verify")
    assert report["whole"], report
    assert report["sides"] == ["target", "source"]
    assert await half_way(rig) == []


class Shell:
    """Where an operator types: `d5agent` reads the rig's configuration, and mongorestore is on the path."""

    def __init__(self, rig: AgentRig) -> None:
        folder = rig.folder / "bin"
        folder.mkdir()
        program = folder / "d5agent"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m d5agent "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        (folder / "mongorestore").symlink_to(find_tool("mongorestore"))
        self._environment = inherited_environment(
            AWS_ACCESS_KEY_ID=rig.s3.access_key,
            AWS_SECRET_ACCESS_KEY=rig.s3.secret_key,
            D5AGENT_CONFIG=str(rig.folder / "d5agent.toml"),
            PATH=f"{folder}:/usr/bin:/bin",
        )

    async def run(self, command: str) -> tuple[int, str]:
        """Run a line in bash; return its exit code, and all that it wrote."""
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", command),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    async def call(self, command: str) -> str:
        """Run a line in bash, and return what it wrote; it must end well."""
        code, output = await self.run(command)
        assert code == 0, f"{command}: {output}"
        return output
