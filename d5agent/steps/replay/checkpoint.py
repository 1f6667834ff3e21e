"""How far a restore is, saved: what a restart goes on from, and what `verify` knows of the documents in doubt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.operation import Namespace
from d5agent.core.replay.refusals import Refusals
from d5agent.core.replay.replay import Unresolved
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError, OperatorError

if TYPE_CHECKING:
    from d5agent.ports import StateStore

CHECKPOINT: Final = "restore_checkpoint"
_VERSION: Final = 1


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """How far the target is: everything up to commit `sequence` is applied, but for what is in doubt.

    And `within` operations of the commit after it, in the order in which it lists them.
    """

    run_id: str
    sequence: int = -1
    within: int = 0
    operations: int = 0
    written: int = 0
    doubts: Unresolved = field(default_factory=Unresolved)
    refusals: Refusals = field(default_factory=Refusals)
    """Which of the documents in doubt the target has refused."""
    target: ServerFacts | None = None
    """The cluster that was written to; None: an earlier version did not note it."""
    lost: set[Namespace] = field(default_factory=set)
    """Collections whose indexes and options a drop or rename has taken, and that have not got them back."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "version": _VERSION,
            "run_id": self.run_id,
            "sequence": self.sequence,
            "within": self.within,
            "operations": self.operations,
            "written": self.written,
            "doubts": self.doubts.to_json(),
            "refusals": self.refusals.to_json(),
            "target": None if self.target is None else self.target.to_json(),
            "lost": [{"db": n.database, "coll": n.collection} for n in sorted(self.lost, key=str)],
        }


async def load_checkpoint(states: StateStore, run_id: str) -> Checkpoint:
    """Return the checkpoint of this run; of another run, or none at all: the beginning.

    OperatorError: it was written by a newer version.
    """
    value = await states.load(CHECKPOINT)
    if value is None or ("run_id" in value and value["run_id"] != run_id):
        return Checkpoint(run_id=run_id)
    if value["version"] != _VERSION:
        raise OperatorError(
            "the restore checkpoint is of another version",
            hint="run the d5agent version that wrote it, or a newer one",
            version=value["version"],
        )
    try:
        return Checkpoint(
            run_id=value["run_id"],
            sequence=value["sequence"],
            within=value.get("within", 0),  # an older version counted whole commits
            operations=value["operations"],
            written=value["written"],
            doubts=Unresolved.from_json(value["doubts"]),
            refusals=Refusals.from_json(value.get("refusals", ())),  # an older version kept none
            target=ServerFacts.from_json(value["target"]) if value.get("target") else None,
            lost={Namespace(row["db"], row["coll"]) for row in value.get("lost", ())},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            "the restore checkpoint is damaged",
            hint="move restore_checkpoint.json aside, on disk and under state/: restore begins anew, which is safe",
            reason=type(error).__name__,
        ) from error
