"""Watches the target while it is compared: whatever is written there meanwhile is known at the next look (ADR 37)."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d5agent.core.compare.changed import Changed
from d5agent.errors import LogHeldError, OperatorError
from d5agent.steps.compare.written_since import up_to_marker

if TYPE_CHECKING:
    from collections.abc import Container

    from d5agent.core.log.identity import Identity
    from d5agent.core.log.operation import Namespace
    from d5agent.ports import Clock, TargetChanges
    from d5agent.service import Journal


@dataclass(slots=True, kw_only=True)
class TargetWatch:
    """Reads the target's own change stream, up to a marker at each look.

    `position`: where the next look begins; None: nothing is watched. `since`: when watching began. `why_not`: why it is
    not watched, or was not for a time.
    """

    changes: TargetChanges
    clock: Clock
    journal: Journal
    position: bytes | None = None
    since: str = ""
    why_not: str = ""

    async def begin(self) -> None:
        """Watch from now on. Where the target does not allow it, nothing is watched."""
        try:
            self.position = await self.changes.position()
            self.since = self.clock.now().isoformat(timespec="milliseconds")
            self.why_not = ""
        except LogHeldError:
            raise
        except OperatorError as error:
            self._lose(error)

    async def look(self, without: Container[tuple[Namespace, Identity]] = frozenset()) -> Changed | None:
        """Return what was written since the last look, without some documents; None: nobody can say."""
        if self.position is None:
            return None
        try:
            return await self._read(self.position, Changed(without=without))
        except LogHeldError:
            raise
        except OperatorError as error:
            self._lose(error)
            return None

    async def end(self) -> None:
        """Remove the marker."""
        await self.changes.remove_marks()

    async def _read(self, position: bytes, changed: Changed) -> Changed:
        stream = up_to_marker(self.changes, position, clock=self.clock, purpose="watch")
        async with aclosing(stream) as batches:
            async for batch in batches:
                for operation in batch:
                    position = operation.token
                    if not operation.is_ours:
                        changed.add(operation)
        self.position = position
        return changed

    def _lose(self, error: OperatorError) -> None:
        if self.why_not != str(error):
            self.journal.warning(
                "target_not_watched",
                reason=str(error),
                hint="all that the log touches is compared again after the fence: the read-only window is as long",
            )
        self.position, self.why_not = None, str(error)
