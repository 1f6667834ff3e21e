"""Documents page by page in the store: each version as BSON, and an index as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from d5agent.core.log.naming import id_to_text
from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import DocumentId
from d5agent.core.run.late import LateDocument, LateState
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.ports import ObjectStore

_PAGE_DOCUMENTS: Final = 500
_PAGE_BYTES: Final = 4 * 1024 * 1024
_HINT: Final = (
    "bring the object back (bucket versioning), then type: d5agent start monitor-restore; to leave MongoDB as it is"
    " instead: d5agent start monitor-restore --discard-late RUN"
)


async def put_hashed(store: ObjectStore, key: str, body: bytes) -> str:
    """Store an object and return its sha256."""
    await store.put(key, body)
    return hashlib.sha256(body).hexdigest()


async def get_hashed(store: ObjectStore, key: str, sha256: str) -> bytes:
    """Return an object that is what was stored. CorruptDataError: it is missing, or another."""
    body = await store.get(key)
    if body is None:
        raise CorruptDataError("a report of late operations is missing", hint=_HINT, key=key)
    if hashlib.sha256(body).hexdigest() != sha256:
        raise CorruptDataError("a report of late operations is not what was stored", hint=_HINT, key=key)
    return body


class Paged(Protocol):
    """A document of a page, whose versions are kept."""

    @property
    def namespace(self) -> Namespace:
        """Its collection."""
        ...

    @property
    def id(self) -> DocumentId:
        """Its `_id`."""
        ...

    @property
    def state(self) -> str:
        """What is to be said of it."""
        ...

    def versions(self) -> Mapping[str, bytes | None]:
        """Return its version on each side that is kept, the same sides for all of a page; None: absent there."""
        ...


@dataclass(slots=True, kw_only=True)
class PageWriter:
    """Stores documents below `folder`, a page at a time. `pages`: by the key of each object, its sha256.

    `before`: so many pages are there already.
    """

    store: ObjectStore
    folder: str
    before: int = 0
    pages: list[dict[str, str]] = field(default_factory=list)
    _held: list[Paged] = field(default_factory=list)
    _bytes: int = 0

    async def add(self, document: Paged) -> None:
        """Take a document."""
        self._held.append(document)
        self._bytes += sum(len(version or b"") for version in document.versions().values())
        if len(self._held) == _PAGE_DOCUMENTS or self._bytes >= _PAGE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Store what is held."""
        if not self._held:
            return
        held, self._held, self._bytes = self._held, [], 0
        base = f"{self.folder}{self.before + len(self.pages) + 1:06d}"
        bodies = {side: bytearray() for side in held[0].versions()}
        rows = []
        for document in held:
            row: dict[str, Any] = {
                "db": document.namespace.database,
                "coll": document.namespace.collection,
                "id": id_to_text(document.id),
                "raw_id": base64.b64encode(document.id).decode(),
                "state": str(document.state),
            }
            for side, version in document.versions().items():
                row[side] = None if version is None else [len(bodies[side]), len(version)]
                bodies[side] += version or b""
            rows.append(row)
        parts = {f"{base}.{side}.bson": bytes(body) for side, body in bodies.items()}
        parts[f"{base}.json"] = json.dumps(rows, indent=1).encode() + b"\n"
        self.pages.append({key: await put_hashed(self.store, key, body) for key, body in parts.items()})


async def read_page(store: ObjectStore, page: dict[str, str]) -> Sequence[LateDocument]:
    """Return the documents of a page of late operations. CorruptDataError: it is not what was stored."""
    return [
        LateDocument(namespace, id_, LateState(state), *versions)
        for namespace, id_, state, versions in await read_rows(store, page, ("target", "source"))
    ]


async def read_rows(
    store: ObjectStore, page: dict[str, str], sides: Sequence[str]
) -> list[tuple[Namespace, DocumentId, str, list[bytes | None]]]:
    """Return what a page says of each document, and its versions on some sides. CorruptDataError: as above."""
    bodies = {}
    for key, sha256 in page.items():
        _, _, part = key.rpartition("/")[2].partition(".")
        bodies[part] = await get_hashed(store, key, sha256)

    def version(row: dict[str, Any], side: str) -> bytes | None:
        at = row[side]
        return None if at is None else bodies[f"{side}.bson"][at[0] : at[0] + at[1]]

    return [
        (
            Namespace(row["db"], row["coll"]),
            DocumentId(base64.b64decode(row["raw_id"])),
            str(row["state"]),
            [version(row, side) for side in sides],
        )
        for row in json.loads(bodies["json"])
    ]
