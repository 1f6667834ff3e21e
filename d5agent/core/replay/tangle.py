"""Which refused documents wait for each other's unique values, and which wait for somebody else's.

The server is the judge of what conflicts, with its collations and filters: what is decided here follows from what it
refused and from who holds the values. A document may be written once nobody holds any of its values. In a circle
nobody goes first: there one document leaves the target for a moment, and is written when the others are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from d5agent.core.log.identity import identity_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Failure

Place = tuple["Namespace", bytes]
"""A document as the server tells it from others: `_id`s of equal numbers are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedWrite:
    """A refused write, and which documents of the target hold its unique values: none, if they let them go since."""

    failure: Failure
    holders: tuple[DocumentId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Untangled:
    """What to do: `parked` leave for a moment; then `ready`, which has them too, can be written in this order.

    `waiting` need a value of a document that is not refused itself: a later event, or the end, has it let go.
    """

    parked: tuple[Failure, ...]
    ready: tuple[Failure, ...]
    waiting: tuple[Failure, ...]


def place_of(failure: Failure) -> Place:
    """Return where a refused write belongs."""
    return failure.namespace, identity_of(failure.write.id)


def untangle(conflicts: Sequence[RefusedWrite]) -> Untangled:
    """Return what to do about refused writes. None is parked that could not be written right after."""
    known = {place_of(conflict.failure): conflict for conflict in conflicts}
    edges = {place: [(place[0], identity_of(id_)) for id_ in known[place].holders] for place in known}
    waiting = _waiting(edges)
    order, parked = _in_order({place: held for place, held in edges.items() if place not in waiting})
    return Untangled(
        parked=tuple(known[place].failure for place in order if place in parked),
        ready=tuple(known[place].failure for place in order),
        waiting=tuple(known[place].failure for place in known if place in waiting),
    )


def _waiting(edges: dict[Place, list[Place]]) -> set[Place]:
    """Return who needs a value of a document that is not refused, or waits for one that does."""
    wanted_by: dict[Place, list[Place]] = {}
    for place, holders in edges.items():
        for holder in holders:
            wanted_by.setdefault(holder, []).append(place)
    waiting: set[Place] = set()
    front = [place for holder in wanted_by if holder not in edges for place in wanted_by[holder]]
    while front:
        place = front.pop()
        if place not in waiting:
            waiting.add(place)
            front += wanted_by.get(place, [])
    return waiting


def _in_order(edges: dict[Place, list[Place]]) -> tuple[list[Place], set[Place]]:
    """Return each after the holders of its values, and who has to leave to break a circle: a walk in depth."""
    done: dict[Place, None] = {}
    parked: set[Place] = set()
    for start, first in edges.items():
        path: dict[Place, Iterator[Place]] = {} if start in done else {start: iter(first)}
        while path:
            place = next(reversed(path))
            holder = next(path[place], None)
            if holder is None:
                del path[place]
                done[place] = None
            elif holder in path:
                parked.add(holder)
            elif holder not in done:
                path[holder] = iter(edges[holder])
    return list(done), parked
