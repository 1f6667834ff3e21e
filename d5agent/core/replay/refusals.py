"""Documents that the target refuses while a live restore follows: which of them no later event will settle."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.identity import Identity, identity_of
from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import DocumentId
from d5agent.core.replay.replay import Failure, Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from d5agent.core.replay.replay import Barrier, Window

_MOST: Final = 10_000  # kept in the checkpoint; of refusals that are no conflict, more end the restore anyway
_CONFLICT_TURNS: Final = 3  # the holder of a unique value gives it up in an event of its own, as a rule within a turn


@dataclass(slots=True, kw_only=True)
class Refusal:
    """A refused document, without its content. `turns`: so often in a row it was refused as the source has it."""

    failure: Failure
    turns: int = 0
    tried: int | None = None
    """Python's hash of what was tried last."""

    @property
    def is_settled_by_nothing(self) -> bool:
        """Whether it was refused, unchanged, for so long that no event can be on its way that helps."""
        return self.turns >= (_CONFLICT_TURNS if self.failure.is_conflict else 1)


@dataclass(slots=True)
class Refusals:
    """All that are known, by document."""

    _found: dict[Namespace, dict[Identity, Refusal]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many there are."""
        return sum(map(len, self._found.values()))

    def follow(self, window: Window) -> None:
        """Forget what a window has written, dropped, or knows more of."""
        for barrier in window.removals():
            self.apply_barrier(barrier)
        for namespace in list(self._found):
            refusals = self._found[namespace]
            for place in [place for place in refusals if window.knows(namespace, place)]:
                del refusals[place]
            self._tidy(namespace)

    def note(self, failures: Iterable[Failure]) -> None:
        """Take what was refused."""
        room = _MOST - len(self)
        for failure in failures:
            if room <= 0:
                return
            room -= 1
            bare = replace(failure, write=Write(id=failure.write.id, document=None))
            self._found.setdefault(failure.namespace, {})[identity_of(failure.write.id)] = Refusal(failure=bare)

    def apply_barrier(self, barrier: Barrier) -> None:
        """Follow a drop, a rename or a dropDatabase."""
        namespace, to = barrier.namespace, barrier.rename_to
        if barrier.kind == "dropDatabase":
            for known in [known for known in self._found if known.database == namespace.database]:
                del self._found[known]
            return
        moved = self._found.pop(namespace, {})
        if to is not None:
            self._found.pop(to, None)
            self.note(replace(refusal.failure, namespace=to) for refusal in moved.values())

    def documents(self) -> list[tuple[Namespace, list[DocumentId]]]:
        """Return the refused documents by namespace."""
        return [(n, [r.failure.write.id for r in found.values()]) for n, found in self._found.items()]

    def tried(self, namespace: Namespace, found: Mapping[DocumentId, bytes], failures: Sequence[Failure]) -> None:
        """Take what became of documents that were written as the source has them: `found`; what it lacks was not."""
        refusals = self._found.get(namespace, {})
        refused = {identity_of(failure.write.id): failure for failure in failures}
        for id_, document in found.items():
            place = identity_of(id_)
            before = refusals.pop(place, None)
            failure = refused.get(place)
            if failure is not None:
                version = hash(document)
                turns = before.turns if before is not None and before.tried == version else 0
                bare = replace(failure, write=Write(id=id_, document=None))
                refusals[place] = Refusal(failure=bare, turns=turns + 1, tried=version)
        self._tidy(namespace)

    def unsettled(self) -> list[Failure]:
        """Return what no later event settles."""
        return [r.failure for found in self._found.values() for r in found.values() if r.is_settled_by_nothing]

    def _tidy(self, namespace: Namespace) -> None:
        if not self._found.get(namespace, True):
            del self._found[namespace]

    def to_json(self) -> list[dict[str, Any]]:
        """Return them as JSON values, for the checkpoint."""
        return [
            {
                "db": namespace.database,
                "coll": namespace.collection,
                "id": base64.b64encode(refusal.failure.write.id).decode(),
                "reason": refusal.failure.reason,
                "index": refusal.failure.index,
                "is_conflict": refusal.failure.is_conflict,
            }
            for namespace, found in self._found.items()
            for refusal in found.values()
        ]

    @classmethod
    def from_json(cls, rows: Iterable[dict[str, Any]]) -> Refusals:
        """Return what `to_json` wrote."""
        refusals = cls()
        refusals.note(
            Failure(
                namespace=Namespace(row["db"], row["coll"]),
                write=Write(id=DocumentId(base64.b64decode(row["id"])), document=None),
                reason=row["reason"],
                index=row["index"],
                is_conflict=row["is_conflict"],
            )
            for row in rows
        )
        return refusals
