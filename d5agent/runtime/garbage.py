"""When Python looks for objects that only refer to each other: rarely, and not when the process ends."""

from __future__ import annotations

import gc
from typing import Final

_RARELY: Final = (50_000, 20, 50)


def collect_garbage_rarely() -> None:
    """Let cycles be looked for after 50,000 new objects, not 700.

    A window holds tens of thousands of documents, none of them garbage, which each look would pass through: a tenth of
    what the agent costs in a restore. Imports make as many objects, and keep them all.
    """
    gc.set_threshold(*_RARELY)


def skip_last_collection() -> None:
    """Let the interpreter end without a last look at all objects: a tenth of what a short command costs."""
    gc.freeze()
