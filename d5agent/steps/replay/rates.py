"""How fast restores wrote: each leaves a note among the reports, and the next plan's estimate rests on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from d5agent.core.log.naming import REPORTS
from d5agent.core.plan.estimate import MEASURED_DOCUMENTS, KnownRate

if TYPE_CHECKING:
    from d5agent.ports import ObjectStore

_VERSION: Final = 1
_NAME: Final = "/replay-"


async def keep_rate(store: ObjectStore, *, run_id: str, at: str, documents: int, seconds: float) -> None:
    """Store how many documents a replay wrote in so many seconds; `at`: when it ended, in ISO 8601.

    A few documents tell nothing: they leave no note.
    """
    if documents < MEASURED_DOCUMENTS or seconds <= 0:
        return
    note = {"version": _VERSION, "run_id": run_id, "at": at, "documents": documents, "seconds": round(seconds, 3)}
    key = f"{REPORTS}{run_id}{_NAME}{at.replace(':', '')}.json"
    await store.put(key, json.dumps(note, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


async def known_rate(store: ObjectStore) -> KnownRate | None:
    """Return the rate of the newest restore of this bucket; None: there was none that tells."""
    keys = [found.key async for page in store.list_objects(REPORTS) for found in page if _NAME in found.key]
    newest = max(keys, key=lambda key: key.rpartition(_NAME)[2], default=None)
    body = await store.get(newest) if newest else None
    if body is None:
        return None
    note = json.loads(body)
    if note.get("version") != _VERSION:
        return None  # of another version: the assumed figure is told instead
    return KnownRate(documents_per_second=note["documents"] / note["seconds"], at=note["at"])
