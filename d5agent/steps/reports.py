"""Reports in the store: what a comparison found, kept for whoever asks later, as JSON and as a page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from d5agent.core.compare.verdicts import Verdict, name_time
from d5agent.core.log.naming import REPORTS, reports_folder
from d5agent.core.reports.html import page_of
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from d5agent.core.compare.report import VerifyReport
    from d5agent.ports import ObjectStore


async def store_report(store: ObjectStore, report: VerifyReport, *, at: str) -> str:
    """Store a report and return the key of its JSON; `at` is when it was made, in ISO 8601."""
    name = f"{reports_folder(report.run_id)}verify-{report.scope}-{name_time(at)}"
    values = report.to_json()
    page = page_of({"kind": "report", "run_id": report.run_id, "issued_at": at, "result": values})
    await store.put(f"{name}.html", page.encode(errors="backslashreplace"))
    text = json.dumps(values, indent=1, ensure_ascii=False)
    await store.put(f"{name}.json", text.encode(errors="backslashreplace") + b"\n")
    return f"{name}.json"


async def verdicts_of(store: ObjectStore, run_id: str, *, since: str) -> list[Verdict]:
    """Return the results of a run's comparisons since a time. CorruptDataError: a report cannot be read."""
    folder = f"{REPORTS}{run_id}/verify-"
    keys = [found.key async for page in store.list_objects(folder) for found in page if found.key.endswith(".json")]
    found = []
    for key in keys:
        scope, _, at = key.removeprefix(folder).removesuffix(".json").partition("-")
        if at >= name_time(since):
            found.append(_verdict(await store.get(key), key=key, scope=scope, at=at))
    return found


def _verdict(body: bytes | None, *, key: str, scope: str, at: str) -> Verdict:
    try:
        report = json.loads(body or b"")
        return Verdict(scope=scope, at=at, key=key, is_equal=report["equal"] is True, different=report["different"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(
            "the report of a comparison is damaged",
            hint="nothing was deleted; bring its version before back, or delete it; then type: d5agent start clean",
            key=key,
        ) from error
