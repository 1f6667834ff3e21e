"""What the drill's microservices do to single documents, and to several at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson import Int64
from pymongo import DeleteOne, InsertOne, ReplaceOne, ReturnDocument, UpdateOne

from d5agent.drill.values import (
    ODD_COLLECTIONS,
    ODD_DATABASES,
    SINGLE_IDS,
    any_fields,
    any_id,
    any_value,
    every_value,
    odd_fields,
)
from d5agent.drill.writer import COUNTERS, HOT_DOCUMENTS

if TYPE_CHECKING:
    from d5agent.drill.writer import WorkloadWriter

_LOADED_AIRPORTS = 28_000


async def insert_one(writer: WorkloadWriter) -> None:
    """Insert one order with an `_id` of any kind."""
    await writer.insert()


async def insert_many(writer: WorkloadWriter) -> None:
    """Insert a few dozen orders with one command."""
    documents = [writer.new_document() for _ in range(writer.rng.randrange(10, 40))]
    await writer.orders.insert_many(documents)
    writer.ledger.wrote("insert", len(documents))
    for document in documents:
        writer.remember(document["_id"])


async def insert_every_type(writer: WorkloadWriter) -> None:
    """Insert a document that holds every BSON type at its edges."""
    document = {"_id": any_id(writer.rng, next(writer.numbers))} | every_value()
    await writer.collection("every type").insert_one(document)
    writer.ledger.wrote("insert")


async def update_set(writer: WorkloadWriter) -> None:
    """Set a field to any value, and count, so that something always changes."""
    name = f"field{writer.rng.randrange(12)}"
    await _update(writer, {"$set": {name: any_value(writer.rng)}, "$inc": {"n": 1}})


async def update_inc(writer: WorkloadWriter) -> None:
    """Count up a document that all writers fight for."""
    number = writer.rng.randrange(HOT_DOCUMENTS)
    await writer.collection(COUNTERS).update_one({"_id": number}, {"$inc": {"n": Int64(1)}})
    writer.ledger.wrote("update")


async def update_push(writer: WorkloadWriter) -> None:
    """Append to an array that is kept short, so that elements leave at its other end."""
    await _update(
        writer,
        {
            "$push": {"history": {"$each": [any_value(writer.rng)], "$slice": -5}},
            "$inc": {"n": 1},
        },
    )


async def update_unset(writer: WorkloadWriter) -> None:
    """Take a field away: by a change that tells only what was removed."""
    name = f"field{writer.rng.randrange(12)}"
    await _update(writer, {"$unset": {name: ""}, "$inc": {"n": 1}})


async def update_nested(writer: WorkloadWriter) -> None:
    """Change what lies deep in a document and in an array."""
    await _update(
        writer,
        {"$set": {"deep.er.list": [{"a": writer.rng.random()}], "deep.0": 1}, "$inc": {"n": 1}},
    )


async def replace(writer: WorkloadWriter) -> None:
    """Replace a whole document: its fields change their order."""
    document = {"n": writer.rng.random(), **any_fields(writer.rng), "writer": writer.number}
    await writer.orders.replace_one({"_id": await writer.pick()}, document)
    writer.ledger.wrote("replace")


async def upsert_loaded(writer: WorkloadWriter) -> None:
    """Change an airport that both databases held before the outage, or make it."""
    number = Int64(writer.rng.randrange(1, _LOADED_AIRPORTS))
    result = await writer.collection("airports", "aviation").update_one(
        {"_id": number},
        {"$inc": {"visits": 1}, "$setOnInsert": {"codes.icao": f"new{number}"}},
        upsert=True,
    )
    writer.ledger.wrote("insert" if result.did_upsert else "update")


async def upsert_single_id(writer: WorkloadWriter) -> None:
    """Write to the ids that are one of a kind: null, true, MinKey, NaN, an empty document."""
    result = await writer.collection(f"single ids {writer.number}").replace_one(
        {"_id": writer.rng.choice(SINGLE_IDS)}, {"n": writer.rng.random()}, upsert=True
    )
    writer.ledger.wrote("insert" if result.did_upsert else "replace")


async def update_many(writer: WorkloadWriter) -> None:
    """Update several documents with one command."""
    ids = [await writer.pick() for _ in range(5)]
    result = await writer.orders.update_many({"_id": {"$in": ids}}, {"$inc": {"n": 1}})
    writer.ledger.wrote("update", result.modified_count)


async def find_and_modify(writer: WorkloadWriter) -> None:
    """Change and read with one command."""
    document_id = await writer.pick()
    await writer.orders.find_one_and_update(
        {"_id": document_id},
        {"$inc": {"n": 1}},
        projection={"_id": False, "n": True},
        return_document=ReturnDocument.AFTER,
    )
    writer.ledger.wrote("update")


async def delete_one(writer: WorkloadWriter) -> None:
    """Delete a document."""
    await writer.orders.delete_one({"_id": await writer.take()})
    writer.ledger.wrote("delete")


async def delete_many(writer: WorkloadWriter) -> None:
    """Delete several documents with one command."""
    ids = [await writer.take() for _ in range(3)]
    result = await writer.orders.delete_many({"_id": {"$in": ids}})
    writer.ledger.wrote("delete", result.deleted_count)


async def update_then_delete(writer: WorkloadWriter) -> None:
    """Update and delete so fast that no look-up finds the document any more."""
    document_id = await writer.take()
    await writer.orders.bulk_write(
        [
            UpdateOne({"_id": document_id}, {"$set": {"last": "words"}, "$inc": {"n": 1}}),
            UpdateOne({"_id": document_id}, {"$inc": {"n": 1}}),
            DeleteOne({"_id": document_id}),
        ]
    )
    writer.ledger.wrote("update", 2)
    writer.ledger.wrote("delete")


async def delete_and_reinsert(writer: WorkloadWriter) -> None:
    """Let one `_id` go and come again with another content."""
    document_id = await writer.pick()
    await writer.orders.bulk_write(
        [
            DeleteOne({"_id": document_id}),
            InsertOne({"_id": document_id, "n": 0, "again": True} | any_fields(writer.rng)),
        ]
    )
    writer.ledger.wrote("delete")
    writer.ledger.wrote("insert")


async def bulk_mixed(writer: WorkloadWriter) -> None:
    """Send inserts, updates, a replacement and a delete in one unordered command."""
    documents = [writer.new_document() for _ in range(4)]
    kept, replaced = await writer.insert(), await writer.insert()
    gone = await writer.take()
    if gone in (kept, replaced):
        gone = await _insert_unknown(writer)
    await writer.orders.bulk_write(
        [
            *(InsertOne(document) for document in documents),
            UpdateOne({"_id": kept}, {"$inc": {"n": 1}}),
            ReplaceOne({"_id": replaced}, {"n": writer.rng.random()}),
            DeleteOne({"_id": gone}),
        ],
        ordered=False,
    )
    for document in documents:
        writer.remember(document["_id"])
    writer.ledger.wrote("insert", len(documents))
    for kind in ("update", "replace", "delete"):
        writer.ledger.wrote(kind)


async def odd_names(writer: WorkloadWriter) -> None:
    """Write to databases and collections with odd names."""
    target = writer.collection(writer.rng.choice(ODD_COLLECTIONS), writer.rng.choice(ODD_DATABASES))
    kept, gone = writer.new_document(), writer.new_document()
    await target.insert_many([kept, gone])
    writer.ledger.wrote("insert", 2)
    await target.update_one({"_id": kept["_id"]}, {"$inc": {"n": 1}})
    writer.ledger.wrote("update")
    await target.delete_one({"_id": gone["_id"]})
    writer.ledger.wrote("delete")


async def odd_field_names(writer: WorkloadWriter) -> None:
    """Insert field names with dots and dollars: a server may say no."""
    document = {"_id": any_id(writer.rng, next(writer.numbers))} | odd_fields(writer.rng)
    await writer.collection("odd fields").insert_one(document)
    writer.ledger.wrote("insert")


async def big_document(writer: WorkloadWriter) -> None:
    """Insert several megabytes and touch a small field of them: the event holds it all."""
    size = writer.rng.randrange(2_000_000, 6_000_000)
    document: dict[str, Any] = {"_id": next(writer.numbers), "n": 0}
    document["body"] = writer.rng.randbytes(1_000) * (size // 1_000)
    target = writer.collection("big")
    await target.insert_one(document)
    writer.ledger.wrote("insert")
    await target.update_one({"_id": document["_id"]}, {"$inc": {"n": 1}})
    writer.ledger.wrote("update")


async def oversized_update(writer: WorkloadWriter) -> None:
    """Set nine megabytes: the change and the document together exceed what one event may hold."""
    document_id = next(writer.numbers)
    target = writer.collection("big")
    await target.insert_one({"_id": document_id})
    writer.ledger.wrote("insert")
    body = writer.rng.randbytes(1_000) * 9_000
    await target.update_one({"_id": document_id}, {"$set": {"body": body}})
    writer.ledger.wrote("update")


async def _update(writer: WorkloadWriter, change: dict[str, Any]) -> None:
    await writer.orders.update_one({"_id": await writer.pick()}, change)
    writer.ledger.wrote("update")


async def _insert_unknown(writer: WorkloadWriter) -> Any:  # noqa: ANN401 - an _id is any BSON value
    document = writer.new_document()
    await writer.orders.insert_one(document)
    writer.ledger.wrote("insert")
    return document["_id"]
