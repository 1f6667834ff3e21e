"""Compares source and target as raw bytes, names each difference, and repairs from the source when asked to."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.changed import Changed
from d5agent.core.compare.merge import Merger
from d5agent.core.compare.report import VerifyReport, fact_differences
from d5agent.core.compare.touched import Touched
from d5agent.steps.compare.difference_resolver import DifferenceResolver
from d5agent.steps.compare.explainer import explain_repairs
from d5agent.steps.compare.page_feed import PageFeed
from d5agent.steps.compare.repairer import Repairer
from d5agent.steps.parallel import beside, parallel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from d5agent.core.compare.repair import LastEvent
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.log.segment import SegmentRef
    from d5agent.core.replay.replay import Unresolved
    from d5agent.ports import Clock, DocumentReader, Target
    from d5agent.steps.compare.difference_resolver import Keep
    from d5agent.steps.log.reader import LogReader

    _Segment = tuple[int, SegmentRef, bytes]
    _Batch = tuple[Namespace, Sequence[DocumentId], int, Mapping[DocumentId, LastEvent] | None]

_BATCH: Final = 500  # documents looked up at a time
_MANY_IDS: Final = 20_000  # operations whose documents are remembered before these are compared
_MANY_NAMES: Final = 10_000  # collections that were dropped or renamed; of more, those that are gone are forgotten
_SEGMENTS_AHEAD: Final = 1  # a segment may be 64 MiB
ROUNDS: Final = 4  # comparisons of a document that differs: it may be changing at this moment
_BATCH_BYTES: Final = 2 * 1024 * 1024
_AT_ONCE: Final = 4  # such portions compared at the same time
_SCANS: Final = 2  # collections read at the same time; a page of each side is up to 16 MiB
_FACTS: Final = 8  # collections whose indexes are asked for at the same time


@dataclass(slots=True, kw_only=True)
class Verifier:
    """Compares two databases. With a target, what differs is written there from the source and compared again.

    `rounds`: how often a document that differs is compared, a moment apart, before it is told as different. While both
    sides are written to, one is enough: take the differences out of the report and compare them again later.
    """

    source: DocumentReader
    target: DocumentReader
    repair_into: Target | None
    clock: Clock
    waiting_bytes: int
    rounds: int = ROUNDS
    on_progress: Callable[[VerifyReport], None] = lambda _: None
    report: VerifyReport = field(default_factory=lambda: VerifyReport(scope="full"))
    changed: Changed = field(default_factory=Changed)
    """What was written to the target before this comparison; what is compared now leaves it."""
    keep: Keep | None = None
    repairer: Repairer | None = field(init=False, default=None)
    _resolver: DifferenceResolver = field(init=False)
    _counts: bool = True

    def __post_init__(self) -> None:
        """Make what has the last word on documents; it reports into the same report."""
        if self.repair_into is not None:
            self.repairer = Repairer(target=self.repair_into, reader=self.target)
        self._resolver = DifferenceResolver(
            source=self.source,
            target=self.target,
            repairer=self.repairer,
            clock=self.clock,
            rounds=self.rounds,
            report=self.report,
            keep=self.keep,
        )

    async def touched(
        self, reader: LogReader, links: AsyncIterator[Link], whole: Iterable[Namespace], *, with_facts: bool = True
    ) -> VerifyReport:
        """Compare every document that these commits touched, and whole those namespaces whose names moved.

        It may be called again with later commits: the report grows. `with_facts`: compare the touched collections'
        indexes and options too.
        """
        began = self.clock.monotonic()
        entire = set(whole)
        # The log is read on while segments are looked through, and these while documents are compared.
        segments: asyncio.Queue[_Segment | None] = asyncio.Queue(_SEGMENTS_AHEAD)
        portions: asyncio.Queue[Touched] = asyncio.Queue(1)
        async with beside(_read_segments(reader, links, segments), self._compare_portions(portions)):
            portion = Touched()
            while (segment := await segments.get()) is not None:
                for _ in portion.add(*segment):
                    await self.clock.sleep(0)  # replies must get in
                if portion.operations >= _MANY_IDS:
                    entire.update(portion.moved)
                    await portions.put(portion)
                    entire = await self._there(entire) if len(entire) > _MANY_NAMES else entire
                    portion = Touched()
            entire.update(portion.moved)
            await portions.put(portion)
            await portions.join()
        await self._compare_whole(await self._there(entire))
        if with_facts:
            await self._compare_facts(n for n in await self.source.collections() if str(n) in self.report.namespaces)
        self.report.seconds += self.clock.monotonic() - began
        await self.settle_repairs()
        await explain_repairs(reader, self.report)
        return self.report

    async def settle_repairs(self) -> VerifyReport:
        """Compare again what differs, while that settles any: what one repair gave up, another may have needed.

        What the target refused to the end stays in the report, to become dead letters.
        """
        if self.repairer is None:
            return self.report
        before = 0
        while self.report.different:
            if self.report.different == before and not await self.repairer.park():
                break
            before = self.report.different
            await self.compare_again(self.report.take_differences())
        await self.repairer.put_back()
        self.report.refused = self.repairer.refused(self.report.unequal)
        return self.report

    async def whole(self, namespaces: Iterable[Namespace]) -> VerifyReport:
        """Compare collections whole, and nothing beside their documents."""
        await self._compare_whole(namespaces)
        return self.report

    async def compare_again(self, differences: Unresolved) -> VerifyReport:
        """Compare documents that were compared before (`report.take_differences()`); they are counted once only."""
        began, self._counts = self.clock.monotonic(), False
        await self._compare_batches(
            [
                (namespace, batch, size, None)
                for namespace, ids in differences.documents.items()
                for batch, size in _batches((id_, 0) for id_ in sorted(ids))
            ],
            limit=1,  # nobody knows how large they are
        )
        await self._compare_whole(await self._there(set(differences.whole)))
        self._counts = True
        self.report.seconds += self.clock.monotonic() - began
        return self.report

    async def full(self) -> VerifyReport:
        """Compare all collections of both sides, document by document."""
        began = self.clock.monotonic()
        everything = {*await self.source.collections(), *await self.target.collections()}
        await self._compare_whole(everything)
        await self._compare_counts(everything)
        await self._compare_facts(everything)
        self.report.seconds = self.clock.monotonic() - began
        return self.report

    async def _there(self, namespaces: set[Namespace]) -> set[Namespace]:
        """Return the collections meant that are on either side; a database without a collection means all of it.

        What is on neither is equal, and forgotten: a log may tell of any number of temporary collections.
        """
        if not namespaces:
            return set()
        there = {*await self.source.collections(), *await self.target.collections()}
        self.report.keep_only(there)
        return {n for n in there if n in namespaces or n._replace(collection=None) in namespaces}

    async def _compare_portions(self, portions: asyncio.Queue[Touched]) -> None:
        while True:
            portion = await portions.get()
            self.report.known.moved.update(portion.moved)
            for namespace in portion.moved:
                self.changed.forget_name(namespace)
            for namespace, events in portion.events.items():
                self.report.known.tell_later(namespace, events)
            await self._compare_ids(portion.events)
            portions.task_done()

    async def _compare_ids(self, events: Mapping[Namespace, Mapping[DocumentId, LastEvent]]) -> None:
        """Compare documents by `_id`; the sizes of their events say how many fit into memory at a time."""
        await self._compare_batches(
            [
                (namespace, batch, size, of)
                for namespace, of in events.items()
                for batch, size in _batches((id_, of[id_].size) for id_ in sorted(of))
            ]
        )

    async def _compare_batches(self, batches: Sequence[_Batch], limit: int = _AT_ONCE) -> None:
        async def compare(batch: _Batch) -> None:
            namespace, ids, _, events = batch
            self.changed.forget(namespace, ids)
            self._count(namespace, len(ids))
            await self._resolver.settle(namespace, ids, events)
            self.on_progress(self.report)

        await parallel(compare, [batch for batch in batches if batch[2] <= _BATCH_BYTES], limit=limit)
        await parallel(compare, [batch for batch in batches if batch[2] > _BATCH_BYTES], limit=1)

    async def _compare_whole(self, namespaces: Iterable[Namespace]) -> None:
        await parallel(self._compare_collection, sorted(namespaces, key=str), limit=_SCANS)

    async def _compare_collection(self, namespace: Namespace) -> None:
        self.report.tally(namespace)
        self.changed.documents.pop(namespace, None)
        merger = Merger()
        async with aclosing(self.source.scan(namespace)) as source, aclosing(self.target.scan(namespace)) as target:
            feeds = PageFeed(pages=source), PageFeed(pages=target)
            async with beside(*(feed.fill() for feed in feeds)):
                while await _merge_pages(merger, feeds):
                    if merger.matcher.held_bytes > self.waiting_bytes:
                        await self._look_up(namespace, merger)
                    else:
                        self._count(namespace, merger.matcher.take_compared())
                        self.on_progress(self.report)
        await self._look_up(namespace, merger)

    async def _look_up(self, namespace: Namespace, merger: Merger) -> None:
        suspects = merger.matcher.take_suspects()
        self._count(namespace, merger.matcher.take_compared())
        batches = _batches(sorted(suspects.items()))
        await self._compare_batches([(namespace, batch, size, None) for batch, size in batches])
        self.on_progress(self.report)

    def _count(self, namespace: Namespace, compared: int) -> None:
        if self._counts:
            self.report.count(namespace, compared)

    async def _compare_counts(self, namespaces: Iterable[Namespace]) -> None:
        async def compare(namespace: Namespace) -> None:
            source, target = await self._count_both(namespace, exactly=False)
            if not source == target == self.report.tally(namespace).compared:  # what is written down may be wrong
                source, target = await self._count_both(namespace, exactly=True)
            if source != target:
                self.report.counts.append(f"{namespace}: {source} documents in the source, {target} in the target")

        await parallel(compare, sorted(namespaces, key=str), limit=_FACTS)
        self.report.counts.sort()

    async def _count_both(self, namespace: Namespace, *, exactly: bool) -> list[int]:
        return await parallel(lambda side: side.count(namespace, exactly=exactly), (self.source, self.target), limit=2)

    async def _compare_facts(self, namespaces: Iterable[Namespace]) -> None:
        """Compare what collections are beside their documents."""

        async def compare(namespace: Namespace) -> None:
            source, target = await parallel(lambda side: side.facts(namespace), (self.source, self.target), limit=2)
            if source.exists != target.exists:
                where = "target" if source.exists else "source"
                found = [f"{namespace}: the collection is missing in the {where}"]
            else:
                found = fact_differences(namespace, "index", source.indexes, target.indexes)
                found += fact_differences(namespace, "option", source.options, target.options)
            if "capped" in target.options:
                self.report.capped.add(namespace)
            self.report.facts[str(namespace)] = found

        await parallel(compare, namespaces, limit=_FACTS)


async def _read_segments(
    reader: LogReader, links: AsyncIterator[Link], segments: asyncio.Queue[_Segment | None]
) -> None:
    async with aclosing(reader.segments_of(links)) as found:
        async for link, segment in found:
            if segment is not None:
                await segments.put((link.commit.sequence, *segment))
    await segments.put(None)


async def _merge_pages(merger: Merger, feeds: tuple[PageFeed, PageFeed]) -> bool:
    """Take a page of each side that has none left; False: both have ended."""
    pages = [await feed.next_page() if merger.needs(side) else () for side, feed in enumerate(feeds)]
    has_ended = [merger.needs(side) and not page for side, page in enumerate(pages)]
    merger.add(*pages)
    for side in (0, 1):
        if has_ended[1 - side]:
            merger.drain(side)
    return not all(has_ended)


def _batches(sizes: Iterable[tuple[DocumentId, int]]) -> Iterator[tuple[list[DocumentId], int]]:
    """Yield portions of documents with their size in bytes; a large document is a portion of its own."""
    batch: list[DocumentId] = []
    total = 0
    for id_, size in sizes:
        if batch and (len(batch) == _BATCH or total + size > _BATCH_BYTES):
            yield batch, total
            batch, total = [], 0
        batch.append(id_)
        total += size
    if batch:
        yield batch, total
