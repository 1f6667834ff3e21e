"""Documents that differ: compared again, since they may be changing at this moment, and repaired if asked to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.compare import differences_of
from d5agent.core.compare.repair import LastEvent, Repair
from d5agent.errors import TooManyBytesError
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from d5agent.core.compare.compare import Difference
    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.ports import Clock, DocumentReader
    from d5agent.steps.compare.repairer import Repairer

_PAUSE_SECONDS: Final = 0.25
_MOST_BYTES: Final = 8 * 1024 * 1024  # of documents of one side that are looked up at a time, but for a single one

if TYPE_CHECKING:
    Keep = Callable[[Sequence[tuple[Repair, bytes]]], Awaitable[None]]
    """Keeps documents of the target as they are before a repair overwrites or deletes them."""


@dataclass(slots=True, kw_only=True)
class DifferenceResolver:
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
    _splitting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def settle(
        self, namespace: Namespace, ids: Sequence[DocumentId], events: Mapping[DocumentId, LastEvent] | None = None
    ) -> None:
        """Compare documents until they are equal or have had their rounds; what differs then is reported.

        `events`: their last events, as far as the log was read. Documents that are larger than anybody knew are
        compared in smaller portions, and no others of that kind at the same time.
        """
        if not await self._settle(namespace, ids, events):
            async with self._splitting:
                await self._settle_halves(namespace, ids, events)

    async def _settle_halves(
        self, namespace: Namespace, ids: Sequence[DocumentId], events: Mapping[DocumentId, LastEvent] | None
    ) -> None:
        middle = len(ids) // 2
        for half in (ids[:middle], ids[middle:]):
            if not await self._settle(namespace, half, events):
                await self._settle_halves(namespace, half, events)

    async def _settle(
        self, namespace: Namespace, ids: Sequence[DocumentId], events: Mapping[DocumentId, LastEvent] | None
    ) -> bool:
        """Return whether the documents could be held; if not, nothing was done."""
        known = self.report.known.of(namespace) if events is None else events
        repaired: dict[DocumentId, Repair] = {}
        differences: list[Difference] = []
        for round_ in range(self.rounds):
            if round_:
                await self.clock.sleep(_PAUSE_SECONDS)
            # What fitted once does so again, and beginning again would forget what has been repaired since.
            both = await self._fetch_both(namespace, ids, most_bytes=None if round_ else _MOST_BYTES)
            if both is None:
                return False
            source, target = both
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
        return True

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
            written_hash=None if source is None else hash(source),
            event=event,
            moved=self.report.known.move_of(difference.namespace),
            applied=self.report.sequence,
        )

    async def _fetch_both(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None
    ) -> tuple[Mapping[DocumentId, bytes], Mapping[DocumentId, bytes]] | None:
        """Return the documents of both sides; None: one side's are too many bytes."""

        async def fetch(side: DocumentReader) -> Mapping[DocumentId, bytes] | None:
            try:
                return await side.fetch(namespace, ids, most_bytes=most_bytes)
            except TooManyBytesError:  # raised on, it would keep the other side's documents
                return None

        source, target = await parallel(fetch, (self.source, self.target), limit=2)
        return None if source is None or target is None else (source, target)
