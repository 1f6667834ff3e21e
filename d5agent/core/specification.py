"""What collections of the target are beside their documents, as a file: so that a drop does not take it for good."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bson import encode
from bson.raw_bson import RawBSONDocument

from d5agent.core.extended_json import to_readable
from d5agent.core.operation import Namespace
from d5agent.core.servers import ServerFacts
from d5agent.core.ttl import NEVER
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """A collection's options and indexes, as raw BSON; the index of `_id` is not among them."""

    options: bytes
    indexes: tuple[bytes, ...]


def with_ttl_held(specification: Specification) -> Specification:
    """Return the specification with TTL that deletes nothing; what holds the target gives the seconds back (ADR 36)."""
    return Specification(
        options=_held(specification.options), indexes=tuple(_held(index) for index in specification.indexes)
    )


def _held(bson: bytes) -> bytes:
    fields = RawBSONDocument(bson)
    if "expireAfterSeconds" not in fields:
        return bson
    return encode({**fields, "expireAfterSeconds": NEVER})


def specifications_key(run_id: str, number: int = 1) -> str:
    """Return where the specifications of a run's target are; `number`: its first target, or a later one."""
    return f"reports/{run_id}/specifications{'' if number == 1 else f'-{number}'}.json"


def encode_specifications(
    found: Mapping[Namespace, Specification], *, run_id: str, server: ServerFacts, at: str
) -> bytes:
    """Return the file: each collection's BSON, and beside it the same for people. `server`: whose they are."""
    rows = [
        {
            "db": namespace.database,
            "coll": namespace.collection,
            "options": _text(one.options),
            "indexes": [_text(index) for index in one.indexes],
            "readable": {
                "options": to_readable(one.options),
                "indexes": [to_readable(index) for index in one.indexes],
            },
        }
        for namespace, one in sorted(found.items(), key=lambda item: str(item[0]))
    ]
    value = {"version": _VERSION, "run_id": run_id, "at": at, "target": server.to_json(), "collections": rows}
    return json.dumps(value, ensure_ascii=False, indent=1).encode(errors="backslashreplace")


def decode_specifications(body: bytes, *, key: str) -> tuple[ServerFacts | None, dict[Namespace, Specification]]:
    """Return what `encode_specifications` wrote, and of which server: None, an earlier version did not note it.

    CorruptDataError: it is something else.
    """
    try:
        value: dict[str, Any] = json.loads(body)
        server = ServerFacts.from_json(value["target"]) if value.get("target") else None
        return server, {
            Namespace(row["db"], row["coll"]): Specification(
                options=base64.b64decode(row["options"]),
                indexes=tuple(base64.b64decode(index) for index in row["indexes"]),
            )
            for row in value["collections"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(
            "the specifications of the target's collections are damaged",
            hint="bring the object's earlier version back (bucket versioning), or set [restore] keep_indexes = false",
            key=key,
        ) from error


def _text(bson: bytes) -> str:
    return base64.b64encode(bson).decode()
