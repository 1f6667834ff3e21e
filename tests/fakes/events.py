"""Change events by hand, for tests of one decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson import Timestamp, encode

from d5agent.core.log.glance import Change, change_at
from d5agent.core.log.operation import ClusterTime, Namespace, parse_event

if TYPE_CHECKING:
    from d5agent.core.log.operation import Operation

ORDERS = Namespace("shop", "orders")
ITEMS = Namespace("shop", "items")
_SECONDS = 1_793_600_000


def at(increment: int) -> ClusterTime:
    """Return a cluster time."""
    return ClusterTime(_SECONDS, increment)


def raw_event(kind: str, increment: int, id_: object = 1, *, namespace: Namespace = ORDERS, **fields: object) -> bytes:
    """Return an event as a server sends it; document events get a document, unless `fields` say otherwise."""
    is_document = kind in {"insert", "update", "replace", "delete"}
    ns = {"db": namespace.database} | ({"coll": namespace.collection} if namespace.collection else {})
    event: dict[str, Any] = {
        "_id": {"_data": f"{increment:08x}"},
        "operationType": kind,
        "clusterTime": Timestamp(_SECONDS, increment),
        "ns": ns,
    }
    if is_document:
        event["documentKey"] = {"_id": id_}
    if is_document and kind != "delete":
        event["fullDocument"] = {"_id": id_, "n": increment}
    return encode({**event, **fields})


def operation(
    kind: str, increment: int, id_: object = 1, *, namespace: Namespace = ORDERS, **fields: object
) -> Operation:
    """Return an operation."""
    return parse_event(raw_event(kind, increment, id_, namespace=namespace, **fields))


def change(kind: str, increment: int, id_: object = 1, *, namespace: Namespace = ORDERS, **fields: object) -> Change:
    """Return what replay needs of a document's operation."""
    event = raw_event(kind, increment, id_, namespace=namespace, **fields)
    found = change_at(event, 0, len(event))
    assert isinstance(found, Change)
    return found
