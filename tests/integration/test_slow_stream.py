"""A server that looks up slowly, and one that names no post-batch token: the stream moves on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.core.log.operation import Position, parse_event
from d5agent.errors import TransientError
from tests.integration.agent_rig import Client

if TYPE_CHECKING:
    from tests.integration.agent_rig import AgentRig

EVENTS = 150
LOOKUP_MS = 30  # so that all of them take 4.5 s, of the 0.6 s that an answer may take


class HastySource(ChangeStreamSource):
    """Waits a short time only for each answer."""

    answer_seconds = 0.6


async def _read(source: ChangeStreamSource, after: Position, count: int) -> tuple[list[int], int]:
    """Return the numbers read, up to so many, and how often the source gave the stream up."""
    found: list[int] = []
    failures = 0
    while len(found) < count:
        try:
            async with source.stream(after) as batches:
                async for batch in batches:
                    for operation in map(parse_event, batch.events):
                        after = Position(cluster_time=operation.cluster_time, token=operation.token)
                        found.append(int.from_bytes((operation.document_id or b"")[1:], "little"))
                    if len(found) >= count:
                        break
        except TransientError:
            failures += 1
            assert failures < 3, f"it loops: {len(found)} of {count} events read"
    return found, failures


@pytest.mark.parametrize("sends_token", [True, False])
async def test_a_stream_with_slow_look_ups_moves_on(rig: AgentRig, *, sends_token: bool) -> None:
    rig.gateway.cluster.sends_post_batch_token = sends_token
    await rig.enable()
    uri = rig.source_uri
    async with open_mongo(uri, side="source") as opened, Client(uri) as client:
        source = HastySource(opened, uri=uri, flavor="documentdb", clock=SystemClock())
        start = Position(cluster_time=await source.now(), token=None)
        await client["shop"]["orders"].insert_many([{"_id": number} for number in range(EVENTS)])
        await client.admin.command({"d5Gateway": 1, "action": "slowLookups", "ms": LOOKUP_MS})
        found, _ = await _read(source, start, EVENTS)
        assert found == list(range(EVENTS))
        assert 1 <= source._portion.events <= 20
        await client.admin.command({"d5Gateway": 1, "action": "slowLookups", "ms": 0})
