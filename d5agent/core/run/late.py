"""Operations behind the certified end of the log: what was certified of their documents, and what there is now."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from d5agent.core.log.identity import Identity, identity_of
from d5agent.core.log.naming import REPORTS, id_to_text
from d5agent.core.log.operation import BARRIER_KINDS, Namespace
from d5agent.core.run.words import accepts_differences
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from d5agent.core.log.operation import Operation
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.run.services import PhaseState

Place = tuple[Namespace, Identity]
_ABSENT: Final = ""


class LateState(StrEnum):
    """How the target's document stands to the one that was certified; the value is what a report says.

    An accepting word writes the first two, if they are still what was reported. The others are never overwritten.
    """

    AS_CERTIFIED = "as certified"
    NOT_KNOWN = "not known"
    CHANGED = "changed since it was certified"
    NOT_CERTIFIED = "not certified"

    @property
    def is_written(self) -> bool:
        """Whether an accepting word writes such a document."""
        return self in {LateState.AS_CERTIFIED, LateState.NOT_KNOWN}


class LateDocument(NamedTuple):
    """A document that late operations concern, as it was on both sides when it was reported; None: absent."""

    namespace: Namespace
    id: DocumentId
    state: LateState
    target: bytes | None
    source: bytes | None

    def versions(self) -> dict[str, bytes | None]:
        """Return both versions."""
        return {"target": self.target, "source": self.source}

    def to_json(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {"namespace": str(self.namespace), "id": id_to_text(self.id), "state": str(self.state)}


@dataclass(slots=True)
class Certified:
    """What a log says of some documents at its certified end; of many it says nothing.

    First it is told the log up to there (`add`), then the late operations (`add_late`).
    """

    wanted: dict[Namespace, set[Identity]]
    _known: dict[Place, str] = field(default_factory=dict)
    _named: set[Place] = field(default_factory=set)
    _moved: set[Namespace] = field(default_factory=set)

    def add(self, operation: Operation) -> None:
        """Take the next operation of the log."""
        id_ = operation.document_id
        if id_ is None:
            for namespace in self._concerned(operation):
                # What a barrier leaves is absent; what came under a new name is not known.
                known = None if namespace == operation.rename_to else _ABSENT
                for identity in self.wanted[namespace]:
                    self._learn((namespace, identity), known)
            return
        place = (operation.namespace, identity_of(id_))
        if place[1] in self.wanted.get(operation.namespace, ()):
            # Without a document it was gone before the look-up: the source said later what it was.
            is_told = operation.document is not None or operation.kind == "delete"
            self._learn(place, _digest(operation.document) if is_told else None)

    def add_late(self, operation: Operation) -> None:
        """Take the next operation behind the certified end."""
        id_ = operation.document_id
        if id_ is None:
            self._moved.update(self._concerned(operation))
            return
        place = (operation.namespace, identity_of(id_))
        if place[1] not in self.wanted.get(operation.namespace, ()) or place in self._named:
            return
        self._named.add(place)
        if operation.kind == "insert" and operation.namespace not in self._moved:
            self._known.setdefault(place, _ABSENT)  # the source had none before

    def judge(self, namespace: Namespace, id_: DocumentId, target: bytes | None) -> LateState:
        """Return how the target's document stands to the certified one."""
        place = (namespace, identity_of(id_))
        known = self._known.get(place)
        if known is not None:
            return LateState.AS_CERTIFIED if known == _digest(target) else LateState.CHANGED
        # Only a drop or a rename concerns it: whoever wrote it, no late operation names it.
        is_foreign = place not in self._named and target is not None
        return LateState.NOT_CERTIFIED if is_foreign else LateState.NOT_KNOWN

    def _learn(self, place: Place, known: str | None) -> None:
        if known is None:
            self._known.pop(place, None)
        else:
            self._known[place] = known

    def _concerned(self, operation: Operation) -> list[Namespace]:
        """Return the wanted namespaces that a drop, a rename or a dropDatabase concerns."""
        if operation.kind not in BARRIER_KINDS:
            return []
        hit = {operation.namespace, operation.rename_to}
        return [name for name in self.wanted if name in hit or Namespace(name.database) == operation.namespace]


def _digest(document: bytes | None) -> str:
    """Return what stands for a document's bytes: many are known at once, and each may be large."""
    return _ABSENT if document is None else hashlib.sha256(document).hexdigest()


def late_folder(run_id: str) -> str:
    """Return where a run's late operations are reported and kept."""
    return f"{REPORTS}{run_id}/late/"


def covered_sequence(state: PhaseState) -> int:
    """Return the last commit of which nothing is left to do: certified, or settled on an operator's word. -1: none."""
    return max(state.late.settled, -1 if state.verified is None else state.verified.sequence)


def notes_of_certified(state: PhaseState) -> list[str]:
    """Return what a plan must say beside what it compares: nothing of it is written once there is a certificate."""
    if state.verified is None:
        return []
    return [
        "the certificate is issued: restore overwrites nothing of this, and monitor-restore reports what came since"
    ]


def check_late_carried_out(state: PhaseState) -> None:
    """Raise OperatorError unless every word on late operations is carried out, and what it left different accepted."""
    if state.late.pending is not None:
        raise OperatorError(
            "accepted late operations are not written yet",
            hint="type: d5agent start monitor-restore, which has them written",
            report=state.late.pending.shown.report,
        )
    check_late_words(state)


def check_late_words(state: PhaseState) -> None:
    """Raise OperatorError while late operations that were accepted left differences that nobody has accepted."""
    certified = -1 if state.verified is None else state.verified.sequence
    for word in state.late.words:
        is_covered = word.shown.sequence <= certified or not word.different
        if not is_covered and not accepts_differences(state, found_at=word.ended_at):
            raise OperatorError(
                f"{word.different} documents of the accepted late operations are not what was accepted",
                hint=f"{word.result} names them, MongoDB's versions were not overwritten; to leave them so, type:"
                f" d5agent start clean --accept-differences {state.run_id}",
                result=word.result,
            )
