"""The dry run: what the log would do to the target, and what would stand in its way; nothing is written."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from d5agent.core.compare.compare import difference_of
from d5agent.core.compare.named_fields import FieldBits, differing_names, undelivered_part
from d5agent.core.compare.report import VerifyReport, fact_differences
from d5agent.core.plan.compact_hash_set import BYTES_EACH, CompactHashSet
from d5agent.core.plan.estimate import Measured, Writes, estimate
from d5agent.core.plan.plan import MOST_DIVERGENT, Named, Plan
from d5agent.steps.compare.divergence import Divergence, without_later_ones
from d5agent.steps.compare.touched import log_parts
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.parallel import parallel
from d5agent.steps.plan.unique_conflict_forecast import UniqueConflictForecast
from d5agent.steps.replay.rates import known_rate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from d5agent.core.compare.compare import Difference
    from d5agent.core.compare.repair import LastEvent
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import ClusterTime, Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.ports import Clock, DocumentReader
    from d5agent.steps.compare.touched import Batch, LogPart, Portion
    from d5agent.steps.log.reader import LogReader

_AT_ONCE: Final = 4  # batches looked up at the same time
_SHARE_OF_DOCUMENTS: Final = 3 / 8  # of the memory, for which documents are touched
_SHARE_OF_KEYS: Final = 1 / 4  # … and for their values in unique indexes
_KEYS_EACH: Final = 8  # values of a document in its unique indexes
_PORTION: Final = 20_000  # documents held at a time
_PORTION_BYTES_EACH: Final = 8 * 1024  # of memory that there must be for a document of a portion


@dataclass(slots=True, kw_only=True)
class PlanReport(VerifyReport):
    """A comparison's report that tells the plan what happens to documents of collections compared whole."""

    scope: str = "plan"
    plan: Plan

    @override
    def add(self, difference: Difference, event: LastEvent | None = None) -> None:
        """Count a difference."""
        self.different += 1
        self.plan.differs(difference)


@dataclass(slots=True, kw_only=True)
class Planner:
    """Makes one plan. `now` asks for the source's time.

    `memory_bytes` bounds what it remembers: a log that touches more documents than fit is read again for each part.
    `window_bytes` and `max_operations_per_second` are restore's, for how much it would write, and how fast it may.
    """

    reader: LogReader
    source: DocumentReader
    target: DocumentReader
    clock: Clock
    now: Callable[[], Awaitable[ClusterTime]]
    memory_bytes: int
    window_bytes: int
    waiting_bytes: int
    keeps_indexes: bool = True
    max_operations_per_second: float | None = None
    plan: Plan = field(default_factory=Plan)
    _read: Measured = field(default_factory=Measured)
    _compared: Measured = field(default_factory=Measured)

    async def make(self, *, with_divergence: bool) -> Plan:
        """Return the plan. It compares source and target as they are now.

        With divergence: what the log does not touch is compared too.
        """
        last = await self.reader.last()
        foresight = UniqueConflictForecast(
            source=self.source, target=self.target, plan=self.plan, keys=self._keys(last), portion=self._portion
        )
        writes = Writes(window_bytes=self.window_bytes)
        if with_divergence:
            self.plan.divergence, self.plan.undelivered = Named(MOST_DIVERGENT), Named()
        for part in self._parts(last):
            await self._survey(part, writes)
            await self._look(part, foresight)
            await self._diverge(part)
        if last is None:
            await self._diverge(None)
        else:
            await self._compare_whole()
            await foresight.settle(self.reader, last)
            self.plan.sequence = last.commit.sequence
        await self._compare_indexes()
        await self._forget_later_ones(last)
        known = await known_rate(self.reader.store)
        limit = self.max_operations_per_second
        self.plan.estimate = estimate(read=self._read, compared=self._compared, writes=writes, known=known, limit=limit)
        return self.plan

    @property
    def _portion(self) -> int:
        return max(1, min(_PORTION, self.memory_bytes // _PORTION_BYTES_EACH))

    def _room(self, share: float) -> int:
        return int(self.memory_bytes * share) // BYTES_EACH

    def _keys(self, last: Link | None) -> CompactHashSet:
        operations = 0 if last is None else last.commit.total.operations
        return CompactHashSet(min(_KEYS_EACH * operations, self._room(_SHARE_OF_KEYS)))

    def _parts(self, last: Link | None) -> Iterator[LogPart]:
        """Yield the parts, one after the other: each takes all the memory that there is for them."""
        if last is None:
            return
        fields = None if self.plan.divergence is None else FieldBits()
        room = int(self.memory_bytes * _SHARE_OF_DOCUMENTS)
        yield from log_parts(self.reader, last, room_bytes=room, portion=self._portion, fields=fields)

    async def _survey(self, part: LogPart, writes: Writes) -> None:
        """Read the log once, to know what a part touches; the first time, to count it."""
        began = self.clock.monotonic()
        async with aclosing(part.operations()) as operations:
            async for commit, operation in operations:
                if part.part == 0:
                    self.plan.take(commit, operation)
                    writes.take(operation)
        if part.part == 0:
            self._read = Measured(self.plan.operations, self.clock.monotonic() - began)

    async def _look(self, part: LogPart, foresight: UniqueConflictForecast) -> None:
        """Compare the documents of a part, as they are in the source, with the target's."""

        async def look(batch: Batch) -> None:
            await self._look_at(batch, part, foresight)

        async with aclosing(part.portions(lambda namespace: not self.plan.is_whole(namespace))) as portions:
            async for portion in portions:
                await self._timed(portion, look)

    async def _timed(self, portion: Portion, look: Callable[[Batch], Awaitable[None]]) -> None:
        began = self.clock.monotonic()
        await parallel(look, portion.batches(), limit=_AT_ONCE)
        self._compared.done += portion.count
        self._compared.seconds += self.clock.monotonic() - began

    async def _look_at(self, batch: Batch, part: LogPart, foresight: UniqueConflictForecast) -> None:
        namespace, ids = batch.namespace, batch.ids
        ours, theirs = await parallel(lambda side: side.fetch(namespace, ids), (self.source, self.target), limit=2)
        row = self.plan.row(namespace)
        row.documents += len(ids)
        for id_ in ids:
            difference = difference_of(namespace, id_, ours.get(id_), theirs.get(id_))
            if difference is None:
                row.equal += 1
            else:
                self.plan.differs(difference, is_new=id_ in batch.new)
                names = differing_names(ours.get(id_), theirs.get(id_))
                lost = part.unnamed(namespace, id_, names)
                self.plan.note_undelivered(undelivered_part(difference, lost, begins_with_insert=id_ in batch.new))
        await foresight.take(namespace, ours, part.touches)

    async def _compare_whole(self) -> None:
        """Compare whole those collections whose names moved: what the log says of their documents is not all."""
        known = {*await self.source.collections(), *await self.target.collections()}
        for namespace in sorted((n for n in known if self.plan.is_whole(n)), key=str):
            report = await self._verify(PlanReport(plan=self.plan), {namespace})
            row = self.plan.row(namespace)
            row.documents, row.equal = report.compared, report.compared - report.different
        if self.plan.whole:
            self.plan.notes.append(
                "collections that are dropped or renamed are compared whole; their unique indexes are not looked at"
            )
            does = (
                "records them first and builds them again ([restore] keep_indexes)"
                if self.keeps_indexes
                else "only records them ([restore] keep_indexes = false)"
            )
            self.plan.notes.append(
                f"a drop or rename takes the target's indexes, TTL and validators from a name: restore {does}"
            )

    async def _diverge(self, part: LogPart | None) -> None:
        """Compare what this part does not touch; without a log, everything."""
        if self.plan.divergence is None:
            return

        def is_untouched(namespace: Namespace, id_: DocumentId) -> bool:
            return part is None or part.touches(namespace, id_) is False

        everything = {*await self.source.collections(), *await self.target.collections()}
        untouched = {namespace for namespace in everything if not self.plan.is_whole(namespace)}
        await self._verify(Divergence(is_untouched=is_untouched, named=self.plan.divergence), untouched)

    async def _verify(self, report: VerifyReport, namespaces: set[Namespace]) -> VerifyReport:
        verifier = Verifier(
            source=self.source,
            target=self.target,
            repair_into=None,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            rounds=1,
            report=report,
        )
        return await verifier.whole(namespaces)

    async def _forget_later_ones(self, last: Link | None) -> None:
        lists = [named for named in (self.plan.divergence, self.plan.undelivered) if named is not None]
        sure = [await without_later_ones(some, self.reader, last, now=self.now, clock=self.clock) for some in lists]
        if not all(sure):
            self.plan.notes.append(
                "the log ends before the comparison did: what was written between may stand among what diverges;"
                " plan again once replication has caught up"
            )

    async def _compare_indexes(self) -> None:
        """Compare indexes and options of what the log touches; with divergence, of everything."""
        wanted = {*self.plan.rows, *(await self.source.collections() if self.plan.divergence is not None else ())}
        for namespace in sorted((n for n in wanted if n.collection is not None), key=str):
            source, target = await self.source.facts(namespace), await self.target.facts(namespace)
            if source.exists:  # where the target has none, restore makes the collection, and no index
                self.plan.indexes += fact_differences(namespace, "index", source.indexes, target.indexes)
                self.plan.indexes += fact_differences(namespace, "option", source.options, target.options)
