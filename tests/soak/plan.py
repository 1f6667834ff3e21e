"""What happens to the daemon in a run: decided beforehand by a seed, so that a failing run can be repeated.

The seed fixes the plan and the writers' dice. When exactly the machine does each thing stays its own affair.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_STARTING_SECONDS: Final = 1.6  # about as long as a start takes: within it, the daemon is killed while it starts
_MEAN_SECONDS: Final = 0.6
_SHORTEST_SECONDS: Final = 0.05
_LONGEST_SECONDS: Final = 2.0
_STOPS: Final = 0.1  # how many lives end with SIGTERM instead of SIGKILL
_FAULTS: Final = 0.3
_LOST_DISKS: Final = 0.03
# Commits as frequent as the first of each are a thousand in a minute or two: then roll-ups are written too.
_SEGMENT_SECONDS: Final = (0.02, 0.05, 0.2, 1.0)
_SEGMENT_BYTES: Final = (32 * 1024, 256 * 1024, 8 * 1024 * 1024)
_COMPRESSIONS: Final = ("none", "zstd")


class Moment(StrEnum):
    """What the time of an end counts from: the start of the process, or its first answer."""

    STARTING = "starting"
    ANSWERING = "answering"


class Trouble(StrEnum):
    """What the gateway does."""

    CUT = "connections are cut"
    FAIL_OVER = "fail-over"
    BLACK_HOLE = "black hole"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Trouble so many seconds after the daemon was started, and for how long."""

    trouble: Trouble
    after_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One life of the daemon, to its end."""

    moment: Moment
    seconds: float
    is_killed: bool
    loses_disk: bool
    fault: Fault | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run."""

    seed: int
    loses_disks: bool
    max_segment_seconds: float
    max_segment_bytes: int
    compression: str
    lives: tuple[Life, ...]

    @property
    def kills(self) -> int:
        """How many lives end with SIGKILL."""
        return sum(life.is_killed for life in self.lives)

    @property
    def command(self) -> str:
        """What to type to have this plan again: some times, since a fault may hang on a moment."""
        short = "" if self.loses_disks else " --short"
        kills = f"--kills {self.kills} --kills-a-run {self.kills}"
        return f".venv/bin/python -m tests.soak --seed {self.seed} {kills} --repeat 5{short}"


def plan(seed: int, *, kills: int, loses_disks: bool) -> Plan:
    """Return the plan of a seed. A lost disk costs half a minute (the lease must expire): not in a short run."""
    dice = random.Random(seed)
    return Plan(
        seed=seed,
        loses_disks=loses_disks,
        max_segment_seconds=dice.choice(_SEGMENT_SECONDS),
        max_segment_bytes=dice.choice(_SEGMENT_BYTES),
        compression=dice.choice(_COMPRESSIONS),
        lives=tuple(_lives(dice, kills, loses_disks=loses_disks)),
    )


def _lives(dice: random.Random, kills: int, *, loses_disks: bool) -> Iterator[Life]:
    left, must_come_up = kills, False
    while left:
        life = _life(dice, loses_disks=loses_disks, must_come_up=must_come_up)
        left -= life.is_killed
        must_come_up = life.loses_disk
        yield life


def _life(dice: random.Random, *, loses_disks: bool, must_come_up: bool) -> Life:
    moment, seconds = dice.choice(
        (
            (Moment.STARTING, dice.uniform(0, _STARTING_SECONDS)),
            (Moment.ANSWERING, dice.uniform(0, _SHORTEST_SECONDS)),
            *2 * ((Moment.ANSWERING, min(_LONGEST_SECONDS, _SHORTEST_SECONDS + dice.expovariate(1 / _MEAN_SECONDS))),),
        )
    )
    fault = Fault(
        trouble=dice.choice(list(Trouble)),
        after_seconds=dice.uniform(0, _STARTING_SECONDS + seconds),
        seconds=dice.uniform(0.1, 0.8),
    )
    return Life(
        moment=Moment.ANSWERING if must_come_up else moment,
        seconds=seconds,
        is_killed=dice.random() >= _STOPS,
        loses_disk=dice.random() < _LOST_DISKS and loses_disks,
        fault=fault if dice.random() < _FAULTS else None,
    )
