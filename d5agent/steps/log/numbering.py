"""With which number a log begins: commit numbers go on from run to run.

A delete that the store performs late, after its answer was lost and it was sent again, then meets nothing of a later
run. What is left of a run whose log is deleted is its final report, which holds the number of the last commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from d5agent.core.log.naming import REPORTS
from d5agent.core.reports.final_report import decode_report, next_sequence
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from d5agent.ports import ObjectStore
    from d5agent.service import Journal

_FINAL: Final = "/final.json"


async def first_number(store: ObjectStore, journal: Journal) -> int:
    """Return the number after those of all runs that have ended here. A report that cannot be read stops nothing."""
    number = 0
    async for page in store.list_objects(REPORTS):
        for key in (found.key for found in page if found.key.endswith(_FINAL)):
            try:
                number = max(number, next_sequence(decode_report(await store.get(key) or b"", key=key)))
            except (CorruptDataError, ValueError, TypeError, AttributeError) as error:
                journal.warning("final_report_not_read", key=key, error=type(error).__name__)
    return number
