"""What restore would do, as counts by namespace and as lists of what a person should look at before it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from d5agent.core.backup import run_folder
from d5agent.core.log.naming import id_to_text, names_in_keys, parse_segment_key
from d5agent.core.log.operation import DOCUMENT_KINDS
from d5agent.core.replay.collation import Collated
from d5agent.core.replay.replay import is_known_barrier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from d5agent.core.compare.compare import Difference
    from d5agent.core.log.chain import Commit
    from d5agent.core.log.operation import Namespace, Operation
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.plan.estimate import Estimate

VERSION: Final = 1
_NAMED: Final = 1000
_SHOWN: Final = 20
MOST_DIVERGENT: Final = 100_000  # documents that diverge and are named
_KINDS: Final = {"insert": "inserts", "update": "updates", "replace": "updates", "delete": "deletes"}
_EFFECTS: Final = {"missing": "insert", "different": "overwrite", "extra": "delete"}

_Thing = TypeVar("_Thing")


@dataclass(slots=True)
class Named(Generic[_Thing]):
    """A list of which only the first are kept; all are counted."""

    most: int = _NAMED
    total: int = 0
    first: list[_Thing] = field(default_factory=list)

    def add(self, thing: _Thing) -> None:
        """Count a thing, and keep it unless there are many already."""
        self.total += 1
        if len(self.first) < self.most:
            self.first.append(thing)


@dataclass(slots=True)
class Row:
    """One namespace: operations in the log by kind, and what they come to: documents, and what happens to them.

    `others`: drops, renames and what is not known. `bytes`: of operations as stored.
    """

    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    others: int = 0
    bytes: int = 0
    documents: int = 0
    insert: int = 0
    overwrite: int = 0
    delete: int = 0
    equal: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overwrite:
    """A document of the target that is replaced. `is_new`: the log begins with its insert, and yet it is there."""

    difference: Difference
    is_new: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        value = self.difference.to_json()
        return {"namespace": value["namespace"], "id": value["id"], "fields": value["fields"], "is_new": self.is_new}


@dataclass(frozen=True, slots=True, kw_only=True)
class UniqueConflict:
    """Two documents that cannot both be in the target: they have the same value of a unique index.

    `id`: the one that restore writes. `holder`: the other; `is_written`: restore writes that one too.
    """

    namespace: Namespace
    index: str
    value: str
    id: DocumentId
    holder: DocumentId
    is_written: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "namespace": str(self.namespace),
            "index": self.index,
            "value": self.value,
            "id": id_to_text(self.id),
            "holder": id_to_text(self.holder),
            "holder_is": "written by restore too" if self.is_written else "in the target, and not touched",
        }


@dataclass(slots=True, kw_only=True)
class Plan:
    """The dry run's result."""

    run_id: str = ""
    at: str = ""
    sequence: int | None = None
    operations: int = 0
    bytes: int = 0
    rows: dict[Namespace, Row] = field(default_factory=dict)
    events: Named[dict[str, Any]] = field(default_factory=Named)
    unknown: Named[dict[str, Any]] = field(default_factory=Named)
    overwrites: Named[Overwrite] = field(default_factory=Named)
    unexpected: Named[Overwrite] = field(default_factory=Named)
    """Overwrites of documents that are new to the log: told first, they are worth a look."""
    conflicts: Named[UniqueConflict] = field(default_factory=Named)
    indexes: list[str] = field(default_factory=list)
    divergence: Named[Difference] | None = None
    undelivered: Named[Difference] | None = None
    """Documents that the log touches, and whose last write in MongoDB DMS had not delivered: restore overwrites it."""
    estimate: Estimate | None = None
    whole: dict[Namespace, None] = field(default_factory=dict)
    """Namespaces whose names moved: their documents are told by comparing them whole, in order of appearance."""
    collated: Collated = field(default_factory=Collated)
    """The target's collections whose `_id` index follows a collation."""
    notes: list[str] = field(default_factory=list)

    def row(self, namespace: Namespace) -> Row:
        """Return a namespace's counts."""
        if namespace not in self.rows:
            self.rows[namespace] = Row()
        return self.rows[namespace]

    def take(self, commit: Commit, operation: Operation) -> None:
        """Count an operation; drops, renames and what nobody knows are named with their position."""
        self.operations += 1
        self.bytes += len(operation.raw)
        row, column = self.row(operation.namespace), _KINDS.get(operation.kind, "others")
        setattr(row, column, getattr(row, column) + 1)
        row.bytes += len(operation.raw)
        if operation.kind in DOCUMENT_KINDS and operation.document_id is not None:
            self.collated.see(operation.namespace, [operation.document_id])
            return
        if operation.rename_to is not None:
            self.collated.rename(operation.namespace, operation.rename_to)
        event = {
            "kind": operation.kind,
            "namespace": str(operation.namespace),
            "to": None if operation.rename_to is None else str(operation.rename_to),
            "sequence": commit.sequence,
            "cluster_time": list(operation.cluster_time),
            "key": _key_of(operation, commit),
        }
        if not is_known_barrier(operation):
            self.unknown.add(event)
            return
        self.events.add(event)
        self.whole.update(dict.fromkeys(n for n in (operation.namespace, operation.rename_to) if n is not None))

    def is_whole(self, namespace: Namespace) -> bool:
        """Whether a collection's documents are told by comparing it whole."""
        return namespace in self.whole or namespace._replace(collection=None) in self.whole

    def differs(self, difference: Difference, *, is_new: bool = False) -> None:
        """Count what happens to a document of the target."""
        row, effect = self.row(difference.namespace), _EFFECTS[difference.kind]
        setattr(row, effect, getattr(row, effect) + 1)
        if effect == "overwrite":
            found = self.unexpected if is_new else self.overwrites
            found.add(Overwrite(difference=difference, is_new=is_new))

    def note_undelivered(self, found: Difference | None) -> None:
        """Name what restore would overwrite although nobody but MongoDB has it."""
        if found is not None and self.undelivered is not None:
            self.undelivered.add(found)

    @property
    def looked_at(self) -> str:
        """What the plan rests on, in words."""
        if self.divergence is None:
            return "documents that the log touches, as they are on both sides now"
        both = "documents that the log touches, also for writes in MongoDB that DMS had not delivered"
        return f"{both}, and all other documents"

    @property
    def not_looked_at(self) -> list[str]:
        """What nobody has looked at, in words: restore may overwrite it, and this plan does not name it."""
        if self.divergence is None:
            without = (
                "whether DMS had delivered MongoDB's last write to each document that would be overwritten or deleted,"
                " and what the log does not touch; to look at both: d5agent plan --divergence"
            )
            return [without]
        both = [
            "undelivered writes to fields that were written on DocumentDB, too: nobody can tell them from the replay"
        ]
        moved = sorted(map(str, self.whole))
        if not moved:
            return both
        return [*both, f"undelivered writes in what the log drops or renames: {', '.join(moved[:_SHOWN])}"]

    @property
    def obstacles(self) -> list[str]:
        """What restore would stop at, or not be able to write, in words."""
        unknown = [
            f"{event['namespace']}: operations of type {event['kind']!r} cannot be replayed: commit {event['sequence']}"
            for event in self.unknown.first[:1]
        ]
        conflicts = [f"conflicts of unique indexes are foreseen: {self.conflicts.total:,}"]
        collations = [
            f"{name}: its _id index follows a collation, and the log touches it by an _id with text in it"
            for name in self.collated.found
        ]
        return unknown + collations + (conflicts if self.conflicts.total else [])

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "version": VERSION,
            "run_id": self.run_id,
            "at": self.at,
            "sequence": self.sequence,
            "go": not self.obstacles,
            "obstacles": self.obstacles,
            "operations": self.operations,
            "bytes": self.bytes,
            "namespaces": {str(namespace): asdict(row) for namespace, row in sorted(self.rows.items(), key=str)},
            "events": self.events.first,
            "events_total": self.events.total,
            "unknown": self.unknown.first,
            "unknown_total": self.unknown.total,
            "overwrites": [o.to_json() for o in [*self.unexpected.first, *self.overwrites.first][:_NAMED]],
            "overwrites_total": self.unexpected.total + self.overwrites.total,
            "overwrites_unexpected": self.unexpected.total,
            "conflicts": [conflict.to_json() for conflict in self.conflicts.first],
            "conflicts_total": self.conflicts.total,
            "indexes": self.indexes,
            **dict(self._divergence()),
            "estimate": None if self.estimate is None else self.estimate.to_json(),
            "looked_at": self.looked_at,
            "not_looked_at": self.not_looked_at,
            "notes": self.notes,
        }

    def _divergence(self) -> Iterator[tuple[str, Any]]:
        if self.divergence is not None:
            yield "divergence", [difference.to_json() for difference in self.divergence.first]
            yield "divergence_total", self.divergence.total
        if self.undelivered is not None:
            yield "undelivered", [difference.to_json() for difference in self.undelivered.first]
            yield "undelivered_total", self.undelivered.total
            yield "undelivered_kept_in", f"{run_folder(self.run_id)}target/" if self.run_id else None


def _key_of(operation: Operation, commit: Commit) -> str:
    """Return the key of the segment that holds a drop, a rename or a dropDatabase: a collection's own, or a mixed one.

    A rename or a dropDatabase that shares its commit is in a mixed one.
    """
    own, time = names_in_keys(operation.namespace), operation.cluster_time
    keys = {parse_segment_key(r.key).namespace: r.key for r in commit.segments if r.first <= time <= r.last}
    order = (own, None) if operation.kind == "drop" else (None, own)
    return next((keys[name] for name in order if name in keys), commit.segments[0].key)
