"""What the drill's microservices do in transactions, with unique values and to whole collections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from d5agent.drill.writer import ACCOUNTS, COUNTERS, HOT_DOCUMENTS

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection

    from d5agent.drill.writer import WorkloadWriter

ACCOUNTS_OF_A_WRITER = 12


class ChangedMindError(Exception):
    """The microservice gives its transaction up."""


async def transaction_many(writer: WorkloadWriter) -> None:
    """Insert, update and count in one transaction, in two collections."""
    document, target = writer.new_document(), await writer.pick()
    hot = writer.rng.randrange(HOT_DOCUMENTS)

    async def body(session: AsyncClientSession) -> None:
        await writer.orders.insert_one(document, session=session)
        await writer.orders.update_one({"_id": target}, {"$inc": {"n": 1}}, session=session)
        counters = writer.collection(COUNTERS)
        await counters.update_one({"_id": hot}, {"$inc": {"n": 1}}, session=session)

    await writer.in_transaction(body)
    writer.remember(document["_id"])
    writer.ledger.wrote("insert")
    writer.ledger.wrote("update", 2)


async def transaction_thrice(writer: WorkloadWriter) -> None:
    """Update one document three times in one transaction: three events with one clusterTime."""
    target = await writer.pick()

    async def body(session: AsyncClientSession) -> None:
        for step in ("first", "second", "third"):
            change = {"$set": {"step": step}, "$inc": {"n": 1}}
            await writer.orders.update_one({"_id": target}, change, session=session)

    await writer.in_transaction(body)
    writer.ledger.wrote("update", 3)


async def transaction_come_and_go(writer: WorkloadWriter) -> None:
    """Insert, update and delete one document in one transaction: it never was."""
    document = writer.new_document()

    async def body(session: AsyncClientSession) -> None:
        await writer.orders.insert_one(document, session=session)
        await writer.orders.update_one({"_id": document["_id"]}, {"$inc": {"n": 1}}, session=session)
        await writer.orders.delete_one({"_id": document["_id"]}, session=session)

    await writer.in_transaction(body)
    for kind in ("insert", "update", "delete"):
        writer.ledger.wrote(kind)


async def transaction_aborted(writer: WorkloadWriter) -> None:
    """Change much in a transaction and give it up: nothing of it may ever be seen."""
    document, target = writer.new_document(), await writer.pick()

    async def body(session: AsyncClientSession) -> None:
        document["aborted"] = True
        await writer.orders.insert_one(document, session=session)
        change = {"$set": {"aborted": True}}
        await writer.orders.update_one({"_id": target}, change, session=session)
        raise ChangedMindError

    try:
        await writer.in_transaction(body)
    except ChangedMindError:
        return


async def unique_handover(writer: WorkloadWriter) -> None:
    """Hand a unique value from one document to another, one write after the other."""
    giver, taker = await _two_accounts(writer)
    retired = writer.own_name("retired")
    await _set_email(writer, giver["_id"], retired)
    await _set_email(writer, taker["_id"], giver["email"])
    writer.ledger.wrote("update", 2)


async def unique_handover_in_transaction(writer: WorkloadWriter) -> None:
    """Hand a unique value on inside a transaction."""
    giver, taker = await _two_accounts(writer)
    retired = writer.own_name("retired")

    async def body(session: AsyncClientSession) -> None:
        await _set_email(writer, giver["_id"], retired, session)
        await _set_email(writer, taker["_id"], giver["email"], session)

    await writer.in_transaction(body)
    writer.ledger.wrote("update", 2)


async def unique_exchange(writer: WorkloadWriter) -> None:
    """Let two documents exchange their unique values, through a third value, in a transaction."""
    one, other = await _two_accounts(writer)
    between = writer.own_name("between")

    async def body(session: AsyncClientSession) -> None:
        await _set_email(writer, one["_id"], between, session)
        await _set_email(writer, other["_id"], one["email"], session)
        await _set_email(writer, one["_id"], other["email"], session)

    await writer.in_transaction(body)
    writer.ledger.wrote("update", 3)


async def unique_reborn(writer: WorkloadWriter) -> None:
    """Delete the holder of a unique value and give the value to a new document."""
    holder, _ = await _two_accounts(writer)
    accounts = writer.collection(ACCOUNTS)
    await accounts.delete_one({"_id": holder["_id"]})
    writer.ledger.wrote("delete")
    await accounts.insert_one({"_id": next(writer.numbers), "writer": writer.number, "email": holder["email"]})
    writer.ledger.wrote("insert")


async def update_then_rename(writer: WorkloadWriter) -> None:
    """Update, then rename the collection at once: the look-up finds nothing under the old name."""
    source = await _scratch(writer)
    await source.update_many({}, {"$inc": {"n": 1}})
    writer.ledger.wrote("update", 3)
    await source.rename(writer.own_name("renamed"))
    writer.ledger.wrote("rename")


async def rename_over(writer: WorkloadWriter) -> None:
    """Rename a collection over another, which is gone then."""
    source, victim = await _scratch(writer), await _scratch(writer)
    await source.rename(victim.name, dropTarget=True)
    writer.ledger.wrote("rename")


async def rename_and_refill(writer: WorkloadWriter) -> None:
    """Rename a collection away and begin a new one under its old name."""
    source = await _scratch(writer)
    await source.rename(writer.own_name("archive"))
    writer.ledger.wrote("rename")
    await source.insert_one({"_id": 1, "n": "new"})
    writer.ledger.wrote("insert")


async def drop(writer: WorkloadWriter) -> None:
    """Drop a collection right after a change to it."""
    doomed = await _scratch(writer)
    await doomed.update_one({"_id": 1}, {"$inc": {"n": 1}})
    writer.ledger.wrote("update")
    await doomed.drop()
    writer.ledger.wrote("drop")


async def drop_and_recreate(writer: WorkloadWriter) -> None:
    """Drop a collection and fill another of that name."""
    doomed = await _scratch(writer)
    await doomed.drop()
    writer.ledger.wrote("drop")
    await doomed.insert_many([{"_id": 1, "n": "again"}, {"_id": 9, "n": "new"}])
    writer.ledger.wrote("insert", 2)


async def drop_database(writer: WorkloadWriter) -> None:
    """Drop a scratch database of two collections; every second time it comes again."""
    name = f"scratch-{writer.number}"
    for collection in ("one", "two"):
        await writer.collection(collection, name).insert_one({"_id": next(writer.numbers)})
        writer.ledger.wrote("insert")
    await writer.client.drop_database(name)
    writer.ledger.wrote("drop", 2)
    writer.ledger.wrote("dropDatabase")
    if writer.rng.random() < 0.5:
        await writer.collection("one", name).insert_one({"_id": next(writer.numbers)})
        writer.ledger.wrote("insert")


async def create_empty(writer: WorkloadWriter) -> None:
    """Create a collection and leave it empty."""
    await writer.database().create_collection(writer.own_name("empty"))
    writer.ledger.wrote("create")


async def _scratch(writer: WorkloadWriter) -> AsyncCollection[dict[str, Any]]:
    collection = writer.collection(writer.own_name("scratch"))
    await collection.insert_many([{"_id": number, "n": 0} for number in range(3)])
    writer.ledger.wrote("insert", 3)
    return collection


async def _two_accounts(writer: WorkloadWriter) -> list[dict[str, Any]]:
    # Read, not remembered: after a broken connection only the server knows who holds what.
    mine = await writer.collection(ACCOUNTS).find({"writer": writer.number}).sort("_id").to_list()
    return writer.rng.sample(mine, 2)


async def _set_email(
    writer: WorkloadWriter, account: int, email: str, session: AsyncClientSession | None = None
) -> None:
    await writer.collection(ACCOUNTS).update_one(
        {"_id": account}, {"$set": {"email": email}, "$inc": {"n": 1}}, session=session
    )
