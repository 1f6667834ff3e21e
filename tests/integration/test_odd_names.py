"""What a server stores and no driver decodes or names: captured, planned, restored and verified byte for byte."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bson import Decimal128, encode
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from tests.integration.agent_rig import Client, said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.drill.servers import Mongod
    from tests.integration.agent_rig import AgentRig

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_SAME_START = "1234567890123456789012345678"


def _raw(fields: dict[str, Any]) -> RawBSONDocument:
    """Return a document in which `<ff>` and the like stand for such a byte, four for four."""
    body = encode(fields)
    for byte in (b"\xff", b"\xc0", b"\xed"):
        body = body.replace(b"<%s>" % byte.hex().encode(), byte * 4)
    return RawBSONDocument(body)


ODD: Sequence[dict[str, Any]] = (
    {"_id": {"$ref": "c", "$id": {"$numberDecimal": "x"}}, "u": 1},
    {"_id": "<ff>", "v": "<ed>", "<c0>": {"<ff>": ["<ff>"]}, "u": "<ff>"},
    {"_id": "<c0>", "u": "<c0>"},
    {"_id": {"a": 1}, "v": {"$ref": 5, "$id": {"$oid": "x"}}, "u": 2},
    {"_id": {"b": "<ff>"}, "v": {"$numberDecimal": "x"}, "u": 3},
    {"_id": Decimal128(f"{_SAME_START}.1"), "u": 4},
    {"_id": Decimal128(f"{_SAME_START}.2"), "u": 5},
    {"_id": 7, "u": 6},
)


async def _command(client: Client, command: dict[str, Any], database: str = "shop") -> RawBSONDocument:
    answer = await client[database].command(command, codec_options=_RAW)
    assert "writeErrors" not in answer, bytes(answer.raw)
    return answer


async def _insert(client: Client, collection: str, documents: Sequence[dict[str, Any]]) -> None:
    await _command(client, {"insert": collection, "documents": [_raw(document) for document in documents]})


async def _replace(client: Client, collection: str, id_: object, fields: dict[str, Any]) -> None:
    update = {"q": _raw({"_id": id_}), "u": _raw(fields)}
    answer = await _command(client, {"update": collection, "updates": [update]})
    assert answer["n"] == 1


async def _seed(server: Mongod) -> None:
    async with Client(server.uri) as client:
        for name in ("a..b", "trailing.", "swapped."):
            index = {"key": {"u": 1}, "name": "u_1", "unique": True, "sparse": True}
            await _command(client, {"createIndexes": name, "indexes": [index]})
            await _insert(client, name, [{"_id": "old<ff>", "v": "<ff>"}])
        await _insert(client, "swapped.", [{"_id": "<ff>", "u": "<ff>"}, {"_id": "<c0>", "u": "<c0>"}])


async def _happen(client: Client) -> None:
    for name in ("a..b", "trailing.", "plain"):
        await _insert(client, name, ODD)
        await _replace(client, name, {"a": 1}, {"_id": {"a": 1.0}, "v": "<ff>", "u": 2})
        await _replace(client, name, {"a": 1}, {"_id": {"a": 1.0}, "v": "<c0>", "u": 2})
        await _replace(client, name, 7, {"_id": 7.0, "u": 6})
        await _command(client, {"delete": name, "deletes": [{"q": {"_id": 7}, "limit": 1}]})
        await _replace(client, name, "<ff>", {"_id": "<ff>", "v": "<ed>!", "u": "<ff>"})
    await _replace(client, "swapped.", "<ff>", {"_id": "<ff>"})
    await _replace(client, "swapped.", "<c0>", {"_id": "<c0>", "u": "<ff>"})
    await _replace(client, "swapped.", "<ff>", {"_id": "<ff>", "u": "<c0>"})
    await _command(client, {"drop": "trailing."})
    await _insert(client, "trailing.", ODD[:3])
    await _command(client, {"renameCollection": "shop.a..b", "to": "shop.b..c."}, "admin")
    await _insert(client, "a..b", ODD[3:])


async def test_odd_values_and_names_are_restored_byte_for_byte(rig: AgentRig) -> None:
    for server in (rig.source, rig.target):
        await _seed(server)
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await _happen(client)
    operations = await rig.until_captured(3 * (len(ODD) + 5) + 3 + 1 + 3 + 1 + 5)
    assert {str(operation.namespace) for operation in operations} >= {"shop.a..b", "shop.trailing."}
    printed = await agent.run("log", "cat")
    assert printed.code == 0, said(printed)
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert len([line for line in lines if line["ns"]["db"] != "d5agent"]) == len(operations)
    assert {"$bson": "AgUAAAD/////AA=="} in [line.get("documentKey", {}).get("_id") for line in lines]
    plan = await agent.json("plan")
    assert plan["go"], plan
    assert {"shop.a..b", "shop.trailing."} <= plan["namespaces"].keys()
    await rig.restored(agent)
    assert "document_repaired" not in agent.log.read_text(encoding="utf-8")
    report = await agent.json("verify", "--full")
    assert report["equal"], report
    source, target = await rig.hashes()
    assert source == target
