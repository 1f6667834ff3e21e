"""Collections are renamed while the stream looks up their documents: a look-up that is broken off is made again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from tests.integration.agent_rig import Client

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

_DOCUMENTS: Final = 200
_MOST_RENAMES: Final = 600
_SOME: Final = 20


async def test_a_rename_during_a_look_up_stops_nothing(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    names = ["a", "b"]
    async with Client(rig.source.uri) as client:
        await client["shop"]["a"].insert_many([{"_id": number} for number in range(_DOCUMENTS)])
        before = await _failed_commands(client)
        renames = 0
        while renames % _SOME or not await _failed_commands(client) > before:
            assert renames < _MOST_RENAMES, "no look-up was broken off: the test shows nothing"
            old, new = names
            await client["shop"][old].update_many({}, {"$inc": {"n": 1}})
            await client.admin.command({"renameCollection": f"shop.{old}", "to": f"shop.{new}"})
            names.reverse()
            renames += 1
        told = await rig.until_captured(_DOCUMENTS + renames * (_DOCUMENTS + 1))
    assert Counter(operation.kind for operation in told) == {
        "insert": _DOCUMENTS,
        "update": renames * _DOCUMENTS,
        "rename": renames,
    }
    await rig.restored(agent)
    source, target = await rig.hashes()
    assert source == target


async def _failed_commands(client: Client) -> int:
    """Return how many commands that read a stream the server has failed."""
    commands = (await client.admin.command("serverStatus"))["metrics"]["commands"]
    return sum(commands[name]["failed"] for name in ("aggregate", "getMore"))
