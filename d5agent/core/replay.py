"""What to write into the target: a window of operations, compacted to the last state of each document.

Full documents, not diffs: insert, update and replace say "this is now the document", delete says "absent". An update
whose full document is null (gone before the look-up) leaves its document in doubt until a later event settles it; what
is in doubt at the end is read from the source.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.operation import DOCUMENT_KINDS, ClusterTime, Namespace, Operation
from d5agent.core.raw import DocumentId
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_OVERHEAD: Final = 200  # bytes that a document's entry costs beside its content
_MANY_DOUBTS: Final = 100_000  # of one namespace; beyond, it is compared whole instead of held in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """The last state of one document: its bytes, or None for absent. `is_new`: the window began with its insert."""

    id: DocumentId
    document: bytes | None
    is_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteBatch:
    """Writes to one namespace, each to another document."""

    namespace: Namespace
    writes: tuple[Write, ...]


@dataclass(slots=True)
class Window:
    """The operations since the last flush, compacted. `bytes` is about what it holds in memory."""

    bytes: int = 0
    operations: int = 0
    _states: dict[Namespace, dict[DocumentId, Write | None]] = field(default_factory=dict)

    def add(self, operation: Operation) -> None:
        """Take one document operation, in order. OperatorError: its type is not known, so it cannot be applied."""
        id_ = operation.document_id
        if operation.kind not in DOCUMENT_KINDS or id_ is None:
            raise unknown_operation(operation)
        states = self._states.setdefault(operation.namespace, {})
        before = states.get(id_)
        document = None if operation.kind == "delete" else operation.document
        in_doubt = operation.kind != "delete" and document is None
        is_new = operation.kind == "insert" if id_ not in states else before is not None and before.is_new
        states[id_] = None if in_doubt else Write(id=id_, document=document, is_new=is_new)
        self.bytes += _OVERHEAD + len(document or b"") - (len(before.document or b"") if before else 0)
        self.operations += 1

    def batches(self, lanes: int) -> list[WriteBatch]:
        """Return the writes, spread over lanes so that each lane holds about as many, in namespaces."""
        batches = []
        for namespace, states in self._states.items():
            spread: list[list[Write]] = [[] for _ in range(lanes)]
            for id_, write in states.items():
                if write is not None:
                    spread[zlib.crc32(id_) % lanes].append(write)
            batches += [WriteBatch(namespace=namespace, writes=tuple(lane)) for lane in spread if lane]
        return batches

    def touched(self) -> Iterator[tuple[Namespace, tuple[DocumentId, ...]]]:
        """Yield the documents that the window's operations concern, by namespace."""
        for namespace, states in self._states.items():
            yield namespace, tuple(states)

    def settle(self, doubts: Doubts) -> None:
        """Update what is in doubt by what this window knows."""
        for namespace, states in self._states.items():
            for id_, write in states.items():
                if write is None:
                    doubts.add(namespace, id_)
                else:
                    doubts.remove(namespace, id_)


def unknown_operation(operation: Operation) -> OperatorError:
    """Return the error for an operation that nobody knows how to apply: never skipped."""
    return OperatorError(
        "an operation of a type that cannot be replayed",
        hint="nothing after it was applied; see it with d5agent log cat, and report the type",
        type=operation.kind,
        namespace=str(operation.namespace),
        cluster_time=str(operation.cluster_time),
    )


@dataclass(slots=True)
class Doubts:
    """What the log could not tell: single documents, and whole namespaces that were renamed or dropped."""

    documents: dict[Namespace, set[DocumentId]] = field(default_factory=dict)
    whole: set[Namespace] = field(default_factory=set)

    def __len__(self) -> int:
        """How many single documents are in doubt."""
        return sum(len(ids) for ids in self.documents.values())

    def add(self, namespace: Namespace, id_: DocumentId) -> None:
        """Put a document in doubt; of too many in one namespace, the namespace."""
        if namespace in self.whole:
            return
        ids = self.documents.setdefault(namespace, set())
        ids.add(id_)
        if len(ids) > _MANY_DOUBTS:
            self.whole.add(namespace)
            del self.documents[namespace]

    def remove(self, namespace: Namespace, id_: DocumentId) -> None:
        """Settle a document."""
        ids = self.documents.get(namespace)
        if ids is not None:
            ids.discard(id_)
            if not ids:
                del self.documents[namespace]

    def apply_barrier(self, operation: Operation) -> None:
        """Follow a drop, a rename or a dropDatabase: it settles, or moves, what was in doubt."""
        namespace = operation.namespace
        for hit in [known for known in self.documents if _is_hit(operation, known)]:
            ids = self.documents.pop(hit)
            if operation.rename_to is not None:
                self.documents[operation.rename_to] = ids
        self.whole.add(namespace)
        if operation.rename_to is not None:
            self.whole.add(operation.rename_to)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for the checkpoint."""
        return {
            "documents": [
                {"db": ns.database, "coll": ns.collection, "ids": sorted(base64.b64encode(i).decode() for i in ids)}
                for ns, ids in sorted(self.documents.items(), key=str)
            ],
            "whole": [{"db": ns.database, "coll": ns.collection} for ns in sorted(self.whole, key=str)],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Doubts:
        """Return what `to_json` wrote."""
        return cls(
            documents={
                Namespace(row["db"], row["coll"]): {DocumentId(base64.b64decode(text)) for text in row["ids"]}
                for row in value["documents"]
            },
            whole={Namespace(row["db"], row["coll"]) for row in value["whole"]},
        )


def _is_hit(operation: Operation, namespace: Namespace) -> bool:
    """Whether a barrier concerns a namespace."""
    if operation.kind == "dropDatabase":
        return namespace.database == operation.namespace.database
    return namespace in {operation.namespace, operation.rename_to}


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """A database or collection event to apply: all before it is written, then it, then what follows."""

    kind: str
    namespace: Namespace
    rename_to: Namespace | None
    cluster_time: ClusterTime


def barrier_of(operation: Operation) -> Barrier:
    """Return the barrier that an operation is; OperatorError when its type is not known."""
    known = operation.kind in {"drop", "dropDatabase"} or (operation.kind == "rename" and operation.rename_to)
    if not known:
        raise unknown_operation(operation)
    return Barrier(
        kind=operation.kind,
        namespace=operation.namespace,
        rename_to=operation.rename_to,
        cluster_time=operation.cluster_time,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A write that the target refused; a conflict: another document holds its value of the unique index `index`."""

    namespace: Namespace
    write: Write
    reason: str
    is_conflict: bool
    index: str = ""


def conflict_rounds(failures: Sequence[Failure]) -> tuple[list[Failure], list[Failure]]:
    """Return the failures to try again (a unique value was held by another document) and those that never heal."""
    return [f for f in failures if f.is_conflict], [f for f in failures if not f.is_conflict]


def parked(failures: Iterable[Failure]) -> list[WriteBatch]:
    """Return the deletes that break cycles: documents that wait for each other's unique value leave for a moment.

    Their last states are known and are written right after. A crash between leaves the checkpoint before both.
    """
    by_namespace: dict[Namespace, list[Write]] = {}
    for failure in failures:
        by_namespace.setdefault(failure.namespace, []).append(Write(id=failure.write.id, document=None))
    return [WriteBatch(namespace=namespace, writes=tuple(writes)) for namespace, writes in by_namespace.items()]


def again(failures: Iterable[Failure]) -> list[WriteBatch]:
    """Return the failed writes as batches."""
    by_namespace: dict[Namespace, list[Write]] = {}
    for failure in failures:
        by_namespace.setdefault(failure.namespace, []).append(failure.write)
    return [WriteBatch(namespace=namespace, writes=tuple(writes)) for namespace, writes in by_namespace.items()]


def split_deletes(batches: Iterable[WriteBatch]) -> tuple[list[WriteBatch], list[WriteBatch]]:
    """Return the deletes and the rest: deletes go first, since they free unique values and never conflict."""
    deletes, rest = [], []
    for batch in batches:
        absent = tuple(write for write in batch.writes if write.document is None)
        present = tuple(write for write in batch.writes if write.document is not None)
        if absent:
            deletes.append(WriteBatch(namespace=batch.namespace, writes=absent))
        if present:
            rest.append(WriteBatch(namespace=batch.namespace, writes=present))
    return deletes, rest
