"""Where drops, renames and dropDatabases are in the log: after all that they have to do with, and before the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d5agent.core.log.operation import OWN_DATABASE, Namespace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.log.operation import Operation


def require_barriers_in_order(stored: Sequence[Operation], happened: Sequence[Operation]) -> None:
    """See that what is stored before each barrier is what happened before it, of all that it has to do with."""
    for barrier in (operation for operation in happened if operation.is_barrier):
        names = concerned(barrier)
        assert _before(barrier, stored, names) == _before(barrier, happened, names)


def concerned(barrier: Operation) -> tuple[Namespace, ...]:
    """Return the collections, or the database, whose operations a barrier is in order with; none: it is with all."""
    name, to = barrier.namespace, barrier.rename_to
    is_known = barrier.kind in {"drop", "rename", "dropDatabase"} and name.database != OWN_DATABASE
    return tuple(each for each in (name, to) if each is not None) if is_known else ()


def _before(barrier: Operation, operations: Sequence[Operation], names: tuple[Namespace, ...]) -> list[bytes]:
    """Return the tokens: what a look-up finds is another document each time."""
    at = [operation.token for operation in operations].index(barrier.token)
    return sorted(operation.token for operation in operations[:at] if _has_to_do(operation, names))


def _has_to_do(operation: Operation, names: tuple[Namespace, ...]) -> bool:
    known = [each for each in (operation.namespace, operation.rename_to) if each is not None]
    return not names or not {*known, *(Namespace(each.database) for each in known)}.isdisjoint(names)
