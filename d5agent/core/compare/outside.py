"""What the comparison of the documents that the log does not touch has found, and how far it is."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.log.identity import identity_of
from d5agent.core.log.naming import REPORTS
from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import DocumentId
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from d5agent.core.compare.changed import Changed
    from d5agent.core.log.identity import Identity

VERSION: Final = 1
OFF: Final[Mapping[str, Any]] = {"state": "off"}
"""What a certificate says with `[verify] outside = "off"`."""
MOST_BYTES: Final = 8 * 1024 * 1024  # that differences hold in memory: about 30,000 of them
_FIRST: Final = 100  # differences that a certificate names; the report of the comparison has all that are held
_OVERHEAD: Final = 200  # bytes that a difference costs beside its `_id` and its fields
NEEDS_WORD: Final = (DifferenceKind.MISSING, DifferenceKind.DIFFERENT)
"""Kinds of difference that an operator must accept: the target lacks, or has otherwise, what the source has."""


def outside_key(run_id: str) -> str:
    """Return where the report of a run's comparison is."""
    return f"{REPORTS}{run_id}/outside.json"


@dataclass(slots=True)
class Differences:
    """Documents that differ, each once, by what its `_id` is to a server; `bytes` is about what they hold."""

    bytes: int = 0
    _found: dict[Namespace, dict[Identity, Difference]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many there are."""
        return sum(len(found) for found in self._found.values())

    def __iter__(self) -> Iterator[Difference]:
        """Yield them, in the order of collections."""
        for _, found in sorted(self._found.items(), key=str):
            yield from found.values()

    def add(self, differences: Iterable[Difference]) -> None:
        """Take some; a document that is known already keeps its place."""
        for difference in differences:
            found = self._found.setdefault(difference.namespace, {})
            before = found.get(place := identity_of(difference.id))
            found[place] = difference
            self.bytes += cost_of(difference) - (0 if before is None else cost_of(before))

    def touch(self, namespace: Namespace, id_: DocumentId) -> None:
        """Forget a document: the log touches it, so it belongs to the log's own comparison."""
        found = self._found.get(namespace)
        if found is not None and (gone := found.pop(identity_of(id_), None)) is not None:
            self.bytes -= cost_of(gone)
            if not found:
                del self._found[namespace]

    def move(self, namespace: Namespace) -> None:
        """Forget a collection, or a database: its name moved, and restore compares it whole."""
        for known in [n for n in self._found if namespace in {n, n._replace(collection=None)}]:
            self.bytes -= sum(cost_of(gone) for gone in self._found.pop(known).values())

    def by_namespace(self) -> dict[Namespace, set[DocumentId]]:
        """Return the `_id`s by collection."""
        return {namespace: {d.id for d in found.values()} for namespace, found in self._found.items()}


_Known = tuple[Namespace, "Identity"]


def _known(difference: Difference) -> _Known:
    return difference.namespace, identity_of(difference.id)


def cost_of(difference: Difference) -> int:
    """Return about how many bytes a difference holds in memory."""
    return _OVERHEAD + len(difference.id) + sum(map(len, difference.fields))


@dataclass(slots=True, kw_only=True)
class OutsideReport:
    """How far the comparison of one run is.

    `collections`: those that are compared, with how many documents. `suspects` differed when they were looked at, and
    the log was not asked yet whether it touches them; `differences` it does not touch, up to the commit `sequence`.
    `is_cut`: in some collection more differ than are held, and its comparison ended there. `extra_collections`: those
    that only the target has, with the number of their documents; they are not read. `found_at`: when the newest
    difference was found that needs an operator's word; `reported`: what an earlier start had found. `target_position`:
    where the target's change stream was when the replay had ended; `written_since`: documents that differ and were
    written there since. `expired`: those that the target lacks, and that its own TTL indexes delete. `target`: which
    one it is; None: an earlier version has not noted it.
    """

    run_id: str
    began_at: str = ""
    ended_at: str = ""
    collections: dict[str, int] = field(default_factory=dict)
    total: int = 0
    suspects: Differences = field(default_factory=Differences)
    differences: Differences = field(default_factory=Differences)
    sequence: int = -1
    is_cut: bool = False
    extra_collections: dict[str, int] = field(default_factory=dict)
    found_at: str = ""
    reported: frozenset[_Known] = frozenset()
    target_position: bytes | None = None
    written_since: Differences = field(default_factory=Differences)
    expired: Differences = field(default_factory=Differences)
    target: ServerFacts | None = None

    def is_of(self, target: ServerFacts | None) -> bool:
        """Whether it was made with this target, as far as anybody can say."""
        return self.target is None or target is None or self.target.is_same(target)

    @property
    def compared(self) -> int:
        """How many documents were compared."""
        return sum(self.collections.values())

    def is_complete(self, *, sequence: int) -> bool:
        """Whether all is compared, and what differs is untouched by the log up to that commit."""
        is_known = not self.suspects and (not self.differences or self.sequence >= sequence)
        return bool(self.ended_at) and is_known

    @property
    def needs_word(self) -> bool:
        """Whether an operator must accept what differs: the target lacks, or has otherwise, what the source has."""
        return self.is_cut or any(difference.kind in NEEDS_WORD for difference in self.differences)

    def conclude(self, *, now: str, sequence: int) -> None:
        """Take note that all is compared: what is still suspect, the log up to that commit does not touch."""
        self.differences.add(self.suspects)
        self.suspects, self.sequence, self.ended_at = Differences(), sequence, now
        known = {_known(d) for d in self.differences if d.kind in NEEDS_WORD}
        if not known <= self.reported or (self.is_cut and not self.found_at):
            self.found_at = now
        self.reported |= known

    @property
    def has_new(self) -> bool:
        """Whether something differs that no earlier start had found."""
        return any(_known(difference) not in self.reported for difference in self.suspects)

    def set_aside(self, changed: Changed) -> None:
        """Take out of the suspects what was written to the target since its position: applications work there now."""
        written = {(namespace, identity_of(id_)) for namespace, ids in changed.documents.items() for id_ in ids}
        for difference in tuple(self.suspects):
            place, is_moved = _known(difference), bool(changed.moved_within([difference.namespace]))
            if place not in self.reported and (place in written or is_moved):
                self.suspects.touch(difference.namespace, difference.id)
                self.written_since.add([difference])

    def missing(self) -> dict[Namespace, set[DocumentId]]:
        """Return the suspects that the target lacks."""
        found = Differences()
        found.add(difference for difference in self.suspects if difference.kind is DifferenceKind.MISSING)
        return found.by_namespace()

    def set_expired_aside(self, namespace: Namespace, ids: Iterable[DocumentId]) -> None:
        """Take out of the suspects what the target's own TTL indexes delete: it is no loss."""
        places = {(namespace, identity_of(id_)) for id_ in ids}
        for difference in [suspect for suspect in self.suspects if _known(suspect) in places]:
            self.suspects.touch(difference.namespace, difference.id)
            self.expired.add([difference])

    def counts(self) -> dict[str, int]:
        """Return how many documents the log does not touch, and differ, by kind."""
        found = dict.fromkeys(map(str, DifferenceKind), 0)
        for difference in self.differences:
            found[difference.kind] += 1
        return found

    def summary(self, *, sequence: int) -> dict[str, Any]:
        """Return what a certificate of the log up to a commit says of it, and the final report."""
        return {
            "state": "complete" if self.is_complete(sequence=sequence) else "unfinished",
            "began_at": self.began_at,
            "ended_at": self.ended_at or None,
            "collections": self.total,
            "collections_compared": len(self.collections),
            "compared": self.compared,
            **self.counts(),
            "unchecked": len(self.suspects),
            "is_cut": self.is_cut,
            "written_since": len(self.written_since),
            "expired": len(self.expired),
            "extra_collections": len(self.extra_collections),
            "first": [d.to_json() for d, _ in zip(self.differences, range(_FIRST), strict=False)],
            "report": outside_key(self.run_id),
        }

    def encode(self) -> bytes:
        """Return the report as it is stored. Names that are not UTF-8 come back from it as they are."""
        value = {
            "version": VERSION,
            "run_id": self.run_id,
            "began_at": self.began_at,
            "ended_at": self.ended_at or None,
            "found_at": self.found_at or None,
            "sequence": self.sequence,
            "collections": dict(sorted(self.collections.items())),
            "collections_total": self.total,
            "compared": self.compared,
            **self.counts(),
            "is_cut": self.is_cut,
            "extra_collections": self.extra_collections,
            "target_position": None
            if self.target_position is None
            else base64.b64encode(self.target_position).decode(),
            "target": None if self.target is None else self.target.to_json(),
            "differences": [_row(difference) for difference in self.differences],
            "written_since": [_row(difference) for difference in self.written_since],
            "expired": [_row(difference) for difference in self.expired],
            "unchecked": [_row(difference) for difference in self.suspects],
        }
        return json.dumps(value, indent=1).encode() + b"\n"


def decode_outside(body: bytes, *, run_id: str) -> OutsideReport:
    """Return what `encode` wrote: what differed then is to be looked at again.

    OperatorError: a newer version wrote it; CorruptDataError: it is damaged.
    """
    key = outside_key(run_id)
    try:
        value = json.loads(body)
        if value["version"] != VERSION:
            raise OperatorError(
                "the comparison of untouched documents is of another version",
                hint="run the d5agent version that wrote it, or a newer one",
                key=key,
                version=value["version"],
            )
        report = OutsideReport(
            run_id=run_id,
            began_at=str(value["began_at"]),
            collections={str(name): int(count) for name, count in value["collections"].items()},
            total=int(value["collections_total"]),
            is_cut=bool(value["is_cut"]),
            found_at=str(value["found_at"] or ""),
            target=ServerFacts.from_json(value["target"]) if value.get("target") else None,
        )
        report.reported = frozenset(map(_known, map(_difference, value["differences"])))
        rows = (*value["differences"], *value["unchecked"], *value["written_since"], *value.get("expired", ()))
        report.suspects.add(map(_difference, rows))
        if value["target_position"] is not None:
            report.target_position = base64.b64decode(value["target_position"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(
            "the comparison of untouched documents is damaged",
            hint="delete the object: all is compared again",
            key=key,
            reason=type(error).__name__,
        ) from error
    return report


def stored_summary(body: bytes | None) -> dict[str, Any] | None:
    """Return what a final report says of a stored report; None: nothing was compared."""
    if body is None:
        return None
    value = json.loads(body)
    names = ("began_at", "ended_at", "found_at", "compared", *map(str, DifferenceKind), "is_cut")
    counts = {name: len(value.get(name, ())) for name in ("written_since", "expired")}
    return {name: value[name] for name in names} | counts


def _row(difference: Difference) -> dict[str, Any]:
    namespace = difference.namespace
    return {
        **difference.to_json(),
        "db": namespace.database,
        "coll": namespace.collection,
        "_id": base64.b64encode(difference.id).decode(),
    }


def _difference(row: Mapping[str, Any]) -> Difference:
    return Difference(
        namespace=Namespace(row["db"], row["coll"]),
        id=DocumentId(base64.b64decode(row["_id"], validate=True)),
        kind=DifferenceKind(row["kind"]),
        fields=tuple(row["fields"]),
    )
