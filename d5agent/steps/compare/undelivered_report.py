"""The report on undelivered writes: where it is, and what a certificate says of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from d5agent.core.log.naming import REPORTS
from d5agent.steps.log.reader import link_of

if TYPE_CHECKING:
    from d5agent.core.log.chain import Link
    from d5agent.ports import ObjectStore


def undelivered_key(run_id: str) -> str:
    """Return where the report is."""
    return f"{REPORTS}{run_id}/undelivered.json"


async def undelivered_summary(store: ObjectStore, run_id: str, last: Link) -> dict[str, Any]:
    """Return what a certificate says of undelivered writes. `last`: the last commit that it covers.

    Documents that the log first touches after the look are not looked at: restore may write them from then on, and
    reads none before. `operations_since` says how many operations there are of which nobody knows that, if it is known.
    """
    key = undelivered_key(run_id)
    body = await store.get(key)
    if body is None:
        return {"state": "not looked for", "documents": 0, "sequence": None, "operations_since": None, "report": None}
    try:
        found = json.loads(body)
        state, documents, sequence = str(found["state"]), int(found["undelivered_total"]), int(found["sequence"])
    except (ValueError, KeyError, TypeError):  # it serves people: no restore fails for it
        return {"state": "not known", "documents": 0, "sequence": None, "operations_since": None, "report": key}
    since = await _operations_since(store, sequence, last)
    return {"state": state, "documents": documents, "sequence": sequence, "operations_since": since, "report": key}


async def _operations_since(store: ObjectStore, sequence: int, last: Link) -> int:
    """Return how many operations the log holds behind a commit, d5agent's own markers included.

    From the totals of both commits: in live mode there may be days between them, and the application is read-only.
    """
    if sequence >= last.commit.sequence:
        return 0
    return last.commit.total.operations - (await link_of(store, sequence)).commit.total.operations
