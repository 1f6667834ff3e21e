"""Temporary collections that come and go: what the `drops` benchmark does to the source, and to the target itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo import AsyncMongoClient, WriteConcern

if TYPE_CHECKING:
    from collections.abc import Iterable

_FINAL = 10


async def temporary(client: AsyncMongoClient[dict[str, Any]], cycles: Iterable[int]) -> None:
    """Insert a document into a new collection, and drop it; rename every third one instead, onto one of ten names."""
    concern = WriteConcern("majority", j=True)
    database = client.get_database("bench", write_concern=concern)
    for cycle in cycles:
        await database[f"temporary{cycle}"].insert_one({"_id": cycle})
        if cycle % 3:
            await database.drop_collection(f"temporary{cycle}")
        else:
            await database[f"temporary{cycle}"].rename(f"final{cycle % _FINAL}", dropTarget=True)
