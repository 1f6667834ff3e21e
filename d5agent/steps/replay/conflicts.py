"""Writes batches, and settles what the target refuses for a unique value, as far as it can be settled now."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

from d5agent.core.log.identity import identity_of
from d5agent.core.log.raw import document_id
from d5agent.core.replay.replay import Failure, Write, WriteBatch, absent, again, split_conflicts, split_deletes
from d5agent.core.replay.tangle import Place, RefusedWrite, place_of, untangle
from d5agent.core.replay.unique_key import keys_of, unique_indexes
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.unique_key import UniqueIndex
    from d5agent.ports import DocumentReader

_QUESTIONS: Final = 4  # at the same time, about who holds a value
_FETCH: Final = 50
_SMALLEST_CIRCLE: Final = 2


class BatchWriter(Protocol):
    """What sends batches to the target: replay's lanes, or one batch after the other."""

    async def write(self, batches: Iterable[WriteBatch]) -> list[Failure]:
        """Write batches; return what the target refused."""
        ...


@dataclass(slots=True)
class Parked:
    """Documents that have left the target for a moment, as they were there."""

    places: set[Place] = field(default_factory=set)
    documents: dict[Place, Failure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    """Finds who is in the way of a refused document."""

    target: DocumentReader

    async def of(self, conflicts: Sequence[Failure]) -> list[RefusedWrite]:
        """Return who holds the refused documents' unique values, by what the server says."""
        namespaces = {failure.namespace for failure in conflicts}
        unique = {namespace: await self._unique(namespace) for namespace in namespaces}

        async def one(failure: Failure) -> RefusedWrite:
            holders: dict[bytes, DocumentId] = {}
            for index in unique[failure.namespace]:
                keys = keys_of(index, failure.write.document or b"")
                found = await self.target.holders(failure.namespace, index, keys) if keys else ()
                holders |= {identity_of(id_): id_ for id_ in map(document_id, found)}
            holders.pop(identity_of(failure.write.id), None)
            return RefusedWrite(failure=failure, holders=tuple(holders.values()))

        return await parallel(one, conflicts, limit=_QUESTIONS)

    async def _unique(self, namespace: Namespace) -> list[UniqueIndex]:
        return unique_indexes((await self.target.facts(namespace)).indexes)


@dataclass(slots=True, kw_only=True)
class ConflictResolver:
    """Deletes go first; a conflict is tried again while that helps; of a circle one document leaves for a moment."""

    lanes: BatchWriter
    target: DocumentReader

    @property
    def holders(self) -> Holders:
        """Whom to ask who is in the way."""
        return Holders(target=self.target)

    async def write(self, batches: Sequence[WriteBatch]) -> list[Failure]:
        """Write batches; return what is refused for good, or until somebody else lets a value go.

        A document that waits stays in the target as it was.
        """
        deletes, rest = split_deletes(batches)
        refused = await self.lanes.write(deletes) + await self.lanes.write(rest)
        conflicts, final = split_conflicts(refused)
        parked = Parked()
        while conflicts:
            conflicts = await self._write_again(conflicts, final)
            if len(conflicts) < _SMALLEST_CIRCLE:
                break
            plan = untangle(await self.holders.of(conflicts))
            if not await self.park(plan.parked, parked):
                break
            conflicts, others = split_conflicts(await self.lanes.write(again(plan.ready)))
            conflicts += plan.waiting
            final += others
        await self.put_back([*conflicts, *final], parked)
        return final + conflicts

    async def _write_again(self, conflicts: list[Failure], final: list[Failure]) -> list[Failure]:
        """Write while that helps: a document may have waited for another one of the same batch."""
        while conflicts:
            before = len(conflicts)
            conflicts, others = split_conflicts(await self.lanes.write(again(conflicts)))
            final += others
            if len(conflicts) == before:
                break
        return conflicts

    async def park(self, failures: Iterable[Failure], parked: Parked) -> bool:
        """Let documents leave the target for a moment; False: they all have before, and it did not help."""
        new = [failure for failure in failures if place_of(failure) not in parked.places]
        if not new:
            return False
        parked.places.update(map(place_of, new))
        for batch in again(new):
            for at in range(0, len(batch.writes), _FETCH):
                ids = [write.id for write in batch.writes[at : at + _FETCH]]
                for id_, document in (await self.target.fetch(batch.namespace, ids)).items():
                    old = Failure(
                        namespace=batch.namespace, write=Write(id=id_, document=document), reason="", is_conflict=True
                    )
                    parked.documents[place_of(old)] = old
        await self.lanes.write(absent(new))
        return True

    async def put_back(self, refused: Iterable[Failure], parked: Parked) -> None:
        """Write parked documents as they were, where their new state is refused after all.

        One whose old value is taken now stays away: its new state is known to be in doubt.
        """
        missing = {place_of(failure) for failure in refused} & parked.documents.keys()
        if missing:
            await self.lanes.write(again(parked.documents[place] for place in missing))


def without_document(failure: Failure) -> Failure:
    """Return a failure that takes little memory."""
    return replace(failure, write=Write(id=failure.write.id, document=None))
