"""What was written to the target after a position of its change stream, by whomever, up to a marker."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.changed import Changed
from d5agent.errors import OperatorError
from d5agent.steps.log.marks import mark_document_id, new_mark_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.core.log.operation import Operation
    from d5agent.ports import Clock, TargetChanges

_PATIENCE_SECONDS: Final = 60
_PAUSE_SECONDS: Final = 0.1


async def written_since(changes: TargetChanges, position: bytes, *, clock: Clock) -> Changed:
    """Return what was written. OperatorError: the target does not remember the position, or may not be asked."""
    found = Changed()
    async with aclosing(operations_since(changes, position, clock=clock, purpose="outside")) as batches:
        async for operations in batches:
            for operation in operations:
                found.add(operation)
    return found


async def operations_since(
    changes: TargetChanges, position: bytes, *, clock: Clock, purpose: str
) -> AsyncGenerator[Sequence[Operation]]:
    """Yield what was written up to a marker that is written now, without what is the agent's own.

    OperatorError: as above.
    """
    async with aclosing(up_to_marker(changes, position, clock=clock, purpose=purpose)) as batches:
        async for batch in batches:
            yield [operation for operation in batch if not operation.is_ours]
    await changes.remove_marks()


async def up_to_marker(
    changes: TargetChanges, position: bytes, *, clock: Clock, purpose: str
) -> AsyncGenerator[Sequence[Operation]]:
    """Yield all that was written up to a marker that is written now; the last operation is the marker.

    OperatorError: as above, or nothing comes for a minute.
    """
    mark_id = new_mark_id(purpose)
    await changes.mark(mark_id)
    marker, quiet_since = mark_document_id(mark_id), clock.monotonic()
    async with aclosing(changes.after(position)) as batches:
        async for batch in batches:
            for at, operation in enumerate(batch, 1):
                if operation.is_ours and operation.document_id == marker:
                    yield batch[:at]
                    return
            yield batch
            if batch:
                quiet_since = clock.monotonic()
            elif clock.monotonic() - quiet_since > _PATIENCE_SECONDS:
                break
            else:
                await clock.sleep(_PAUSE_SECONDS)
    raise OperatorError(
        "the marker does not come out of the target's change stream",
        hint="see whether MongoDB has a majority; then start again what said so",
        seconds=_PATIENCE_SECONDS,
    )
