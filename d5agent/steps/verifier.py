"""Compares source and target as raw bytes, names each difference, and repairs from the source when asked to."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.compare import Difference, Matcher, differences_of
from d5agent.core.raw import document_id
from d5agent.core.replay import Write, WriteBatch
from d5agent.core.report import VerifyReport, index_differences
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from d5agent.core.log import Link
    from d5agent.core.operation import Namespace
    from d5agent.core.raw import DocumentId
    from d5agent.ports import Clock, DocumentReader, Target
    from d5agent.steps.log_reader import LogReader

_BATCH: Final = 500  # documents looked up at a time
_MANY_IDS: Final = 50_000  # operations whose documents are remembered before these are compared
_ROUNDS: Final = 4  # comparisons of a document that differs: it may be changing at this moment
_PAUSE_SECONDS: Final = 0.25
_BATCH_BYTES: Final = 2 * 1024 * 1024
_AT_ONCE: Final = 4  # such portions compared at the same time
_SCANS: Final = 2  # collections read at the same time; a page of each side is up to 16 MiB


@dataclass(slots=True, kw_only=True)
class Verifier:
    """Compares two databases. With a target, what differs is written there from the source and compared again."""

    source: DocumentReader
    target: DocumentReader
    repair_into: Target | None
    clock: Clock
    waiting_bytes: int
    on_progress: Callable[[VerifyReport], None] = lambda _: None
    report: VerifyReport = field(default_factory=lambda: VerifyReport(scope="full"))

    async def touched(self, reader: LogReader, links: AsyncIterator[Link], whole: Iterable[Namespace]) -> VerifyReport:
        """Compare every document that these commits touched, and whole those namespaces whose names moved."""
        began = self.clock.monotonic()
        entire = set(whole)
        ids: dict[Namespace, dict[DocumentId, int]] = {}
        pending = 0
        async with aclosing(reader.operations_of(links)) as operations:
            async for _, operation in operations:
                if operation is None or operation.is_ours:
                    continue
                if operation.document_id is None:
                    entire.update(n for n in (operation.namespace, operation.rename_to) if n is not None)
                    continue
                sizes = ids.setdefault(operation.namespace, {})
                sizes[operation.document_id] = max(len(operation.raw), sizes.get(operation.document_id, 0))
                pending += 1
                if pending >= _MANY_IDS:
                    await self._compare_ids(ids)
                    ids, pending = {}, 0
        await self._compare_ids(ids)
        await self._compare_whole(await self._expanded(entire))
        await self._compare_indexes()
        self.report.seconds = self.clock.monotonic() - began
        return self.report

    async def full(self) -> VerifyReport:
        """Compare all collections of both sides, document by document."""
        began = self.clock.monotonic()
        everything = {*await self.source.collections(), *await self.target.collections()}
        await self._compare_whole(everything)
        await self._compare_counts(everything)
        await self._compare_indexes()
        self.report.seconds = self.clock.monotonic() - began
        return self.report

    async def _expanded(self, namespaces: set[Namespace]) -> set[Namespace]:
        """Return the collections meant: a database without a collection means all of it."""
        databases = {namespace.database for namespace in namespaces if namespace.collection is None}
        known = {*await self.source.collections(), *await self.target.collections()} if databases else set()
        return {n for n in namespaces if n.collection is not None} | {n for n in known if n.database in databases}

    async def _compare_ids(self, ids: Mapping[Namespace, Mapping[DocumentId, int]]) -> None:
        """Compare documents by `_id`; the sizes of their events say how many fit into memory at a time."""
        batches = [(namespace, batch) for namespace, sizes in ids.items() for batch in _batches(sizes)]
        small = [(namespace, batch) for namespace, (batch, size) in batches if size <= _BATCH_BYTES]
        large = [(namespace, batch) for namespace, (batch, size) in batches if size > _BATCH_BYTES]
        await parallel(self._compare_batch, small, limit=_AT_ONCE)
        await parallel(self._compare_batch, large, limit=1)

    async def _compare_batch(self, batch: tuple[Namespace, Sequence[DocumentId]]) -> None:
        namespace, ids = batch
        self.report.compared += len(ids)
        self.report.namespaces.add(str(namespace))
        await self._settle(namespace, ids)
        self.on_progress(self.report)

    async def _settle(self, namespace: Namespace, ids: Sequence[DocumentId]) -> None:
        """Compare documents until they are equal or have had their rounds; repair what differs, if asked to."""
        repaired: dict[DocumentId, Difference] = {}
        differences: list[Difference] = []
        for round_ in range(_ROUNDS):
            if round_:
                await self.clock.sleep(_PAUSE_SECONDS)
            source, target = await self._fetch_both(namespace, ids)
            differences = differences_of(namespace, source, target)
            if not differences:
                break
            ids = [difference.id for difference in differences]
            if self.repair_into is not None and round_:
                # The first difference may be a document in motion; the second is not left standing.
                repaired |= {difference.id: difference for difference in differences}
                writes = tuple(Write(id=id_, document=source.get(id_)) for id_ in ids)
                await self._repair(WriteBatch(namespace=namespace, writes=writes))
        for difference in differences:
            self.report.add(difference)
            repaired.pop(difference.id, None)
        self.report.repaired += repaired.values()

    async def _fetch_both(self, namespace: Namespace, ids: Sequence[DocumentId]) -> list[Mapping[DocumentId, bytes]]:
        return await parallel(lambda side: side.fetch(namespace, ids), (self.source, self.target), limit=2)

    async def _repair(self, batch: WriteBatch) -> None:
        """Write what the source has. Deleted first: a replacement keeps an `_id` of an equal number of another type."""
        if self.repair_into is None:
            return
        absent = tuple(Write(id=write.id, document=None) for write in batch.writes)
        await self.repair_into.write(WriteBatch(namespace=batch.namespace, writes=absent))
        present = tuple(write for write in batch.writes if write.document is not None)
        if present:
            await self.repair_into.write(WriteBatch(namespace=batch.namespace, writes=present))

    async def _compare_whole(self, namespaces: Iterable[Namespace]) -> None:
        await parallel(self._compare_collection, sorted(namespaces, key=str), limit=_SCANS)

    async def _compare_collection(self, namespace: Namespace) -> None:
        self.report.namespaces.add(str(namespace))
        matcher = Matcher()
        async with (
            aclosing(self.source.scan(namespace)) as source,
            aclosing(self.target.scan(namespace)) as target,
        ):
            while True:
                pages = await parallel(_next_page, (source, target), limit=2)
                if not any(pages):
                    break
                for side, page in enumerate(pages):
                    for document in page:
                        matcher.add(side, document_id(document), document)
                if matcher.waiting_bytes > self.waiting_bytes:
                    await self._look_up(namespace, matcher)
        await self._look_up(namespace, matcher)

    async def _look_up(self, namespace: Namespace, matcher: Matcher) -> None:
        suspects = matcher.take_suspects()
        for batch, _ in _batches(suspects):
            await self._settle(namespace, batch)
        self.report.compared += matcher.take_compared() + len(suspects)
        self.on_progress(self.report)

    async def _compare_counts(self, namespaces: Iterable[Namespace]) -> None:
        for namespace in sorted(namespaces, key=str):
            source, target = await self.source.facts(namespace), await self.target.facts(namespace)
            if source.count != target.count:
                self.report.counts.append(
                    f"{namespace}: {source.count} documents in the source, {target.count} in the target"
                )

    async def _compare_indexes(self) -> None:
        for namespace in await self.source.collections():
            if str(namespace) in self.report.namespaces:
                source, target = await self.source.facts(namespace), await self.target.facts(namespace)
                self.report.indexes += index_differences(str(namespace), dict(source.indexes), dict(target.indexes))


def _batches(sizes: Mapping[DocumentId, int]) -> Iterator[tuple[list[DocumentId], int]]:
    """Yield portions of documents with their size in bytes; a large document is a portion of its own."""
    batch: list[DocumentId] = []
    total = 0
    for id_, size in sorted(sizes.items()):
        if batch and (len(batch) == _BATCH or total + size > _BATCH_BYTES):
            yield batch, total
            batch, total = [], 0
        batch.append(id_)
        total += size
    if batch:
        yield batch, total


async def _next_page(pages: AsyncGenerator[Sequence[bytes]]) -> Sequence[bytes]:
    """Return the next documents; none at the end."""
    async for page in pages:
        return page
    return ()
