"""The plan in the store, as JSON: it has no page, and `d5agent plan` loads none of what makes pages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from d5agent.core.compare.verdicts import name_time
from d5agent.core.log.naming import reports_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.ports import ObjectStore


async def store_plan(store: ObjectStore, plan: Mapping[str, Any]) -> str:
    """Store a plan, as JSON values with `run_id` and `at`, and return its key."""
    key = f"{reports_folder(plan['run_id'])}plan-{name_time(plan['at'])}.json"
    await store.put(key, json.dumps(plan, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    return key
