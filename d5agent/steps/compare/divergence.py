"""What the outage did not touch, and yet differs: documents that DMS had not delivered when MongoDB went down."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from d5agent.core.compare.report import VerifyReport
from d5agent.core.plan.plan import MOST_DIVERGENT, Named

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from d5agent.core.compare.compare import Difference
    from d5agent.core.compare.repair import LastEvent
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import ClusterTime, Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.ports import Clock
    from d5agent.steps.log.reader import LogReader

_LOOKS: Final = 30  # at the log, until it has what was written during the comparison
_PAUSE_SECONDS: Final = 0.1
_IDLE_SECONDS: Final = 70  # a log that is further behind is not written at this moment: on an idle stream it is 60


@dataclass(slots=True, kw_only=True)
class Divergence(VerifyReport):
    """A comparison's report that takes only what the log does not touch."""

    scope: str = "divergence"
    is_untouched: Callable[[Namespace, DocumentId], bool]
    named: Named[Difference] = field(default_factory=lambda: Named(MOST_DIVERGENT))

    @override
    def add(self, difference: Difference, event: LastEvent | None = None) -> None:
        """Count a difference, and name it, if no operation explains it."""
        if self.is_untouched(difference.namespace, difference.id):
            self.named.add(difference)


async def without_later_ones(
    named: Named[Difference],
    reader: LogReader,
    last: Link | None,
    *,
    now: Callable[[], Awaitable[ClusterTime]],
    clock: Clock,
) -> bool:
    """Take out the documents that were touched after `last`, while they were compared.

    False: the log ends long before the comparison does, so that some such may be left.
    """
    if not named.total:
        return True
    end = await now()
    known = {(found.namespace, found.id) for found in named.first}
    touched: set[tuple[Namespace, DocumentId | None]] = set()
    for look in range(_LOOKS):
        if look:
            await clock.sleep(_PAUSE_SECONDS)
        async with aclosing(reader.operations_of(reader.links(after=last))) as operations:
            async for link, operation in operations:
                if operation is None:
                    last = link
                else:
                    touched |= known.intersection([(operation.namespace, operation.document_id)])
        # Later, not as late as: the time of a source where nothing happens may stand still at a write not captured yet.
        if last is not None and last.commit.position.cluster_time > end:
            break
    kept = [found for found in named.first if (found.namespace, found.id) not in touched]
    named.total -= len(named.first) - len(kept)
    named.first = kept
    return last is None or end.seconds - last.commit.position.cluster_time.seconds < _IDLE_SECONDS
