"""What to write into the target: a window of operations, compacted to the last state of each document.

Full documents, not diffs: insert, update and replace say "this is now the document", delete says "absent". An update
whose full document is null (gone before the look-up) leaves its document in doubt until a later event settles it; what
is in doubt at the end is read from the source.
"""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from d5agent.core.log.identity import Identity, identity_of
from d5agent.core.log.operation import BARRIER_KINDS, ClusterTime, Namespace, Operation
from d5agent.core.log.raw import DocumentId
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from d5agent.core.log.glance import Change

_new: Final = tuple.__new__  # what a named tuple's own constructor calls, without the cost of its arguments
_SPREAD_WRITES: Final = 250  # for each lane: a command costs as much as a hundred writes
_OVERHEAD: Final = 200  # bytes that a document's entry costs beside its content
_MOST_WAITING: Final = 500  # conflicts that are tried again with each window
_MANY_DOUBTS: Final = 100_000  # of one namespace; beyond, it is compared whole instead of held in memory
_MOST_REMOVED: Final = 1_000  # names in one window: their commands come first, and the checkpoint is to follow


class Write(NamedTuple):
    """The last state of one document: its bytes, or None for absent. `is_new`: the window began with its insert.

    A named tuple, not a dataclass: one is made for each replayed operation.
    """

    id: DocumentId
    document: bytes | None
    is_new: bool = False


class _Doubt(NamedTuple):
    """A document whose last event did not say what it is now; fields as of a Write."""

    id: DocumentId
    document: None = None
    is_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteBatch:
    """Writes to one namespace, each to another document."""

    namespace: Namespace
    writes: tuple[Write, ...]


@dataclass(slots=True)
class Window:
    """The operations since the last flush, compacted. `bytes` is about what it holds in memory.

    A document is known by what its `_id` is to the server: a replacement may turn its 1 into 1.0, and the next event
    names it so.

    Of a collection that is dropped, what came before is forgotten. The target removes it before the window's writes,
    which are all that the collection holds then. So a collection that was dropped in this window, and is renamed now,
    needs no rename in the target: the window knows all of it (ADR 41).
    """

    bytes: int = 0
    operations: int = 0
    _states: dict[Namespace, dict[Identity, Write | _Doubt]] = field(default_factory=dict)
    _removals: dict[Namespace, Barrier] = field(default_factory=dict)
    _replaced: set[Namespace] = field(default_factory=set)

    def add(self, change: Change) -> None:
        """Take one document operation, in order."""
        kind, namespace, id_, document = change
        states = self._states.get(namespace)
        if states is None:
            states = self._states[namespace] = {}
        self.operations += 1
        place = identity_of(id_)
        before = states.get(place)
        self.bytes -= len(before[1] or b"") if before else -_OVERHEAD
        if document is None and kind != "delete":
            states[place] = _Doubt(id_)
            return
        is_new = kind == "insert" if before is None else before[2]
        document = None if kind == "delete" else document
        self.bytes += len(document or b"")
        states[place] = _new(Write, (id_, document, is_new))

    def take(self, barrier: Barrier) -> bool:
        """Take a barrier; False: it renames what the target holds, and is to be applied alone."""
        namespace, to = barrier.namespace, barrier.rename_to
        if to is None:
            self._remove(namespace, barrier)
        elif not self._is_removed(namespace):
            return False
        else:
            moved = self._states.pop(namespace, {})
            self._remove(to, replace(barrier, kind="drop", namespace=to, rename_to=None))
            self._states[to] = moved
            self._replaced.discard(namespace)
            self._replaced.add(to)
        self.operations += 1
        return True

    @property
    def is_full(self) -> bool:
        """Whether it removes so many names that the checkpoint is to follow."""
        return len(self._removals) >= _MOST_REMOVED

    def removals(self) -> tuple[Barrier, ...]:
        """Return what the target removes before it is written to, in any order: drops, and dropDatabases."""
        return tuple(self._removals.values())

    def _remove(self, removed: Namespace, barrier: Barrier) -> None:
        names = {removed}
        if removed.collection is None:
            names.update(n for known in (self._states, self._removals) for n in known if n.database == removed.database)
        for name in names:
            states = self._states.pop(name, {})
            self.bytes -= sum(_OVERHEAD + len(state[1] or b"") for state in states.values())
            self._replaced.discard(name)
        if self._is_removed(removed):
            return
        for name in names & self._removals.keys():
            del self._removals[name]
        self._removals[removed] = barrier

    def _is_removed(self, namespace: Namespace) -> bool:
        return namespace in self._removals or Namespace(namespace.database) in self._removals

    def take_up(self, waiting: Iterable[Failure]) -> None:
        """Try again, with this window, what was refused before it, unless it knows better."""
        for failure in waiting:
            if not self._is_removed(failure.namespace):
                self._states.setdefault(failure.namespace, {}).setdefault(identity_of(failure.write.id), failure.write)

    def batches(self, lanes: int) -> list[WriteBatch]:
        """Return the writes by namespace, spread over lanes so that each holds about as many; few are not spread."""
        batches = []
        for namespace, states in self._states.items():
            writes = tuple(write for write in states.values() if isinstance(write, Write))
            parts = max(1, min(lanes, len(writes) // _SPREAD_WRITES))
            step = max(1, -(-len(writes) // parts))
            batches += [
                WriteBatch(namespace=namespace, writes=writes[at : at + step]) for at in range(0, len(writes), step)
            ]
        return batches

    def knows(self, namespace: Namespace, place: Identity) -> bool:
        """Whether an operation of this window concerns a document."""
        return place in self._states.get(namespace, ())

    def touched(self) -> Iterator[tuple[Namespace, tuple[DocumentId, ...]]]:
        """Yield the documents that the window's operations concern, by namespace."""
        for namespace, states in self._states.items():
            yield namespace, tuple(write.id for write in states.values())

    def settle(self, doubts: Unresolved) -> None:
        """Update what is in doubt by what this window knows."""
        for barrier in self._removals.values():
            doubts.apply_barrier(barrier)
        doubts.whole |= self._replaced
        for namespace, states in self._states.items():
            for write in states.values():
                if isinstance(write, _Doubt):
                    doubts.add(namespace, write.id)
                else:
                    doubts.remove(namespace, write.id)


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
class Unresolved:
    """What the log could not tell: single documents, and whole namespaces that were renamed or dropped."""

    documents: dict[Namespace, set[DocumentId]] = field(default_factory=dict)
    whole: set[Namespace] = field(default_factory=set)

    def __len__(self) -> int:
        """How many single documents are in doubt."""
        return sum(len(ids) for ids in self.documents.values())

    def add(self, namespace: Namespace, id_: DocumentId) -> None:
        """Put a document in doubt; of too many in one namespace, the namespace.

        Also in a namespace that was renamed, and is compared whole: what is settled needs no repair.
        """
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

    def apply_barrier(self, barrier: Barrier) -> None:
        """Follow a drop, a rename or a dropDatabase: it settles, or moves, what was in doubt.

        After a drop the log tells all of a collection. After a rename it may not: the new name is compared whole.
        """
        namespace, to = barrier.namespace, barrier.rename_to
        if barrier.kind == "dropDatabase":
            for known in [n for n in (*self.documents, *self.whole) if n.database == namespace.database]:
                self._forget(known)
            return
        moved = self.documents.get(namespace)
        self._forget(namespace)
        if to is not None:
            self._forget(to)
            self.whole.add(to)
            if moved:
                self.documents[to] = moved

    def _forget(self, namespace: Namespace) -> None:
        self.documents.pop(namespace, None)
        self.whole.discard(namespace)

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
    def from_json(cls, value: dict[str, Any]) -> Unresolved:
        """Return what `to_json` wrote."""
        return cls(
            documents={
                Namespace(row["db"], row["coll"]): {DocumentId(base64.b64decode(text)) for text in row["ids"]}
                for row in value["documents"]
            },
            whole={Namespace(row["db"], row["coll"]) for row in value["whole"]},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """A database or collection event to apply: all before it is written, then it, then what follows."""

    kind: str
    namespace: Namespace
    rename_to: Namespace | None
    cluster_time: ClusterTime


def is_known_barrier(operation: Operation) -> bool:
    """Whether an operation that concerns more than one document is one that can be applied."""
    return operation.kind in BARRIER_KINDS and (operation.kind != "rename" or operation.rename_to is not None)


def barrier_of(operation: Operation) -> Barrier:
    """Return the barrier that an operation is; OperatorError when its type is not known."""
    if not is_known_barrier(operation):
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


def split_conflicts(failures: Sequence[Failure]) -> tuple[list[Failure], list[Failure]]:
    """Return the failures for a unique value that another document holds, and the others: those do not heal."""
    return [f for f in failures if f.is_conflict], [f for f in failures if not f.is_conflict]


def waiting_for_later(failures: Iterable[Failure], *, max_bytes: int) -> list[Failure]:
    """Return the conflicts that the next window tries again: the first ones, as many as memory allows.

    The others stay in doubt until the end. Each one costs a question to the target in each window.
    """
    waiting = []
    for failure in itertools.islice((f for f in failures if f.is_conflict), _MOST_WAITING):
        max_bytes -= len(failure.write.document or b"")
        if max_bytes < 0:
            break
        waiting.append(failure)
    return waiting


def absent(failures: Iterable[Failure]) -> list[WriteBatch]:
    """Return the deletions of the refused documents."""
    return again(replace(failure, write=Write(id=failure.write.id, document=None)) for failure in failures)


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
