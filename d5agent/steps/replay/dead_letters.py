"""Documents that the target refuses: each with its reason, its place in the log, itself, and who is in its way."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.naming import id_to_text, names_in_keys, parse_segment_key
from d5agent.core.replay.replay import Write
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import ClusterTime, Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Failure
    from d5agent.ports import DocumentReader, ObjectStore
    from d5agent.steps.log.reader import LogReader
    from d5agent.steps.replay.conflicts import Holders

DEAD_LETTERS: Final = "dead-letter/"
_VERSION: Final = 1
_NAMED: Final = 3  # in the error, and of a document's holders; all letters lie in the store
_MOST_DOCUMENTS: Final = 1_000  # stored beside their letters; each may have 16 MB
_Place = tuple["Namespace", "DocumentId"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastOperation:
    """The last one on a document: the commit it stands in, its time and its type."""

    sequence: int
    cluster_time: ClusterTime
    kind: str


@dataclass(slots=True, kw_only=True)
class DeadLetters:
    """Those of one run. They are for people: restore takes what it tries again from its checkpoint."""

    store: ObjectStore
    reader: LogReader
    source: DocumentReader
    holders: Holders
    run_id: str

    @property
    def folder(self) -> str:
        """Where they lie."""
        return f"{DEAD_LETTERS}{self.run_id}/"

    async def bury(self, failures: Sequence[Failure]) -> None:
        """Store a letter for each refused document, then remove those of documents that have healed.

        OperatorError: there is one left.
        """
        last = await self._last_operations(failures) if failures else {}
        names: set[str] = set()
        named = []
        for number, failure in enumerate(failures, 1):
            found = last.get((failure.namespace, failure.write.id))
            holders, keys = await self._store(number, failure, found)
            names |= keys
            if number <= _NAMED:
                named.append(_line(failure, holders))
        old = [found.key async for page in self.store.list_objects(self.folder) for found in page]
        await self.store.delete([key for key in old if key not in names])
        if failures:
            raise OperatorError(
                f"the target refuses {len(failures)} documents",
                hint=f"mend the cause (each is in {self.folder}), then type: d5agent start restore",
                refused="; ".join(named),
            )

    async def _store(
        self, number: int, failure: Failure, last: LastOperation | None
    ) -> tuple[Sequence[DocumentId], set[str]]:
        """Store a letter and what belongs to it; return who is in its way, and the keys."""
        base = f"{self.folder}{number:06d}"
        # As it is now in the source, where nobody writes: this is what was refused.
        found = await self.source.fetch(failure.namespace, [failure.write.id])
        document = found.get(failure.write.id, b"")
        holders: Sequence[DocumentId] = ()
        if failure.is_conflict and document:
            refused = replace(failure, write=Write(id=failure.write.id, document=document))
            (conflict,) = await self.holders.of([refused])
            holders = conflict.holders
        held = await self.holders.target.fetch(failure.namespace, holders[:_NAMED]) if holders else {}
        bodies = {f"{base}.bson": document, f"{base}.holders.bson": b"".join(held.values())}
        stored = {key: body for key, body in bodies.items() if body and number <= _MOST_DOCUMENTS}
        for key, body in stored.items():
            await self.store.put(key, body)
        letter = _letter(failure, last, holders, sorted(stored))
        await self.store.put(f"{base}.json", json.dumps(letter, ensure_ascii=False).encode(errors="backslashreplace"))
        return holders, {f"{base}.json", *stored}

    async def _last_operations(self, failures: Sequence[Failure]) -> Mapping[_Place, LastOperation]:
        """Read in the log what was last said of the refused documents, from the segments of their collections only."""
        wanted = {(failure.namespace, failure.write.id) for failure in failures}
        namespaces = {None, *(names_in_keys(failure.namespace) for failure in failures)}
        found: dict[_Place, LastOperation] = {}

        async def concerned() -> AsyncGenerator[Link]:
            async for link in self.reader.links():
                segments = (r for r in link.commit.segments if parse_segment_key(r.key).namespace in namespaces)
                yield replace(link, commit=replace(link.commit, segments=tuple(segments)))

        async with aclosing(self.reader.operations_of(concerned())) as operations:
            async for link, operation in operations:
                if operation is None or operation.document_id is None:
                    continue
                place = (operation.namespace, operation.document_id)
                if place in wanted:
                    found[place] = LastOperation(
                        sequence=link.commit.sequence, cluster_time=operation.cluster_time, kind=operation.kind
                    )
        return found


def _letter(
    failure: Failure, last: LastOperation | None, holders: Sequence[DocumentId], stored: Sequence[str]
) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "namespace": str(failure.namespace),
        "id": id_to_text(failure.write.id),
        "reason": failure.reason,
        "index": failure.index,
        "holders": [id_to_text(holder) for holder in holders],
        "sequence": None if last is None else last.sequence,
        "cluster_time": None if last is None else list(last.cluster_time),
        "operation": None if last is None else last.kind,
        "documents": stored,
    }


def _line(failure: Failure, holders: Sequence[DocumentId]) -> str:
    line = f"{failure.namespace} {id_to_text(failure.write.id)}: {failure.reason}"
    return f"{line}: {', '.join(map(id_to_text, holders[:_NAMED]))}" if holders else line
