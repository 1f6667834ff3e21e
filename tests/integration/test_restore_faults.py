"""Restore while the daemon, the target, the line to it or S3 fails: it carries on, or says what to mend and does then.

Each ends with `dbHash` equal on both servers.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING, Any

import pytest

from d5agent.drill.s3_proxy import S3Proxy, ignore, lose_answer, refuse, stall
from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from tests.integration.agent_rig import PATIENCE_SECONDS, Client
from tests.integration.capture_ledger import until
from tests.integration.restore_rig import (
    captured_history,
    failed_with,
    in_the_middle,
    relayed,
    restore_row,
    restored,
    start_fails,
    until_restore_is,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from d5agent.drill.agent import Agent
    from d5agent.drill.s3_proxy import Act
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
KILLS = 10
SEGMENTS = "replication/shop/"
NEW_SEED = random.SystemRandom().randrange(10**9)


@pytest.mark.parametrize("seed", [1, NEW_SEED], ids=["a known seed", "a new seed"])
async def test_killed_at_random_moments_it_is_carried_on(rig: AgentRig, seed: int) -> None:
    sys.stdout.write(f"seed {seed}\n")
    dice = random.Random(seed)
    agent = await captured_history(rig, seed=seed)
    await agent.call("start", "restore")
    at_work = 0
    for _ in range(KILLS):
        await in_the_middle_or_done(agent)
        await asyncio.sleep(dice.uniform(0, 0.4))  # the moment is what is random here; nothing is waited for
        at_work += (await restore_row(agent)).get("state") == "running"
        await agent.kill()
        await agent.start()
    assert at_work > 1, "the kills came when nothing was at work"
    await restored(rig, agent)


async def in_the_middle_or_done(agent: Agent) -> None:
    """Wait until restore is at work, or has ended."""

    async def is_so() -> bool:
        return (await restore_row(agent)).get("state") in {"running", "done"}

    await until(is_so, what=f"restore is at work: see {agent.log}")


async def test_the_line_to_the_target_is_cut_again_and_again(rig: AgentRig) -> None:
    async with relayed(rig) as between:
        agent = await captured_history(rig)
        await agent.call("start", "restore")
        await in_the_middle(agent)
        cut = 0
        for _ in range(15):
            cut += between.cut_connections()
            await asyncio.sleep(0.1)  # how long it is left alone: this is the fault itself
        assert cut
        await restored(rig, agent)


async def test_packets_to_the_target_vanish_for_a_while(rig: AgentRig) -> None:
    async with relayed(rig) as between:
        agent = await captured_history(rig)
        await agent.call("start", "restore")
        await in_the_middle(agent)
        between.is_dark = True
        between.forget_connections()
        await asyncio.sleep(3)  # the black hole's depth
        assert (await restore_row(agent))["state"] != "done"
        between.is_dark = False
        between.cut_connections()
        await restored(rig, agent)


async def test_connections_to_the_target_that_die_without_a_word_are_noticed(rig: AgentRig) -> None:
    async with relayed(rig) as between:
        agent = await captured_history(rig)
        await agent.call("start", "restore")
        await in_the_middle(agent)
        between.forget_connections()
        await restored(rig, agent)


async def test_a_target_that_is_not_reached_is_waited_for(rig: AgentRig, tmp_path: Path) -> None:
    server = Mongod(tmp_path / "target")
    await server.start()
    try:
        rig.config["target"] = {"uri": server.uri}
        agent = await captured_history(rig, target_uri=server.uri)
        await agent.call("start", "restore")
        await in_the_middle(agent)
        await server.kill()
        row = await until_restore_is(agent, "waiting")
        assert "the target is not reached" in row["error"]
        await server.start()
        await restored(rig, agent, target_uri=server.uri)
    finally:
        await server.kill()


async def test_a_target_that_is_locked_is_waited_for(rig: AgentRig) -> None:
    agent = await captured_history(rig)
    await agent.call("start", "restore")
    await in_the_middle(agent)
    async with Client(rig.target.uri, directConnection=True) as client:
        await client.admin.command("fsync", lock=True)  # what a snapshot of its disk takes
        before = (await agent.status())["restore"]["documents_written"]
        await asyncio.sleep(2)  # how long the snapshot takes
        assert (await restore_row(agent))["state"] in {"running", "waiting"}
        await client.admin.command("fsyncUnlock")
    assert before < (await until_done(agent))["restore"]["documents_written"]
    await restored(rig, agent)


async def until_done(agent: Agent) -> dict[str, Any]:
    """Wait until restore is done, and return the status."""
    await until_restore_is(agent, "done", seconds=2 * PATIENCE_SECONDS)
    return await agent.status()


async def test_a_target_whose_disk_is_full(rig: AgentRig, tmp_path: Path) -> None:
    server = Mongod(tmp_path / "full", options=ServerOptions(test_commands=True))
    await server.start()
    try:
        rig.config["target"] = {"uri": server.uri}
        agent = await captured_history(rig, target_uri=server.uri)
        await agent.call("start", "restore")
        await in_the_middle(agent)
        async with Client(server.uri) as client:
            await fail_writes(client, 14031)
            await failed_with(agent, "disk", "full", "d5agent start restore")
            await start_fails(agent, "full")
            await client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
        await agent.call("start", "restore")
        await restored(rig, agent, target_uri=server.uri)
    finally:
        await server.kill()


async def fail_writes(client: Client, code: int) -> None:
    """Let each write of the agent fail with a code, until that is switched off."""
    commands = ["insert", "update", "delete"]
    data = {"failCommands": commands, "errorCode": code, "appName": "d5agent"}
    await client.admin.command({"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data})


async def test_a_user_that_may_not_write_any_more(rig: AgentRig, tmp_path: Path) -> None:
    root = Credentials(username="root", password="hush-root")
    server = Mongod(tmp_path / "locked", options=ServerOptions(credentials=root))
    await server.start()
    try:
        reader, writer = (
            [{"role": role, "db": "admin"} for role in ("clusterMonitor", *roles)]
            for roles in (("readAnyDatabase",), ("readWriteAnyDatabase", "dbAdminAnyDatabase"))  # docs/privileges.md
        )
        async with Client(server.uri) as client:
            await client.admin.command({"createUser": "agent", "pwd": "hush-agent", "roles": writer})
            host = server.members[0].address
            rig.config["target"] = {"uri": f"mongodb://agent:hush-agent@{host}/?replicaSet=rs0&authSource=admin"}
            agent = await captured_history(rig, target_uri=server.uri)
            await agent.call("start", "restore")
            await in_the_middle(agent)
            await client.admin.command({"updateUser": "agent", "roles": reader})
            await failed_with(agent, "a privilege is missing on the target")
            await start_fails(agent, "a privilege is missing on the target")
            await client.admin.command({"updateUser": "agent", "roles": writer})
            await agent.call("start", "restore")
            await restored(rig, agent, target_uri=server.uri)
    finally:
        await server.kill()


async def test_s3_fails_for_a_moment_while_the_log_is_read(rig: AgentRig, proxy: S3Proxy) -> None:
    agent = await captured_history(rig)
    faults = [
        proxy.fail(act, method="GET", key_prefix=SEGMENTS, times=3)
        for act in (refuse(500, "InternalError"), refuse(503, "SlowDown"), lose_answer())
    ]
    await agent.call("start", "restore")
    for fault in faults:
        await fault.until_met(3)
    await restored(rig, agent)


OUTAGES: dict[str, Callable[[], Act]] = {
    "503": lambda: refuse(503, "ServiceUnavailable"),
    "reset": lose_answer,
}


@pytest.mark.parametrize("act", OUTAGES.values(), ids=OUTAGES.keys())
async def test_an_outage_of_s3_while_the_log_is_read_is_waited_for(
    rig: AgentRig, proxy: S3Proxy, act: Callable[[], Act]
) -> None:
    agent = await captured_history(rig)
    fault = proxy.fail(act(), method="GET", key_prefix=SEGMENTS)
    await agent.call("start", "restore")
    await until_restore_is(agent, "waiting")
    fault.lift()
    await restored(rig, agent)


@pytest.mark.parametrize("act", [stall, ignore], ids=["stall", "ignore"])
async def test_an_s3_that_does_not_answer_while_the_log_is_read(
    rig: AgentRig, proxy: S3Proxy, act: Callable[[], Act]
) -> None:
    agent = await captured_history(rig)
    fault = proxy.fail(act(), method="GET", key_prefix=SEGMENTS)
    await agent.call("start", "restore")
    await fault.until_met()
    await asyncio.sleep(2)  # how long it does not answer
    fault.lift()
    await restored(rig, agent)


async def test_an_s3_that_refuses_to_be_read(rig: AgentRig, proxy: S3Proxy) -> None:
    agent = await captured_history(rig)
    fault = proxy.fail(refuse(403, "AccessDenied"), method="GET", key_prefix=SEGMENTS)
    await agent.call("start", "restore")
    await failed_with(agent, "AccessDenied")
    fault.lift()
    await agent.call("start", "restore")
    await restored(rig, agent)


async def test_s3_does_not_take_the_checkpoints_mirror(rig: AgentRig, proxy: S3Proxy) -> None:
    agent = await captured_history(rig)
    fault = proxy.fail(refuse(503, "SlowDown"), method="PUT", key_prefix="state/restore_checkpoint")
    await agent.call("start", "restore")
    await fault.until_met()
    fault.lift()
    await restored(rig, agent)
