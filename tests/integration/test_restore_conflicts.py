"""Unique values handed round among many documents, through many small windows: where others lose documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.integration.agent_rig import Client
from tests.integration.restore_rig import (
    captured_accounts,
    failed_with,
    restored,
    rotate,
    start_fails,
    until_captured,
)

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

_ROUNDS: Final = 20
_ACCOUNTS: Final = 200


@pytest.mark.parametrize(
    "in_transactions",
    [pytest.param(True, id="transactions"), pytest.param(False, id="one by one", marks=pytest.mark.system)],
)
async def test_values_handed_round_two_hundred_documents_twenty_times(rig: AgentRig, *, in_transactions: bool) -> None:
    agent = await captured_accounts(rig)
    async with Client(rig.source.uri) as client:
        await rotate(client, client["shop"]["accounts"], rounds=_ROUNDS, in_transactions=in_transactions)
    await until_captured(agent, 2 * _ACCOUNTS * _ROUNDS)
    await agent.call("start", "restore")
    await restored(rig, agent)
    async with Client(rig.target.uri) as client:
        found: list[dict[str, Any]] = await client["shop"]["accounts"].find(sort=[("_id", 1)]).to_list()
    handed_on = [f"{(row['_id'] - _ROUNDS) % _ACCOUNTS}@example.org" for row in found]
    assert [row["email"] for row in found] == handed_on
    assert len(found) == _ACCOUNTS


async def test_a_document_that_the_target_alone_has_is_named_with_the_one_that_it_keeps_out(rig: AgentRig) -> None:
    agent = await captured_accounts(rig)
    async with Client(rig.target.uri) as client:
        await client["shop"]["accounts"].insert_one({"_id": "stray", "email": "wanted@example.org"})
    async with Client(rig.source.uri) as client:
        accounts = client["shop"]["accounts"]
        await accounts.insert_many([{"_id": n, "email": f"{n}@example.org"} for n in range(300, 400)])
        await accounts.update_one({"_id": 7}, {"$set": {"email": "wanted@example.org"}})
    await until_captured(agent, 101)
    await start_fails(agent, "the target refuses 1 documents", "email_1", "wanted@example.org")
    await failed_with(agent, "dead-letter/")
    async with Client(rig.target.uri) as client:
        assert await client["shop"]["accounts"].count_documents({"_id": {"$gte": 300}}) == 100, "its batch was written"
        await client["shop"]["accounts"].delete_one({"_id": "stray"})
    await agent.call("start", "restore")
    await restored(rig, agent)
