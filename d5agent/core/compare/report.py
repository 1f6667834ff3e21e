"""What a comparison found: counts, the differences by name, what was repaired."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.compare.repair import Cause, KnownEvents
from d5agent.core.log.operation import Namespace
from d5agent.core.replay.replay import Unresolved

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from d5agent.core.compare.compare import Difference
    from d5agent.core.compare.repair import LastEvent, Repair
    from d5agent.core.replay.replay import Failure

VERSION: Final = 2
NAMED: Final = 1000  # differences, and repairs, that a report names; all are counted


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was found in one collection."""

    compared: int = 0
    different: int = 0
    repaired: int = 0

    @property
    def is_remarkable(self) -> bool:
        """Whether something was different, or repaired."""
        return bool(self.different or self.repaired)


@dataclass(slots=True, kw_only=True)
class VerifyReport:
    """The result of comparing source and target. `scope` is "touched" or "full".

    `sequence`: the last commit that the target was brought up to, and `operations`: how many the log holds up to it.
    """

    scope: str
    run_id: str = ""
    sequence: int | None = None
    operations: int = 0
    compared: int = 0
    different: int = 0
    repairs: int = 0
    namespaces: dict[str, Tally] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    unequal: Unresolved = field(default_factory=Unresolved)
    """All documents that differ, by `_id`; of too many in one namespace, the namespace."""
    repaired: list[Repair] = field(default_factory=list)
    refused: list[Failure] = field(default_factory=list)
    """Repairs that the target refused, of documents that still differ."""
    is_unstable: bool = False
    """Whether documents that had been found equal, or were made so, differed at a later look."""
    known: KnownEvents = field(default_factory=KnownEvents)
    facts: dict[str, list[str]] = field(default_factory=dict)
    """By namespace, in words: indexes and options that differ."""
    capped: set[Namespace] = field(default_factory=set)
    """Collections of the target that evict documents; not every server tells of it in its change stream."""
    counts: list[str] = field(default_factory=list)
    expired: dict[str, int] = field(default_factory=dict)
    """By namespace: documents that a TTL index deleted from the source while they were compared."""
    specifications: dict[str, Any] | None = None
    """Where the target's indexes and options were recorded, and where they were built again."""
    overwritten: dict[str, Any] | None = None
    """Where those documents of the target are that no dump holds."""
    seconds: float = 0.0
    expected: int | None = None
    """About how many documents there are to compare, to show how far it is; None: nobody knows."""

    @property
    def indexes(self) -> list[str]:
        """Indexes and options that differ, in words."""
        return [line for _, lines in sorted(self.facts.items()) for line in lines]

    @property
    def is_equal(self) -> bool:
        """Whether every compared document, and every count, is the same on both sides."""
        return self.different == 0 and not self.counts

    def tally(self, namespace: Namespace | str) -> Tally:
        """Return the counts of one collection."""
        return self.namespaces.setdefault(str(namespace), Tally())

    def count(self, namespace: Namespace | str, compared: int) -> None:
        """Count compared documents."""
        self.compared += compared
        self.tally(namespace).compared += compared

    def add(self, difference: Difference, event: LastEvent | None = None) -> None:
        """Count a difference, and name it unless too many are named already. `event`: the document's last, if known."""
        self.different += 1
        self.tally(difference.namespace).different += 1
        self.unequal.add(difference.namespace, difference.id)
        self.known.remember(difference, event)
        if len(self.differences) < NAMED:
            self.differences.append(difference)

    def add_repair(self, repair: Repair) -> None:
        """Count a repair, and name it unless too many are named already."""
        self.repairs += 1
        self.tally(repair.difference.namespace).repaired += 1
        if len(self.repaired) < NAMED:
            self.repaired.append(repair)
            self.known.repairs.setdefault(repair.difference.namespace, {})[repair.difference.id] = repair

    def keep_only(self, there: Collection[Namespace]) -> None:
        """Forget equal collections that are on neither side any more: a log may tell of any number of them."""
        names = {str(namespace) for namespace in there}
        for name in [n for n, tally in self.namespaces.items() if n not in names and not tally.is_remarkable]:
            self.compared -= self.namespaces.pop(name).compared
        self.known.keep_only({*there, *(Namespace(namespace.database) for namespace in there)})

    def take_differences(self) -> Unresolved:
        """Return the documents that differ, and forget them here: they are to be compared again."""
        taken, self.unequal, self.differences, self.different = self.unequal, Unresolved(), [], 0
        for tally in self.namespaces.values():
            tally.different = 0
        return taken

    def note_open_target(self) -> int:
        """Note that others could write to the target; return how many named repairs are foreign writes then."""
        for repair in self.repaired:
            repair.is_open = True
        return sum(repair.cause is Cause.FOREIGN_WRITE for repair in self.repaired)

    def pass_over(self, expired: Mapping[str, int]) -> None:
        """Forget the differences: all of them are documents that a TTL index has deleted from the source."""
        self.take_differences()
        self.expired, self.is_unstable = dict(expired), False

    def begin_again(self) -> None:
        """Forget what was compared; what was repaired stays."""
        self.take_differences()
        self.compared, self.counts, self.is_unstable = 0, [], False
        self.expired = {}
        for tally in self.namespaces.values():
            tally.compared = 0

    def take_from(self, other: VerifyReport) -> None:
        """Take the differences that another comparison of the same documents found."""
        self.different += other.different
        self.differences += other.differences[: NAMED - len(self.differences)]
        for name, tally in other.namespaces.items():
            self.tally(name).different += tally.different
        self.unequal.whole |= other.unequal.whole
        for namespace, ids in other.unequal.documents.items():
            self.unequal.documents.setdefault(namespace, set()).update(ids)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for `--json` and the store."""
        return {
            "version": VERSION,
            "scope": self.scope,
            "run_id": self.run_id,
            "sequence": self.sequence,
            "operations": self.operations,
            "equal": self.is_equal,
            "compared": self.compared,
            "different": self.different,
            "repairs": self.repairs,
            "namespaces": {name: asdict(tally) for name, tally in sorted(self.namespaces.items())},
            "differences": [difference.to_json() for difference in self.differences],
            "repaired": [repair.to_json() for repair in self.repaired],
            "indexes": self.indexes,
            "counts": self.counts,
            "expired": self.expired,
            "seconds": round(self.seconds, 3),
            **({} if self.specifications is None else {"specifications": self.specifications}),
            **({} if self.overwritten is None else {"overwritten": self.overwritten}),
        }


def fact_differences(
    namespace: Namespace, what: str, source: Mapping[str, str], target: Mapping[str, str]
) -> list[str]:
    """Return what one side lacks or has otherwise, in words. `what`: "index" or "option".

    They are told, but do not make the databases unequal: DMS copies no secondary index, and a change stream of
    DocumentDB shows none being created, so the two sides may differ for good reasons. What the target alone has is told
    too: a TTL index deletes, a validator refuses.
    """
    found = []
    for name in sorted({**source, **target}):
        if name not in target:
            found.append(f"{namespace}: {what} {name} is missing in the target: {source[name]}")
        elif name not in source:
            found.append(f"{namespace}: {what} {name} is in the target only: {target[name]}")
        elif source[name] != target[name]:
            found.append(f"{namespace}: {what} {name} differs: {source[name]} in the source, {target[name]}")
    return found
