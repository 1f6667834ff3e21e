"""What a server's user may do, and what it lacks for a restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESTORING: Final = (
    *("find", "insert", "update", "remove", "createCollection", "dropCollection", "dropDatabase"),
    *("renameCollectionSameDB", "listCollections", "listIndexes"),
)
"""Actions that a restore needs on every database of the log, by MongoDB's names."""
ANY: Final = ""
"""Every database that is not the server's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Actions on a whole database, or on any. One on single collections is none: a restore drops and creates them."""

    database: str
    actions: frozenset[str]


def lacking(grants: Iterable[Grant], databases: Sequence[str]) -> dict[str, list[str]]:
    """Return the actions that a restore of these databases lacks, by database; without names, of any."""
    known = list(grants)
    found = {}
    for database in databases or (ANY,):
        had = {action for grant in known if grant.database in {ANY, database} for action in grant.actions}
        if missing := [action for action in RESTORING if action not in had]:
            found[database] = missing
    return found
