"""Reports in the store: what a comparison found, kept for whoever asks later, as JSON and as a page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from d5agent.core.certificate import REPORTS
from d5agent.core.page import page_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.report import VerifyReport
    from d5agent.ports import ObjectStore


async def store_report(store: ObjectStore, report: VerifyReport, *, at: str) -> str:
    """Store a report and return the key of its JSON; `at` is when it was made, in ISO 8601."""
    name = f"{REPORTS}{report.run_id or 'no-run'}/verify-{report.scope}-{at.replace(':', '')}"
    values = report.to_json()
    page = page_of({"kind": "report", "run_id": report.run_id, "issued_at": at, "result": values})
    await store.put(f"{name}.html", page.encode(errors="backslashreplace"))
    text = json.dumps(values, indent=1, ensure_ascii=False)
    await store.put(f"{name}.json", text.encode(errors="backslashreplace") + b"\n")
    return f"{name}.json"


async def store_plan(store: ObjectStore, plan: Mapping[str, Any]) -> str:
    """Store a plan, as JSON values with `run_id` and `at`, and return its key."""
    key = f"{REPORTS}{plan['run_id'] or 'no-run'}/plan-{plan['at'].replace(':', '')}.json"
    await store.put(key, json.dumps(plan, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    return key
