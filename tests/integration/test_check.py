"""`d5agent check` names what would stop a restore or the power-off, while there is time to correct it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from d5agent.adapters.power import CommandPowerSwitch
from d5agent.drill.child import Child
from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from d5agent.errors import OperatorError
from tests.integration.agent_rig import Client, said

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.integration.agent_rig import AgentRig

MARKS = {"role": "dbOwner", "db": "d5agent"}
WRITER = [{"role": role, "db": "admin"} for role in ("readWriteAnyDatabase", "dbAdminAnyDatabase")]
MONITOR = {"role": "clusterMonitor", "db": "admin"}
USERS: dict[str, list[dict[str, str]]] = {
    "reader": [{"role": "readAnyDatabase", "db": "admin"}, MARKS],
    "writer": WRITER,
    "agent": [*WRITER, MONITOR],
}


@asynccontextmanager
async def locked_server(folder: Path) -> AsyncGenerator[Mongod]:
    """Start a server whose users each have too few rights, but for `agent`."""
    server = Mongod(folder, options=ServerOptions(credentials=Credentials(username="root", password="pw")))
    await server.start()
    try:
        async with Client(server.uri) as client:
            await client["shop"]["orders"].insert_one({"_id": 1})
            for name, roles in USERS.items():
                await client.admin.command({"createUser": name, "pwd": "pw", "roles": roles})
        yield server
    finally:
        await server.kill()


async def rows_of(rig: AgentRig) -> dict[str, dict[str, Any]]:
    ended = await rig.agent().run("check", "--json")
    values: dict[str, Any] = json.loads(ended.out)
    assert ended.code == (0 if values["ok"] else 78), said(ended)
    return {row["what"]: row for row in values["checks"]}


async def test_rights_that_are_missing_are_named(rig: AgentRig, tmp_path: Path) -> None:
    rig.state.mkdir(parents=True)
    async with locked_server(tmp_path / "locked") as server:
        as_user = {name: server.uri.replace("root:pw", f"{name}:pw") for name in USERS}
        rig.config["source"] = {"uri": as_user["reader"], "flavor": "mongodb"}
        rig.config["target"] = {"uri": as_user["reader"]}
        rows = await rows_of(rig)
        assert rows["source"]["ok"], rows
        assert "grant it clusterMonitor" in rows["source, running writes"]["hint"]
        assert rows["source, running writes"]["state"] == "no"
        assert "on shop=insert, update, remove, createCollection" in rows["target, writing"]["found"]
        assert "readWriteAnyDatabase" in rows["target, writing"]["hint"]
        rig.config["target"] = {"uri": as_user["writer"]}
        rows = await rows_of(rig)
        assert rows["target, writing"]["ok"], rows
        assert (rows["target, load"]["state"], rows["target, load"]["needed"]) == ("no", "restore")
        assert "clusterMonitor" in rows["target, load"]["hint"]
        for section in ("source", "target"):
            rig.config[section]["uri"] = as_user["agent"]
        rows = await rows_of(rig)
        for what in ("source, running writes", "target, writing", "target, load"):
            assert rows[what]["ok"], rows


async def test_standalone_target_and_taken_port_are_named(rig: AgentRig, tmp_path: Path) -> None:
    alone = Mongod(tmp_path / "alone")
    member = alone.members[0]
    arguments = [argument for argument in member._argv() if argument not in {"--replSet", "rs0"}]
    member.folder.joinpath("data").mkdir(parents=True)
    member._child = Child(arguments, log=member.log)
    member._child.start()
    await member.start()
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        rig.config["target"] = {"uri": f"mongodb://{member.address}/"}
        rig.config["metrics"] = {"listen": f"127.0.0.1:{port}"}
        await rig.enable()
        rows = await rows_of(rig)
        assert "the target is not a replica set" in rows["target"]["found"]
        assert rows["target"]["state"] == "no"
        assert "metrics cannot be served" in rows["metrics"]["found"]
        assert "ss -ltnp" in rows["metrics"]["hint"]
        server.close()
        await server.wait_closed()
        agent = rig.agent()
        assert "is free" in (await rows_of(rig))["metrics"]["found"]
        await agent.start()
        assert "served by the daemon" in (await rows_of(rig))["metrics"]["found"]
    finally:
        server.close()
        await member.kill()


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, said_by_logind: str) -> None:
    """Put a systemctl, and a busctl that answers for logind, before all others."""
    for name, text in (("systemctl", "exit 1"), ("busctl", f"echo '{said_by_logind}'")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    for parent in (folder, *folder.parents):  # another user runs them
        if "d5-" in str(parent):
            parent.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize("answer", ["no", "challenge", "na", "yes"])
async def test_logind_is_asked_for_the_daemons_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    programs(tmp_path, monkeypatch, f's "{answer}"')
    switch = CommandPowerSwitch(["systemctl", "poweroff"], timeout_seconds=5)
    assert "root" in await switch.require_right(user=0)
    if answer == "yes":
        assert "lets" in await switch.require_right(user=65534)
        return
    with pytest.raises(OperatorError, match="the daemon's user may not power off") as refused:
        await switch.require_right(user=65534)
    assert "polkit/49-d5agent.rules" in refused.value.hint


async def test_power_off_command_that_is_missing_is_named() -> None:
    switch = CommandPowerSwitch(["/no/such/program"], timeout_seconds=5)
    with pytest.raises(OperatorError, match="the power-off command is missing"):
        await switch.require_right(user=1000)
    assert "is there" in await CommandPowerSwitch(["true"], timeout_seconds=5).require_right(user=1000)
