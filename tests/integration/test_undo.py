"""Undo: MongoDB is put back to its dump with the commands of the runbook, one by one, and restored once more."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.agent_rig import Client
from tests.integration.backup_rig import Shell, contents, empty

if TYPE_CHECKING:
    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook"


def commands(page: str, title: str) -> list[str]:
    """Return the commands of a section of the runbook, in order: its indented lines."""
    text = (RUNBOOK / page).read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("       ")]


class Operator:
    """Types what the runbook says; what a test machine lacks (mongosh) is done in its stead."""

    def __init__(self, rig: AgentRig, agent: Agent, run_id: str) -> None:
        self._rig = rig
        self._agent = agent
        self._run_id = run_id
        self._shell = Shell(rig)
        self._file = rig.folder / "uri.yaml"
        self._file.touch(mode=0o600)
        self._file.write_text(f"uri: '{rig.target.uri}'\n", encoding="utf-8")

    async def type(self, command: str) -> None:
        """Follow one line of the runbook."""
        if command.startswith("db."):
            await self._drop_databases(command)
        elif "DATABASE" in command:
            for key in await self._keys():
                await self._load(command, key)
        else:
            await self._shell.call(self._filled(command))

    async def _drop_databases(self, command: str) -> None:
        assert re.fullmatch(r'db\.getSiblingDB\("DATABASE"\)\.dropDatabase\(\)', command)
        await empty(self._rig.target)

    async def _keys(self) -> list[str]:
        shown = await self._shell.call(self._filled("d5agent backups show RUN"))
        return [key for key in re.findall(r"dump/\S+\.archive\.gz", shown) if "/target/" in key]

    async def _load(self, command: str, key: str) -> None:
        name = key.rpartition("/")[2].removesuffix(".archive.gz")
        output = await self._shell.call(self._filled(command.replace("DATABASE", shlex.quote(name))))
        assert " 0 document(s) failed" in output

    def _filled(self, command: str) -> str:
        for name, value in {"RUN": self._run_id, "FILE": self._file}.items():
            command = re.sub(rf"\b{name}\b", str(value), command)
        return command


async def seed(rig: AgentRig) -> None:
    """Give both sides the same documents, and the target one that the source lacks."""
    for server in (rig.source, rig.target):
        async with Client(server.uri) as client:
            await client["shop"]["orders"].insert_many([{"_id": n, "n": 0} for n in range(20)])
            await client["shop"]["orders"].create_index("n")
            await client["a%2Fb"]["values"].insert_one({"_id": 1})
    async with Client(rig.target.uri) as client:
        await client["shop"]["old"].insert_one({"_id": "DMS never brought it"})


async def change(rig: AgentRig) -> None:
    """Let an outage happen: changes, new collections, a new database."""
    async with Client(rig.source_uri) as client:
        shop = client["shop"]
        await shop["orders"].update_many({"_id": {"$lt": 5}}, {"$inc": {"n": 1}})
        await shop["orders"].delete_many({"_id": {"$gt": 15}})
        await shop["made later"].insert_one({"_id": 1})
        await client["newdb"]["one"].insert_one({"_id": 1})
        await client["a%2Fb"]["values"].drop()
    await rig.until_captured(5 + 4 + 3)


async def restored(rig: AgentRig, agent: Agent) -> dict[str, Any]:
    """Wait for the proof, and return what the target holds then."""
    await agent.until(lambda now: now["services"]["restore"]["state"] == "done", what="restored", seconds=40)
    assert (await agent.json("verify"))["equal"]
    return await contents(rig.target)


@pytest.mark.system
async def test_the_runbooks_undo_puts_mongodb_back_to_its_dump_and_lets_it_be_restored_again(rig: AgentRig) -> None:
    await seed(rig)
    before = await contents(rig.target)
    agent = await rig.captured_agent()
    await change(rig)
    await agent.call("start", "restore")
    after = await restored(rig, agent)
    assert after != before
    operator = Operator(rig, agent, (await agent.status())["run_id"])
    typed = commands("README.md", "Put MongoDB back to its dump")
    again = typed.index("d5agent start restore --again RUN")
    for command in typed[:again]:
        await operator.type(command)
    assert await contents(rig.target) == before
    for command in typed[again:]:
        await operator.type(command)
    assert await restored(rig, agent) == after


def test_the_runbook_tells_the_same_commands_in_both_languages() -> None:
    english = commands("README.md", "Put MongoDB back to its dump")
    assert len(english) > 7
    assert commands("README.es.md", "Devolver MongoDB a su respaldo") == english
