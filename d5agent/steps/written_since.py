"""What was written to the target after a position of its change stream, by whomever, up to a marker."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from d5agent.core.changed import Changed
from d5agent.errors import OperatorError
from d5agent.steps.marks import mark_document_id, new_mark_id

if TYPE_CHECKING:
    from d5agent.ports import Clock, TargetChanges

_PATIENCE_SECONDS: Final = 60
_PAUSE_SECONDS: Final = 0.1


async def written_since(changes: TargetChanges, position: bytes, *, clock: Clock) -> Changed:
    """Return what was written. OperatorError: the target does not remember the position, or may not be asked."""
    mark_id = new_mark_id("outside")
    await changes.mark(mark_id)
    marker, found, quiet_since = mark_document_id(mark_id), Changed(), clock.monotonic()
    async with aclosing(changes.after(position)) as batches:
        async for batch in batches:
            for operation in batch:
                if not operation.is_ours:
                    found.add(operation)
                elif operation.document_id == marker:
                    await changes.remove_marks()
                    return found
            if batch:
                quiet_since = clock.monotonic()
            elif clock.monotonic() - quiet_since > _PATIENCE_SECONDS:
                break
            else:
                await clock.sleep(_PAUSE_SECONDS)
    raise OperatorError("the marker does not come out of the target's change stream", seconds=_PATIENCE_SECONDS)
