"""Small replies that DocumentDB shapes in its own way: hello, listings of what there is."""

from typing import Any, Final

from d5agent.drill.gateway.facts import HIDDEN_DATABASES

_ELSEWHERE: Final = ("passives", "arbiters", "compression", "tags", "$clusterTime")
_OF_A_PRIMARY: Final = ("primary", "electionId", "setVersion", "topologyVersion")
_INDEX_VERSION: Final = 4


def shape_hello(hello: dict[str, Any], address: str, set_name: str, *, failing: bool) -> None:
    """Name the gateway as the only member; while failing over, as one that is not primary."""
    for name in _ELSEWHERE:
        hello.pop(name, None)
    if "hosts" not in hello:
        return
    hello["hosts"] = [address]
    hello["me"] = address
    hello["setName"] = set_name
    if "primary" in hello:
        hello["primary"] = address
    if failing:
        _shape_secondary(hello)
    elif not (hello.get("isWritablePrimary") or hello.get("ismaster")):
        hello.pop("primary", None)


def _shape_secondary(hello: dict[str, Any]) -> None:
    for name in _OF_A_PRIMARY:
        hello.pop(name, None)
    for name in ("isWritablePrimary", "ismaster"):
        if name in hello:
            hello[name] = False
    hello["secondary"] = True


def shape_databases(reply: dict[str, Any]) -> None:
    """DocumentDB has no `local` and no `config`."""
    shown = [row for row in reply["databases"] if row["name"] not in HIDDEN_DATABASES]
    reply["databases"] = shown
    if "totalSize" in reply:
        reply["totalSize"] = sum(row["sizeOnDisk"] for row in shown)
        reply["totalSizeMb"] = reply["totalSize"] // 2**20


def shape_collections(rows: list[dict[str, Any]], namespace: str) -> None:
    database = namespace.partition(".")[0]
    for row in rows:
        if "options" not in row:
            continue
        row["options"] |= {"autoIndexId": True, "storageEngine": {"documentDB": {}}}
        row["info"].pop("uuid", None)
        if "idIndex" in row:
            _shape_index(row["idIndex"], f"{database}.{row['name']}")


def shape_indexes(rows: list[dict[str, Any]], namespace: str) -> None:
    for row in rows:
        _shape_index(row, namespace)


def _shape_index(spec: dict[str, Any], namespace: str) -> None:
    spec["v"] = _INDEX_VERSION
    spec["ns"] = namespace
