"""When Python looks for objects that only refer to each other: rarely, and neither during imports nor at the end."""

from __future__ import annotations

import gc
from typing import Final

_RARELY: Final = (50_000, 20, 50)


def skip_collection_of_imports() -> None:
    """Let no cycles be looked for until `collect_garbage_rarely`: what is imported stays until the process ends."""
    gc.disable()


def collect_garbage_rarely() -> None:
    """Let cycles be looked for after 50,000 new objects, not 700, and never among the objects that are there already.

    A window holds tens of thousands of documents, none of them garbage, which each look would pass through: a tenth of
    what the agent costs in a restore.
    """
    gc.freeze()
    gc.set_threshold(*_RARELY)
    gc.enable()


def skip_last_collection() -> None:
    """Let the interpreter end without a last look at all objects: a tenth of what a short command costs."""
    gc.freeze()
