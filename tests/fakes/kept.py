"""What was kept of overwritten documents, read as an operator reads it: from the index, the pages and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from bson import decode, decode_all

if TYPE_CHECKING:
    from collections.abc import Mapping


def kept_index(objects: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the index of the one run."""
    (key,) = [key for key in objects if key.endswith("/overwritten/index.json")]
    index: dict[str, Any] = json.loads(objects[key])
    return index


def kept_documents(objects: Mapping[str, bytes]) -> dict[str, list[Any]]:
    """Return what is kept by collection: documents, and the `_id`s of those that somebody deleted as a tuple."""
    found: dict[str, list[Any]] = {}
    for page in kept_index(objects)["pages"]:
        for key, sha256 in page["objects"].items():
            assert hashlib.sha256(objects[key]).hexdigest() == sha256
        rows = next(key for key in page["objects"] if key.endswith(".json"))
        body = next(key for key in page["objects"] if key.endswith(".target.bson"))
        found.setdefault(f"{page['db']}.{page['coll']}", []).extend(
            [*decode_all(objects[body]), *((row["id"],) for row in json.loads(objects[rows]) if row["target"] is None)]
        )
    return found


def kept_by_repairs(objects: Mapping[str, bytes]) -> list[Any]:
    """Return the documents that were kept before a repair overwrote or deleted them."""
    found = []
    for key in sorted(key for key in objects if "/overwritten/repaired/" in key and key.endswith(".json")):
        body = objects[key.replace(".json", ".target.bson")]
        for row in json.loads(objects[key]):
            begin, size = row["target"]
            found.append(decode(body[begin : begin + size]))
    return found
