"""What tests of restore under faults share: a history, a restore of many small windows, and the proof at its end."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne

from tests.integration.agent_rig import OURS, PATIENCE_SECONDS, Client, said
from tests.integration.capture_ledger import until
from tests.integration.relay import relay

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection

    from d5agent.drill.agent import Agent
    from tests.integration.agent_rig import AgentRig
    from tests.integration.relay import Relay

Accounts = list[dict[str, Any]]
WINDOW_BYTES: Final = 6_000
_ORDERS: Final = 1_500
_ACCOUNTS: Final = 200
_OPERATOR: Final = 78
HEARTBEAT: Final = "heartbeatFrequencyMS=500&connectTimeoutMS=1000"


def hostile_rig(rig: AgentRig) -> None:
    """Let a restore take many windows: so that a fault finds it at work."""
    rig.config["restore"] = {"window_bytes": WINDOW_BYTES, "lanes": 2}


async def captured_history(rig: AgentRig, *, target_uri: str = "", seed: int = 7) -> Agent:
    """Return an agent whose log holds the history; both sides held the same before."""
    if "restore" not in rig.config:
        hostile_rig(rig)
    for uri in (rig.source.uri, target_uri or rig.target.uri):
        await _seed(uri)
    agent = await rig.captured_agent()
    async with Client(rig.source.uri) as client:
        count = await _happen(client, random.Random(seed))
    await until_captured(agent, count)
    return agent


async def captured_accounts(rig: AgentRig) -> Agent:
    """Return an agent that captures; both sides hold the accounts with their unique value."""
    hostile_rig(rig)
    for uri in (rig.source.uri, rig.target.uri):
        await _seed(uri)
    return await rig.captured_agent()


async def until_captured(agent: Agent, count: int) -> None:
    """Wait until the log holds so many operations."""

    async def is_so() -> bool:
        return bool((await agent.status())["capture"]["operations"] >= count)

    await until(is_so, what=f"{count} operations are captured: see {agent.log}")


async def _seed(uri: str) -> None:
    """Put what DMS had copied into a server, with the unique index of the accounts."""
    async with Client(uri) as client:
        for name in ("shop", "scratch"):  # no other: writers of the test may be at work already
            await client.drop_database(name)
        shop = client["shop"]
        await shop["orders"].insert_many([{"_id": n, "n": 0, "filler": "x" * 60} for n in range(0, _ORDERS, 2)])
        await shop["accounts"].create_index("email", unique=True)
        await shop["accounts"].insert_many([{"_id": n, "email": f"{n}@example.org"} for n in range(_ACCOUNTS)])
        await shop["archive"].insert_many([{"_id": n, "old": True} for n in range(50)])
        await client["scratch"]["a"].insert_many([{"_id": n} for n in range(50)])


async def _happen(client: Client, dice: random.Random) -> int:
    """Let the applications write; return how many operations that are, at least."""
    shop = client["shop"]
    await shop["orders"].insert_many([{"_id": n, "n": 0, "filler": "x" * 60} for n in range(1, _ORDERS, 2)])
    await shop["orders"].bulk_write([_change(dice, n) for n in range(_ORDERS)], ordered=False)
    await rotate(client, shop["accounts"], rounds=2, in_transactions=True)
    await rotate(client, shop["accounts"], rounds=1, in_transactions=False)
    await shop["new"].insert_many([{"_id": n, "new": True} for n in range(100)])
    await shop["new"].update_many({}, {"$set": {"later": 1}})
    await client.admin.command({"renameCollection": "shop.new", "to": "shop.archive", "dropTarget": True})
    await client.drop_database("scratch")
    await client["scratch"]["a"].insert_many([{"_id": n, "again": True} for n in range(30)])
    await shop["orders"].bulk_write([_change(dice, n) for n in range(_ORDERS)], ordered=False)
    return _ORDERS + 6 * _ACCOUNTS


def _change(dice: random.Random, id_: int) -> DeleteOne | InsertOne[Any] | ReplaceOne[Any] | UpdateOne:
    kind = dice.choice(("update", "update", "replace", "delete"))
    if kind == "delete":
        return DeleteOne({"_id": id_})
    if kind == "replace":
        return ReplaceOne({"_id": id_}, {"_id": id_, "replaced": dice.random()}, upsert=True)
    return UpdateOne({"_id": id_}, {"$inc": {"n": 1}, "$set": {"filler": "y" * dice.randrange(100)}}, upsert=True)


async def rotate(
    client: Client, accounts: AsyncCollection[dict[str, Any]], *, rounds: int, in_transactions: bool
) -> None:
    """Hand each document's unique value to the next one, so many times: all are given up first."""
    for round_ in range(rounds):
        found: Accounts = await accounts.find(sort=[("_id", 1)]).to_list()
        moves = _moves(found, round_)
        if not in_transactions:
            await accounts.bulk_write(moves)
            continue
        async with client.start_session(causal_consistency=False) as session, await session.start_transaction():
            await _write(accounts, moves, session)


async def _write(
    accounts: AsyncCollection[dict[str, Any]], moves: Sequence[UpdateOne], session: AsyncClientSession
) -> None:
    await accounts.bulk_write(moves, session=session)


def _moves(found: Accounts, round_: int) -> list[UpdateOne]:
    released = [UpdateOne({"_id": row["_id"]}, {"$set": {"email": f"free {row['_id']} {round_}"}}) for row in found]
    givers = found[-1:] + found[:-1]
    return released + [
        UpdateOne({"_id": heir["_id"]}, {"$set": {"email": giver["email"]}})
        for heir, giver in zip(found, givers, strict=True)
    ]


@asynccontextmanager
async def relayed(rig: AgentRig) -> AsyncGenerator[Relay]:
    """Let the agent reach the target through a relay only."""
    async with relay(f"127.0.0.1:{rig.target.port}") as between:
        rig.config["target"] = {"uri": f"mongodb://{between.address}/?directConnection=true&{HEARTBEAT}"}
        yield between


async def in_the_middle(agent: Agent) -> None:
    """Wait until restore has begun to write, and has not ended."""

    async def is_so() -> bool:
        status = await agent.status()
        row = status["services"].get("restore", {})
        assert row.get("state") not in {"failed", "done"}, row
        return row.get("state") == "running" and bool(status["restore"]["documents_written"])

    await until(is_so, what=f"restore is at work: see {agent.log}")


async def restore_row(agent: Agent) -> dict[str, Any]:
    """Return what the daemon says of restore."""
    row: dict[str, Any] = (await agent.status())["services"].get("restore", {})
    return row


async def until_restore_is(agent: Agent, state: str, *, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
    """Wait until restore is in a state, and return its row."""
    deadline = asyncio.get_running_loop().time() + seconds
    while (row := await restore_row(agent)).get("state") != state:
        assert row.get("state") != "failed" or state == "done", row
        assert asyncio.get_running_loop().time() < deadline, f"restore is not {state}: {row}, see {agent.log}"
        await asyncio.sleep(0.05)
    return row


async def failed_with(agent: Agent, *words: str) -> None:
    """See that restore fails with these words in error and hint, and that whoever follows it ends with 78."""
    row = await until_restore_is(agent, "failed")
    for word in words:
        assert word in f"{row['error']} {row['hint']}", row
    assert row["hint"], row


async def start_fails(agent: Agent, *words: str) -> None:
    """Start restore, which ends with 78 and these words."""
    ended = await agent.run("start", "restore", "--follow")
    assert ended.code == _OPERATOR, said(ended)
    for word in words:
        assert word in said(ended)


async def restored(rig: AgentRig, agent: Agent, *, target_uri: str = "", may_repair: bool = False) -> None:
    """Wait until restore is done; see that both servers hold the same by collection, and that replay did it all."""
    await until_restore_is(agent, "done", seconds=2 * PATIENCE_SECONDS)
    assert may_repair or "document_repaired" not in agent.log.read_text(encoding="utf-8"), agent.log
    source, target = await _hashes(rig.source.uri), await _hashes(target_uri or rig.target.uri)
    assert source
    assert source == target
    ended = await agent.run("verify", "--full", "--json")
    assert ended.code == 0, said(ended)


async def _hashes(uri: str) -> dict[str, dict[str, str]]:
    async with Client(uri) as client:
        names = sorted(set(await client.list_database_names()) - OURS)
        return {name: (await client[name].command("dbHash"))["collections"] for name in names}
