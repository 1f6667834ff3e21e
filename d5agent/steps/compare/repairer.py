"""Writes what the source has over what differs in the target: it replaces, and keeps what the target refuses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.log.identity import identity_of
from d5agent.core.replay.replay import Write, WriteBatch, split_conflicts
from d5agent.core.replay.tangle import place_of, untangle
from d5agent.errors import OperatorError
from d5agent.steps.replay.conflicts import ConflictResolver, Parked, without_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Failure, Unresolved
    from d5agent.core.replay.tangle import Place, RefusedWrite
    from d5agent.ports import DocumentReader, Target

_MOST_REFUSED: Final = 10_000  # beyond it the target refuses as a rule


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneLane:
    """Writes batches one after the other: a repair is small."""

    target: Target

    async def write(self, batches: Iterable[WriteBatch]) -> list[Failure]:
        return [failure for batch in batches for failure in await self.target.write(batch)]


@dataclass(slots=True, kw_only=True)
class Repairer:
    """Repairs documents of one comparison. A document that the target refuses stays there as it was.

    `reader` reads the target. `has_written`: whether anything was sent to it.
    """

    target: Target
    reader: DocumentReader
    has_written: bool = False
    _refused: dict[Place, Failure] = field(default_factory=dict)
    _conflicts: dict[Place, RefusedWrite] = field(default_factory=dict)
    _parked: Parked = field(default_factory=Parked)

    async def write(self, namespace: Namespace, ids: Sequence[DocumentId], source: Mapping[DocumentId, bytes]) -> None:
        """Make documents what the source has; what it lacks is deleted.

        Nothing is deleted to make room for a replacement: it brings the type of its own `_id`, so 1 becomes 1.0 in one
        step (MongoDB 6.0.5, inside of documents too).
        """
        replaced = {identity_of(id_) for id_ in ids if id_ in source}
        which = [id_ for id_ in ids if id_ in source or identity_of(id_) not in replaced]
        writes = tuple(Write(id=id_, document=source.get(id_)) for id_ in which)
        self.has_written = True
        conflicts, refused = split_conflicts(
            await self._resolver.write([WriteBatch(namespace=namespace, writes=writes)])
        )
        for place in ((namespace, identity_of(id_)) for id_ in ids):
            self._refused.pop(place, None)
            self._conflicts.pop(place, None)
        for conflict in await self._resolver.holders.of(conflicts):
            failure = without_document(conflict.failure)
            self._conflicts[place_of(failure)] = replace(conflict, failure=failure)
        self._refused |= {place_of(failure): without_document(failure) for failure in refused}
        if len(self._refused) > _MOST_REFUSED:
            raise OperatorError(
                "the target refuses repairs",
                hint="fix the cause, then type: d5agent start restore",
                refused=len(self._refused),
                namespace=str(namespace),
                reason=refused[0].reason if refused else "",
            )

    async def park(self) -> bool:
        """Let documents leave the target for a moment where unique values form a circle; False: there is none left."""
        circle = untangle(list(self._conflicts.values())).parked
        return bool(circle) and await self._resolver.park(circle, self._parked)

    async def put_back(self) -> None:
        """Write parked documents as they were, where the new ones are refused after all."""
        await self._resolver.put_back([*self._refused.values(), *self._failures_of_conflicts()], self._parked)

    def refused(self, unequal: Unresolved) -> list[Failure]:
        """Return what the target refused, as far as it still differs."""
        return [
            failure
            for failure in (*self._refused.values(), *self._failures_of_conflicts())
            if failure.namespace in unequal.whole or failure.write.id in unequal.documents.get(failure.namespace, ())
        ]

    def _failures_of_conflicts(self) -> list[Failure]:
        return [conflict.failure for conflict in self._conflicts.values()]

    @property
    def _resolver(self) -> ConflictResolver:
        return ConflictResolver(lanes=_OneLane(target=self.target), target=self.reader)
