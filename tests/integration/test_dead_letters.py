"""A target with a validator that the source has not: what it refuses is named, and taken up once it is mended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from bson import decode

from tests.integration.agent_rig import Client
from tests.integration.restore_rig import captured_accounts, failed_with, restored, start_fails, until_captured

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig


pytestmark = pytest.mark.system


async def letters_of(rig: AgentRig) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Return the letters by `_id`, and all that lies there by key."""
    async with rig.store() as store:
        keys = [found.key async for page in store.list_objects("dead-letter/") for found in page]
        bodies = {key: await store.get(key) or b"" for key in keys}
    letters = [json.loads(body) for key, body in bodies.items() if key.endswith(".json")]
    return {letter["id"]: letter for letter in letters}, bodies


async def validate(rig: AgentRig, rule: dict[str, Any]) -> None:
    """Let the target accept such accounts only."""
    async with Client(rig.target.uri) as client:
        await client["shop"].command({"collMod": "accounts", "validator": rule})


async def write_accounts(rig: AgentRig) -> int:
    """Write accounts of which the validator refuses two in the end; return how many operations that is."""
    async with Client(rig.source.uri) as client:
        accounts = client["shop"]["accounts"]
        await accounts.insert_many([{"_id": n, "email": f"{n}@example.org"} for n in range(300, 400)])
        await accounts.insert_one({"_id": "new", "email": "refused new"})
        await accounts.update_one({"_id": 7}, {"$set": {"email": "refused 7"}})
        await accounts.update_one({"_id": 8}, {"$set": {"email": "refused for a moment"}})
        await accounts.update_one({"_id": 8}, {"$set": {"email": "8 again"}})
    return 104


async def test_documents_that_a_validator_refuses_lie_in_dead_letter_until_it_is_mended(rig: AgentRig) -> None:
    agent = await captured_accounts(rig)
    await validate(rig, {"email": {"$not": {"$regex": "^refused"}}})
    count = await write_accounts(rig)
    await until_captured(agent, count)
    await start_fails(agent, "the target refuses 2 documents", "Document failed validation")
    await failed_with(agent, "dead-letter/")
    letters, bodies = await letters_of(rig)
    assert letters.keys() == {"7", "new"}
    (of_seven,) = letters["7"]["documents"]
    assert decode(bodies[of_seven]) == {"_id": 7, "email": "refused 7"}
    assert (letters["7"]["operation"], letters["7"]["sequence"] > 0) == ("update", True)
    async with Client(rig.target.uri) as client:
        accounts = client["shop"]["accounts"]
        assert await accounts.count_documents({"_id": {"$gte": 300}}) == 100, "a refusal hides no other write"
        assert await accounts.find_one({"_id": 7}) == {"_id": 7, "email": "7@example.org"}, "it stays as it was"
    await validate(rig, {})
    async with Client(rig.source.uri) as client:  # newer than its letter: this is what it becomes
        await client["shop"]["accounts"].update_one({"_id": 7}, {"$set": {"email": "newer"}})
    await until_captured(agent, count + 1)
    await agent.call("start", "restore")
    await restored(rig, agent)
    async with Client(rig.target.uri) as client:
        assert await client["shop"]["accounts"].find_one({"_id": 7}) == {"_id": 7, "email": "newer"}
    assert await letters_of(rig) == ({}, {})
