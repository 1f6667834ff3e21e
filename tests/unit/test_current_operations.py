"""Which operations of a server write: whatever their commands are called, through getMore too, with odd bytes too."""

from __future__ import annotations

from typing import Any

import pytest
from bson import decode, encode
from bson.raw_bson import RawBSONDocument

from d5agent.adapters.current_operations import writing
from d5agent.adapters.mongo import RAW

PIPELINE = [{"$match": {"n": 1}}, {"$merge": {"into": "totals"}}]


def row(command: dict[str, Any], *, op: str = "command", ns: str = "shop.orders", **more: object) -> RawBSONDocument:
    """An active row as it comes from the server."""
    fields = {"active": True, "op": op, "ns": ns, "secs_running": 3, "command": command, **more}
    return RawBSONDocument(encode(fields), RAW)


def get_more(**originating: object) -> RawBSONDocument:
    cursor = {"cursorId": 1, "originatingCommand": originating}
    return row({"getMore": 1, "collection": "orders"}, op="getmore", cursor=cursor)


WRITES = {
    "insert": row({"insert": "orders"}, op="insert"),
    "bulk of updates": row({"update": "orders"}),
    "one update of a bulk": row({"q": {}, "u": {}}, op="update"),
    "remove by the TTL monitor": row({}, op="remove"),
    "findAndModify": row({"findAndModify": "orders"}),
    "findandmodify": row({"findandmodify": "orders"}),
    "drop": row({"drop": "orders"}),
    "dropDatabase": row({"dropDatabase": 1}, ns="shop"),
    "renameCollection": row({"renameCollection": "shop.orders", "to": "shop.old"}, ns="admin.$cmd"),
    "bulkWrite": row({"bulkWrite": 1, "nsInfo": [{"ns": "shop.orders"}]}, ns="admin.$cmd"),
    "bulkWrite of what is not told": row({"bulkWrite": 1}, ns="admin.$cmd"),
    "applyOps": row({"applyOps": []}, ns="shop.$cmd"),
    "convertToCapped": row({"convertToCapped": "orders"}),
    "$merge": row({"aggregate": "orders", "pipeline": PIPELINE}),
    "$out": row({"aggregate": "orders", "pipeline": [{"$out": "copy"}]}),
    "$merge through getMore": get_more(aggregate="orders", pipeline=PIPELINE),
    "$merge through getMore of an old server": row(
        {"getMore": 1}, op="getmore", originatingCommand={"aggregate": "orders", "pipeline": PIPELINE}
    ),
    "a cut aggregate": row({"$truncated": '{ aggregate: "orders", pipeline: [ { $match: '}),
    "a cut insert": row({"$truncated": '{ "insert": "orders", documents: ['}),
    "a cut aggregate through getMore": get_more(**{"$truncated": "{ aggregate: 1"}),
    "mapReduce": row({"mapReduce": "orders", "out": "totals"}),
    "mapreduce into another": row({"mapreduce": "orders", "out": {"merge": "totals"}}),
    "an open transaction": row({}, op="none", active=False, transaction={"parameters": {"autocommit": False}}),
    "a transaction that reads": row({"find": "a"}, op="query", transaction={"parameters": {"autocommit": False}}),
}
OTHERS = {
    "find": row({"find": "orders"}, op="query"),
    "count": row({"count": "orders"}),
    "aggregate": row({"aggregate": "orders", "pipeline": [{"$group": {"_id": None}}]}),
    "aggregate through getMore": get_more(aggregate="orders", pipeline=[]),
    "find through getMore": get_more(find="orders"),
    "getMore that says nothing": row({"getMore": 1}, op="getmore"),
    "mapReduce inline": row({"mapReduce": "orders", "out": {"inline": 1}}),
    "a cut find": row({"$truncated": "{ find: "}),
    "nothing": row({}, op="none"),
    "idle": row({"insert": "orders"}, op="insert", active=False),
    "our own": row({"insert": "orders"}, op="insert", appName="d5agent"),
    "our database": row({"insert": "marks"}, op="insert", ns="d5agent.marks"),
    "the server's": row({"update": "system.keys"}, op="update", ns="config.system.keys"),
    "rename of ours": row({"renameCollection": "d5agent.a", "to": "d5agent.b"}, ns="admin.$cmd"),
    "bulkWrite of the server's": row({"bulkWrite": 1, "nsInfo": [{"ns": "config.a"}]}, ns="admin.$cmd"),
    "a command about nothing": RawBSONDocument(encode({"active": True, "op": "update"}), RAW),
}


@pytest.mark.parametrize("name", list(WRITES))
def test_a_running_write_is_named(name: str) -> None:
    found = writing(WRITES[name])
    assert found is not None
    assert found.endswith("since 3 s")


@pytest.mark.parametrize("name", list(OTHERS))
def test_what_writes_nothing_is_not_waited_for(name: str) -> None:
    assert writing(OTHERS[name]) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("insert", "insert on shop.orders since 3 s"),
        ("drop", "drop on shop.orders since 3 s"),
        ("$merge through getMore", "aggregate on shop.orders since 3 s"),
    ],
)
def test_a_write_is_named_by_what_it_does(name: str, words: str) -> None:
    assert writing(WRITES[name]) == words


def test_odd_bytes_of_a_command_are_no_obstacle() -> None:
    odd = bytearray(encode({"active": True, "op": "update", "ns": "shop.xx", "command": {"update": "yy", "c": "zz"}}))
    for marker in (b"xx", b"yy", b"zz"):
        odd[odd.index(marker)] = 0xFF
    with pytest.raises(Exception, match="utf"):
        decode(bytes(odd))
    assert str(writing(RawBSONDocument(bytes(odd), RAW))).startswith("update on shop.")
