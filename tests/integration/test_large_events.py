"""Events that the server cannot send, over 16 MB: capture goes on after them, and nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from bson import encode

from d5agent.adapters.change_stream import ChangeStreamSource
from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.core.log.operation import Position, parse_event
from d5agent.core.log.raw import spans
from tests.fakes.documents import raw_id
from tests.integration.agent_rig import Client

if TYPE_CHECKING:
    from d5agent.core.log.operation import Operation
    from d5agent.ports import EventBatch
    from tests.integration.agent_rig import AgentRig

_DATABASE: Final = "shop"
_MEGABYTE: Final = 1_000_000
_LARGEST_DOCUMENT: Final = 16 * 1024 * 1024
# An _id stands four times in an event, twice of them in hexadecimal: more than what a server adds to 16 MB.
_LONG_ID: Final = "x" * 9_000


async def _write(uri: str) -> list[tuple[str, Any]]:
    """Write some operations, two of them too large; return kinds and ids in order."""
    filler = _LARGEST_DOCUMENT - len(encode({"_id": _LONG_ID, "filler": b""}))
    async with Client(uri) as client:
        orders = client[_DATABASE]["orders"]
        await orders.insert_many([{"_id": number} for number in range(3)])
        await orders.update_one({"_id": 1}, {"$set": {"body": b"b" * (9 * _MEGABYTE)}})
        await orders.insert_many([{"_id": number} for number in range(3, 6)])
        await orders.insert_one({"_id": _LONG_ID, "filler": b"f" * filler})
        await orders.delete_one({"_id": 3})
        await orders.insert_one({"_id": 6, "body": b"b" * (15 * _MEGABYTE)})
    inserts = [("insert", 0), ("insert", 1), ("insert", 2)]
    between = [("insert", 3), ("insert", 4), ("insert", 5)]
    return [*inserts, ("update", 1), *between, ("insert", _LONG_ID), ("delete", 3), ("insert", 6)]


@pytest.mark.parametrize("flavor", ["mongodb", "documentdb"])
async def test_the_stream_goes_on_after_what_is_too_large_with_as_much_of_it_as_fits(
    rig: AgentRig, flavor: str
) -> None:
    await rig.enable()
    uri = rig.source.uri if flavor == "mongodb" else rig.source_uri
    read: list[tuple[Operation, bool]] = []

    def take(batch: EventBatch) -> None:
        found = [parse_event(event) for event in batch.events]
        read.extend((o, batch.is_reduced) for o in found if o.namespace.database == _DATABASE)

    async with open_mongo(uri, side="source") as client:
        source = ChangeStreamSource(client, uri=uri, flavor=flavor, clock=SystemClock())
        start = Position(cluster_time=await source.now(), token=None)
        expected = await _write(rig.source_uri)
        async with source.stream(start) as batches:
            async for batch in batches:
                take(batch)
                if len(read) >= len(expected):
                    break
        assert [(o.kind, o.document_id) for o, _ in read] == [(kind, raw_id(id_)) for kind, id_ in expected]
        reduced = {o.document_id: o for o, is_reduced in read if is_reduced}
        # The gateway goes on by reading from the large event again, so the one after it is asked for with less, too.
        assert set(reduced) - ({raw_id(3)} if flavor == "documentdb" else set()) == {raw_id(1), raw_id(_LONG_ID)}
        assert b"updateDescription" not in spans(reduced[raw_id(1)].raw)
        assert len(reduced[raw_id(1)].document or b"") > 9 * _MEGABYTE
        assert reduced[raw_id(_LONG_ID)].document is None
        assert len(read[-1][0].document or b"") > 15 * _MEGABYTE
        assert all(o.document for o, is_reduced in read if o.kind == "insert" and not is_reduced)


async def test_what_was_too_large_to_be_sent_is_restored_and_memory_stays_bounded(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    expected = await _write(rig.source_uri)
    await rig.until_captured(len(expected))
    agent.note_memory()
    assert agent.peak_bytes < 256 * 1024 * 1024
    assert agent.log.read_text(encoding="utf-8").count("event_too_large") >= 2
    await rig.restored(agent)
    source, target = await rig.hashes()
    assert source == target
    assert set(source) == {_DATABASE}
