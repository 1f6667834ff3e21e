"""Capture while S3 fails: the daemon as a process, a real S3 server behind a proxy, writers that keep books.

Each ends with the log holding every acknowledged write once and in order, or with a failed service that says what to
mend, and carries on when that is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bson import decode

from d5agent.drill.s3_proxy import S3Proxy, ignore, lose_answer, refuse, slow_down, stall, tear_upload
from tests.integration.agent_rig import Client, said
from tests.integration.capture_ledger import Ledger, assert_whole, captured, until, writers

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.drill.agent import Agent
    from d5agent.drill.s3_proxy import Act
    from tests.integration.agent_rig import AgentRig

pytestmark = pytest.mark.system
LOG = "replication/"
COMMITS = "replication/.log/"
OPERATOR = 78
MEBIBYTE = 1024 * 1024


async def replication_of(agent: Agent) -> dict[str, Any]:
    """Return what the daemon says of replication."""
    row: dict[str, Any] = (await agent.status())["services"]["replication"]
    return row


async def until_replication_is(agent: Agent, state: str) -> dict[str, Any]:
    """Wait until replication is in a state, and return its row."""

    async def is_so() -> bool:
        return bool((await replication_of(agent))["state"] == state)

    await until(is_so, what=f"replication is {state}: see {agent.log}")
    return await replication_of(agent)


async def until_more_is_stored(agent: Agent) -> None:
    """Wait until the log has grown."""
    before = (await agent.status())["capture"]["operations"]

    async def is_so() -> bool:
        return bool((await agent.status())["capture"]["operations"] > before)

    await until(is_so, what=f"more is stored: see {agent.log}")


async def test_faults_that_pass_within_the_tries_of_a_request(rig: AgentRig, proxy: S3Proxy) -> None:
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        for act, keys in (
            (refuse(500, "InternalError"), LOG),
            (refuse(503, "SlowDown"), LOG),
            (refuse(429, "Whatever"), LOG),
            (refuse(400, "ThrottlingException"), LOG),
            (refuse(400, "RequestTimeoutException"), COMMITS),
            (refuse(409, "ConditionalRequestConflict"), COMMITS),
            (tear_upload(), LOG),
            (lose_answer(), LOG),
            (lose_answer(), COMMITS),
            (slow_down(bytes_per_second=100_000), LOG),
        ):
            fault = proxy.fail(act, method="PUT", key_prefix=keys, times=4)
            await fault.until_met(4)
            await until_more_is_stored(agent)  # else the next fault meets a request that has used up its tries
    await captured(rig, agent, ledger)
    assert "service_failed" not in agent.log.read_text(encoding="utf-8")


OUTAGES: dict[str, tuple[Callable[[], Act], str]] = {
    "503-everywhere": (lambda: refuse(503, "ServiceUnavailable"), ""),
    "unknown-code": (lambda: refuse(400, "SomethingNew"), LOG),
    "torn-half-way": (tear_upload, LOG),
    "answers-to-commits-lost": (lose_answer, COMMITS),
}


@pytest.mark.parametrize(("act", "keys"), OUTAGES.values(), ids=OUTAGES.keys())
async def test_an_outage_that_outlasts_the_tries_of_a_request(
    rig: AgentRig, proxy: S3Proxy, act: Callable[[], Act], keys: str
) -> None:
    """Replication says so, waits, and begins again at its last commit: what it held is stored a second time nowhere."""
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(20)
        fault = proxy.fail(act(), method="PUT", key_prefix=keys)
        row = await until_replication_is(agent, "waiting")
        assert "trying again" in row["reason"]
        assert "S3" in row["error"]
        assert row["hint"]
        fault.lift()
        await until_replication_is(agent, "running")
        await ledger.grown(20)
    await captured(rig, agent, ledger)


async def test_an_s3_that_takes_requests_and_never_answers(rig: AgentRig, proxy: S3Proxy) -> None:
    """Half a minute long: it is what the agent waits for an answer. Both silences at once.

    The holder's record, renewed every ten seconds, is refused once meanwhile: that stops nobody.
    """
    agent = await rig.captured_agent()
    record = proxy.fail(refuse(403, "AccessDenied"), key_prefix="state/holder.json", times=1)
    async with Client(rig.source_uri) as client:
        deaf = proxy.fail(stall(), method="PUT", key_prefix="replication/shop/deaf", times=1)  # no 100 Continue
        mute = proxy.fail(ignore(), method="PUT", key_prefix="replication/shop/mute", times=1)
        async with client.start_session(causal_consistency=False) as session, await session.start_transaction():
            for name in ("deaf", "mute"):  # one commit: both uploads run at the same time
                await client["shop"][name].insert_one({"_id": 1}, session=session)
        await deaf.until_met()
        await mute.until_met()
        await client["shop"]["orders"].insert_one({"_id": "meanwhile"})
        await rig.until_captured(3)
    assert len(await rig.operations()) == 3
    assert record.met == 1
    assert (await replication_of(agent))["state"] == "running"
    log = agent.log.read_text(encoding="utf-8")
    assert "holder_not_renewed" in log
    assert "service_failed" not in log
    await assert_whole(agent)


async def test_an_s3_that_refuses_until_something_is_mended(rig: AgentRig, proxy: S3Proxy) -> None:
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        for status, code, keys, hint in (
            (403, "AccessDenied", LOG, "s3:PutObject"),
            (403, "AccessDenied", "", "s3:PutObject"),
            (403, "RequestTimeTooSkewed", "", "set this machine's clock right"),
        ):
            fault = proxy.fail(refuse(status, code), key_prefix=keys)
            row = await until_replication_is(agent, "failed")
            assert "S3 refused a request" in row["error"]
            assert code in row["error"]
            assert hint in row["hint"]
            ended = await agent.run("start", "replication", "--follow")  # nothing is mended yet
            assert ended.code == OPERATOR
            assert hint in said(ended)
            fault.lift()
            await agent.call("start", "replication")
            await until_replication_is(agent, "running")
            await ledger.grown(20)
    await captured(rig, agent, ledger)


async def test_an_s3_that_refused_once(rig: AgentRig, proxy: S3Proxy) -> None:
    agent = await rig.captured_agent()
    ledger = Ledger()
    async with writers(rig.source_uri, ledger):
        await ledger.grown(100)
        proxy.fail(refuse(403, "AccessDenied"), method="PUT", key_prefix=LOG, times=1)
        await until_replication_is(agent, "failed")
        await agent.call("start", "replication")
        await ledger.grown(100)
    await captured(rig, agent, ledger)


async def test_an_s3_that_stalls_under_load(rig: AgentRig, proxy: S3Proxy) -> None:
    """More than the agent may hold is written meanwhile: the reader waits, and all is stored afterwards."""
    documents = 300
    agent = await rig.captured_agent()
    fault = proxy.fail(stall(), method="PUT", key_prefix=LOG)
    async with Client(rig.source_uri) as client:
        for number in range(documents):
            await client["shop"]["large"].insert_one({"_id": number, "filler": bytes(MEBIBYTE)})
    await fault.until_met()
    assert not await rig.operations()
    fault.lift()

    async def is_all_captured() -> bool:
        return ((await agent.status())["capture"]["operations"] or 0) > documents  # our own mark is one more

    await until(is_all_captured, what=f"{documents} operations captured: see {agent.log}")
    assert [decode(o.raw)["documentKey"]["_id"] for o in await rig.operations()] == list(range(documents))
    assert (await replication_of(agent))["state"] == "running"
    agent.note_memory()
    assert agent.peak_bytes < 256 * MEBIBYTE
    await assert_whole(agent)
