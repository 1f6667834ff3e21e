"""The connection to the source is cut, slow or dead, in each state of capture: it carries on, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from d5agent.drill.child import pause
from tests.integration.agent_rig import PATIENCE_SECONDS, Client
from tests.integration.capture_ledger import Ledger, captured, paused, until, writers
from tests.integration.relay import relay

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
HEARTBEAT: Final = "&heartbeatFrequencyMS=500&connectTimeoutMS=1000"


@asynccontextmanager
async def cutting(rig: AgentRig, *, longest_pause: float = 0.1) -> AsyncGenerator[None]:
    """Cut every connection again and again while the block runs, and once at least."""
    rng = random.Random(7)

    async def cut_on() -> None:
        while True:
            rig.gateway.cut_connections()
            await pause(rng.uniform(0.005, longest_pause))

    async with asyncio.TaskGroup() as group:
        cutter = group.create_task(cut_on())
        yield
        cutter.cancel()


async def replication(agent: Agent) -> dict[str, Any]:
    """Return the row of replication."""
    row: dict[str, Any] = (await agent.status())["services"]["replication"]
    return row


async def ready(agent: Agent) -> None:
    """Wait until replication is ready; OperatorError when it fails instead."""
    await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)


async def test_cut_again_and_again_while_it_starts(rig: AgentRig) -> None:
    await rig.enable()
    agent = rig.agent()
    await agent.start()

    async def waits() -> bool:
        row = await replication(agent)
        return row["state"] == "waiting" and "trying again" in row["reason"]

    async with cutting(rig, longest_pause=0.02):
        await agent.call("start", "replication")
        await until(waits, what="replication waits, since its start was broken off")
    assert "the source is not reached" in (await replication(agent))["error"]
    await ready(agent)
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(300)
    await captured(rig, agent, ledger)


async def test_cut_while_it_proves_that_it_is_ready(rig: AgentRig) -> None:
    await rig.enable()
    rig.gateway.cluster.faults.delay_seconds = 0.5
    agent = rig.agent()
    await agent.start()
    await agent.call("start", "replication")

    async def has_first_commit() -> bool:
        return any(key.startswith("replication/.log/") for key in await rig.keys())

    await until(has_first_commit, what="the first commit")
    rig.gateway.cut_connections()
    assert not (await agent.status())["ready_at"], "it was ready before the cut: the state was missed"
    rig.gateway.cluster.faults.delay_seconds = 0
    await ready(agent)
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(300)
    await captured(rig, agent, ledger)


async def test_cut_while_it_is_idle(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = Ledger()
    await captured(rig, agent, ledger)
    with paused(agent):  # it has read all there was, and opens again after this
        assert rig.gateway.cut_connections()
        async with writers(rig.source_uri, ledger):
            await ledger.grown(100)
    await captured(rig, agent, ledger)


async def test_cut_again_and_again_under_load(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(200)
        async with cutting(rig, longest_pause=0.4):
            await ledger.grown(1_000)
        await ledger.grown(200)
    assert ledger.lost, "no answer was lost: then the cuts have cut nothing"
    await captured(rig, agent, ledger)


@pytest.mark.parametrize("way", ["sigterm", "stop"])
async def test_cut_again_and_again_while_it_drains(rig: AgentRig, way: str) -> None:
    rig.config["capture"]["max_segment_seconds"] = 60  # nothing is due by age: all of it is in hand when it is to stop
    rig.config["limits"] = {"drain_seconds": 5}
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(300)
    rig.gateway.cluster.faults.delay_seconds = 0.3  # draining takes several requests: each is cut
    async with cutting(rig, longest_pause=0.2):
        await (agent.stop() if way == "sigterm" else agent.call("stop", "replication"))
    rig.gateway.cluster.faults.delay_seconds = 0
    async with writers(rig.source_uri, ledger, seed=8):
        await ledger.grown(100)
    rig.config["capture"]["max_segment_seconds"] = 0.2
    if way == "sigterm":
        rig.agent()
        await agent.start()
    else:
        await agent.stop()
        rig.agent()
        await agent.start()
        await agent.call("start", "replication")
    await captured(rig, agent, ledger)


async def test_delayed_under_load(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(200)
        rig.gateway.cluster.faults.delay_seconds = 0.3
        await ledger.grown(100)
        rig.gateway.cluster.faults.delay_seconds = 0
        await ledger.grown(100)
    assert not ledger.lost
    await captured(rig, agent, ledger)
    assert "service_failed" not in agent.log.read_text(encoding="utf-8"), "slow is no failure"


async def test_black_holed_under_load(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(200)
        rig.gateway.cluster.faults.darken(4, rig.gateway.cut_connections)
        await ledger.grown(300)
    assert ledger.lost
    await captured(rig, agent, ledger)


async def test_connections_that_die_without_a_word_are_noticed(rig: AgentRig) -> None:
    # What a host that lost its power leaves behind: nobody resets its connections, while new ones reach its successor.
    # The driver's heartbeat notices it: after 10 s, and 20 s for its answer, unless the URI says otherwise.
    rig.config["source"]["uri"] += HEARTBEAT
    async with relay(rig.gateway.cluster.upstream) as between:
        rig.gateway.cluster.upstream = between.address
        agent = await rig.captured_agent()
        ledger = Ledger()
        async with writers(rig.source_uri + HEARTBEAT, ledger):
            await ledger.grown(200)
            between.forget_connections()
            await ledger.grown(200)
        assert ledger.lost
        await captured(rig, agent, ledger)


async def test_one_connection_that_dies_without_a_word_is_noticed(rig: AgentRig) -> None:
    # A middlebox that forgets one flow: the driver's heartbeat runs on another connection, and finds all well.
    rig.config["source"]["uri"] += HEARTBEAT
    async with relay(rig.gateway.cluster.upstream) as between:
        rig.gateway.cluster.upstream = between.address
        agent = await rig.captured_agent()
        ledger = Ledger()
        await captured(rig, agent, ledger)
        between.forget_connections(that_asked=b"$cmd.aggregate")
        await captured(rig, agent, ledger)


async def test_the_cursor_quota_is_waited_for(rig: AgentRig) -> None:
    await rig.enable()
    rig.gateway.cluster.faults.max_cursors = 1
    agent = rig.agent()
    await agent.start()

    async def waits() -> bool:
        row = await replication(agent)
        assert row["state"] != "failed", row
        return row["state"] == "waiting" and "too many" in f"{row['error']} {row['hint']}"

    async with Client(rig.source_uri) as client, await client.watch() as other:
        await other.try_next()
        await agent.call("start", "replication")
        await until(waits, what="it waits for a cursor")
    await ready(agent)
