"""Names of collections that no driver makes, on a real server."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import pytest
from bson import decode, encode

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.core.log.operation import Namespace
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from d5agent.drill.servers import Mongod

_OP_MSG = 2013


async def _insert_into(server: Mongod, database: str, collection: bytes) -> None:
    """Insert a document into a collection whose name no driver sends: as an OP_MSG by hand."""
    documents = b"\x04documents\0" + encode({"0": {"_id": 1}})
    name = b"\x02insert\0" + (len(collection) + 1).to_bytes(4, "little") + collection + b"\0"
    fields = name + documents + encode({"$db": database})[4:-1]
    body = b"\0\0\0\0\0" + (len(fields) + 5).to_bytes(4, "little") + fields + b"\0"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(struct.pack("<4i", 16 + len(body), 1, 0, _OP_MSG) + body)
    (size,) = struct.unpack("<i", await reader.readexactly(4))
    assert decode((await reader.readexactly(size - 4))[17:])["n"] == 1
    writer.close()
    await writer.wait_closed()


async def test_a_name_that_is_not_utf8_is_listed_and_refused_by_name(mongod: Mongod, fresh_name: str) -> None:
    await _insert_into(mongod, fresh_name, b"bad\xff")
    odd = Namespace(fresh_name, "bad\udcff")
    async with open_mongo(mongod.uri, side="target") as client:
        reader = MongoReader(client, side="target", clock=SystemClock())
        assert odd in await reader.collections()
        for question in (reader.facts(odd), reader.count(odd, exactly=True), reader.fetch(odd, [])):
            with pytest.raises(OperatorError, match="is not UTF-8") as caught:
                await question
            assert caught.value.facts == {"name": b"bad\xff"}
            assert "docs/failure-modes.md" in caught.value.hint
        await client.drop_database(fresh_name)
