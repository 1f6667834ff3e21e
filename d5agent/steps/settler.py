"""Documents that differ: compared again, since they may be changing at this moment, and repaired if asked to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.compare import differences_of
from d5agent.core.repair import LastEvent, Repair
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from d5agent.core.compare import Difference
    from d5agent.core.operation import Namespace
    from d5agent.core.raw import DocumentId
    from d5agent.core.report import VerifyReport
    from d5agent.ports import Clock, DocumentReader
    from d5agent.steps.repairer import Repairer

_PAUSE_SECONDS: Final = 0.25

if TYPE_CHECKING:
    Keep = Callable[[Sequence[tuple[Repair, bytes]]], Awaitable[None]]
    """Keeps documents of the target as they are before a repair overwrites or deletes them."""


@dataclass(slots=True, kw_only=True)
class Settler:
    """Has the last word on documents. With a repairer, what differs twice is written to the target from the source.

    `keep`: stores the target's versions before that.
    """

    source: DocumentReader
    target: DocumentReader
    repairer: Repairer | None
    clock: Clock
    rounds: int
    report: VerifyReport
    keep: Keep | None = None

    async def settle(
        self, namespace: Namespace, ids: Sequence[DocumentId], events: Mapping[DocumentId, LastEvent] | None = None
    ) -> None:
        """Compare documents until they are equal or have had their rounds; what differs then is reported.

        `events`: their last events, as far as the log was read.
        """
        known = self.report.known.of(namespace) if events is None else events
        repaired: dict[DocumentId, Repair] = {}
        differences: list[Difference] = []
        for round_ in range(self.rounds):
            if round_:
                await self.clock.sleep(_PAUSE_SECONDS)
            source, target = await self._fetch_both(namespace, ids)
            differences = [] if source == target else differences_of(namespace, source, target)
            if not differences:
                break
            ids = [difference.id for difference in differences]
            if self.repairer is not None and round_:
                # The first difference may be a document in motion; the second is not left standing.
                repairs = {d.id: self._repair_of(d, source.get(d.id), known.get(d.id)) for d in differences}
                repaired |= repairs
                if self.keep is not None:
                    await self.keep([(repair, target[id_]) for id_, repair in repairs.items() if id_ in target])
                await self.repairer.write(namespace, ids, source)
        self._report(differences, repaired, known)

    def _report(
        self,
        differences: Sequence[Difference],
        repaired: dict[DocumentId, Repair],
        known: Mapping[DocumentId, LastEvent],
    ) -> None:
        for difference in differences:
            self.report.add(difference, known.get(difference.id))
            repaired.pop(difference.id, None)
        for repair in repaired.values():
            self.report.add_repair(repair)

    def _repair_of(self, difference: Difference, source: bytes | None, event: LastEvent | None) -> Repair:
        return Repair(
            difference=difference,
            written=None if source is None else hash(source),
            event=event,
            moved=self.report.known.move_of(difference.namespace),
            applied=self.report.sequence,
        )

    async def _fetch_both(self, namespace: Namespace, ids: Sequence[DocumentId]) -> list[Mapping[DocumentId, bytes]]:
        return await parallel(lambda side: side.fetch(namespace, ids), (self.source, self.target), limit=2)
