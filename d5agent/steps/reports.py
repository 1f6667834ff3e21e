"""Reports in the store: what a comparison found, kept for whoever asks later."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from d5agent.core.report import VerifyReport
    from d5agent.ports import ObjectStore

REPORTS: Final = "reports/"


async def store_report(store: ObjectStore, report: VerifyReport, *, at: str) -> str:
    """Store a report as JSON and return its key; `at` is when it was made, in ISO 8601."""
    key = f"{REPORTS}{report.run_id or 'no-run'}/verify-{report.scope}-{at.replace(':', '')}.json"
    await store.put(key, json.dumps(report.to_json(), indent=1, ensure_ascii=False).encode() + b"\n")
    return key
