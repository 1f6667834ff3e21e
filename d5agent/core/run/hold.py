"""What the agent remembers of a target that it has closed to others: what it has set, and what was there before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.backup import position_from_json, position_to_json
from d5agent.core.replay.ttl import TtlIndex
from d5agent.core.run.services import ACTIVE, Service, Status
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.run.services import PhaseState

HOLD: Final = "target_hold"
"""The state that holds it. It belongs to the target, not to a run: it outlives the run until all is given back."""

_VERSION: Final = 1
_HOLDING: Final = frozenset({Status.PENDING, Status.FAILED, *ACTIVE})


class Block(StrEnum):
    """Who has put the target into write-block mode; the value is what the certificate says."""

    OURS = "set by d5agent"
    ANOTHERS = "set by somebody else"
    NONE = "not set"


class Stage(StrEnum):
    """How far a hold is."""

    HELD = "held"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A target that is closed to others, or was. `since`: without a break.

    `obstacle`: why its write-block mode is not used. `ttl`: the TTL indexes that the agent holds, as they were before.
    `was_open`: others could write between two holds of this run. `opened_at`: where in the target's change
    stream their writes begin that nobody has looked at yet; empty: it is not known; None: there are none.
    `target`: which one it is; None: an earlier version has not noted it.
    """

    run_id: str
    since: str
    stage: Stage = Stage.HELD
    block: Block = Block.NONE
    obstacle: str = ""
    ttl: tuple[TtlIndex, ...] = ()
    was_open: bool = False
    opened_at: bytes | None = None
    target: ServerFacts | None = None

    @property
    def is_set(self) -> bool:
        """Whether something is still to be given back."""
        return self.stage is not Stage.ENDED and (self.block is Block.OURS or bool(self.ttl))

    def is_of(self, target: ServerFacts) -> bool:
        """Whether it is this target's, as far as anybody can say."""
        return self.target is None or self.target.is_same(target)

    @property
    def is_open(self) -> bool:
        """Whether others could write to the target while restore was at work."""
        return self.was_open or self.block is Block.NONE

    def ending(self) -> Hold:
        """Return it as what is to be given back: noted first, so that a crash does not leave it."""
        return replace(self, stage=Stage.ENDING, was_open=True)

    def ended(self) -> Hold:
        """Return it once all is given back."""
        return replace(self, stage=Stage.ENDED, block=Block.NONE, ttl=())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for the state file."""
        return {
            "version": _VERSION,
            "run_id": self.run_id,
            "since": self.since,
            "stage": str(self.stage),
            "block": str(self.block),
            "obstacle": self.obstacle,
            "ttl": [index.to_json() for index in self.ttl],
            "was_open": self.was_open,
            "opened_at": position_to_json(self.opened_at or None),
            "opened_unseen": self.opened_at == b"",
            "target": None if self.target is None else self.target.to_json(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Hold:
        """Return what `to_json` gave. CorruptDataError: it is damaged, or of another version."""
        try:
            if value["version"] != _VERSION:
                raise CorruptDataError(
                    "the state of the target's hold is of another version",
                    hint="run the d5agent version that wrote it, or a newer one",
                )
            return Hold(
                run_id=value["run_id"],
                since=value["since"],
                stage=Stage(value["stage"]),
                block=Block(value["block"]),
                obstacle=value["obstacle"],
                ttl=tuple(TtlIndex.from_json(index) for index in value["ttl"]),
                was_open=value["was_open"],
                opened_at=_opened_at(value),
                target=None if value.get("target") is None else ServerFacts.from_json(value["target"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptDataError(
                "the state of the target's hold is damaged",
                hint=f"look at the target yourself: is it in write-block mode? then move {HOLD}.json aside, here and"
                " under state/ in the bucket",
                reason=type(error).__name__,
            ) from error

    def certificate(self, *, is_on: bool | None) -> dict[str, Any]:
        """Return what the certificate says. `is_on`: whether the target is in write-block mode at its moment."""
        is_lifted = self.block is not Block.NONE and not is_on
        return {
            "write_block": "lifted by somebody else" if is_lifted else str(self.block),
            "since": self.since,
            "was_open": self.is_open or is_lifted,
            "obstacle": self.obstacle,
            "ttl_held": [
                {"namespace": str(index.namespace), "index": index.name, "seconds": index.seconds} for index in self.ttl
            ],
        }


def _opened_at(value: Mapping[str, Any]) -> bytes | None:
    """Return from where on nobody has looked; a version that did not look has noted nothing."""
    if value.get("opened_unseen", value["was_open"]):
        return b""
    return position_from_json(value.get("opened_at"))


def is_due(hold: Hold | None, state: PhaseState) -> bool:
    """Whether a hold is to be given back by whoever sees it: restore is not at work, and has not failed.

    While restore has failed the target may hold half of what it is to become: nobody is to write to it before restore
    has ended well, or an operator has stopped it. With a certificate it belongs to the applications.
    """
    if hold is None or hold.stage is Stage.ENDED:
        return False
    if state.verified is not None:
        return True
    is_at_work = hold.run_id == state.run_id and state.status(Service.RESTORE) in _HOLDING
    return hold.stage is Stage.ENDING or not is_at_work
