"""What collections of the target are beside their documents, as a file: so that a drop does not take it for good."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bson import encode
from bson.raw_bson import RawBSONDocument

from d5agent.core.log.extended_json import to_readable
from d5agent.core.log.operation import Namespace
from d5agent.core.replay.ttl import NEVER, TtlIndex
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_VERSION: Final = 1
_EXPIRY: Final = "expireAfterSeconds"
_CLUSTERED: Final = "clusteredIndex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """A collection's options and indexes, as raw BSON; the index of `_id` is not among them."""

    options: bytes
    indexes: tuple[bytes, ...]


def ttl_of(specifications: Mapping[Namespace, Specification]) -> list[TtlIndex]:
    """Return what of it deletes documents by their age; a clustered collection's expiry has no name."""
    found = []
    for namespace, one in specifications.items():
        for fields in map(RawBSONDocument, (one.options, *one.indexes)):
            seconds = fields.get(_EXPIRY)
            if isinstance(seconds, int | float):
                name, key = fields.get("name", ""), fields.get("key", {"_id": 1})
                found.append(TtlIndex(namespace=namespace, name=name, field=next(iter(key)), seconds=seconds))
    return [index for index in found if index.deletes]


def with_ttl_held(specification: Specification, held: Iterable[TtlIndex]) -> Specification:
    """Return the specification with TTL that deletes nothing; what holds the target gives the seconds back (ADR 36).

    `held`: with which number an expiry is held.
    """
    numbers = {index.seconds: index.held_as for index in held}
    return Specification(
        options=_held(specification.options, numbers),
        indexes=tuple(_held(index, numbers) for index in specification.indexes),
    )


def _held(bson: bytes, numbers: Mapping[float, int]) -> bytes:
    fields = RawBSONDocument(bson)
    number = numbers.get(fields.get(_EXPIRY, NEVER))
    if number is None:
        return bson
    if _CLUSTERED in fields:  # which takes no such number
        return encode({name: value for name, value in fields.items() if name != _EXPIRY})
    return encode({**fields, _EXPIRY: number})


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
