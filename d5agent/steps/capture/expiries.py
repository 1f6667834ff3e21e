"""Tells deletes by the source's TTL indexes from an application's: they go on when no application writes any more.

A delete is an expiry if a TTL index of the source names a field that held an expired date in the version that was
deleted. That is the target's, which was the source's at the certified end, or else the last one that the log tells,
since applications may have changed the target's. What the target lacks as well is done already.
"""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from d5agent.core.log.chain import foreign_operations
from d5agent.core.replay.ttl import has_expired
from d5agent.steps.log.reader import LogReader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import ClusterTime, Namespace, Operation
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.ttl import TtlIndex
    from d5agent.ports import DocumentReader, ObjectStore

_BATCH: Final = 500  # documents looked up at a time
_MOST: Final = 50_000  # deletes that are remembered; more of them count as an application's


class Delete(NamedTuple):
    """A delete of one document, as the stream told it."""

    namespace: Namespace
    id: DocumentId
    at: ClusterTime


@dataclass(slots=True)
class Unread:
    """Operations of others that the stream holds behind the log: deletes, and how many others."""

    deletes: list[Delete] = field(default_factory=list)
    others: int = 0

    def add(self, operation: Operation) -> None:
        """Take the next one."""
        delete = _delete_of(operation)
        if delete is None or len(self.deletes) == _MOST:
            self.others += 1
        else:
            self.deletes.append(delete)


@dataclass(slots=True, kw_only=True)
class Late:
    """Operations of others behind a place in the log. `expired`: deletes by TTL indexes, by namespace."""

    total: int = 0
    expired: Counter[str] = field(default_factory=Counter)

    @property
    def others(self) -> int:
        """How many are an application's, or may be."""
        return self.total - self.expired.total()


@dataclass(slots=True, kw_only=True)
class Expiries:
    """Looks at operations that came late. Where there are none, neither database is asked, nor the target opened."""

    source: DocumentReader
    open_target: Callable[[], AbstractAsyncContextManager[DocumentReader]]
    store: ObjectStore

    async def after(self, link: Link | None, *, unread: Unread | None = None) -> Late:
        """Look at what the log holds behind a commit, and then at what the stream holds behind the log."""
        unread = unread or Unread()
        late, last = Late(total=len(unread.deletes) + unread.others), link
        async for newer in LogReader(store=self.store).links(after=link):
            late.total += foreign_operations(newer.commit)
            last = newer
        deletes = await self._deletes(link, last, unread) if late.total else None
        if deletes:
            await self._sort(deletes, late)
        return late

    async def pass_over(self, report: VerifyReport, *, at: ClusterTime) -> None:
        """Take the differences out of a report if all are documents that have just expired on the source.

        It has deleted them, and the target holds the expired version: the delete comes behind what is compared.
        """
        if not report.different or report.unequal.whole:
            return
        expired: Counter[str] = Counter()
        async with self.open_target() as target:
            for name, ids in report.unequal.documents.items():
                ttl, ordered = (await self.source.facts(name)).ttl, sorted(ids)
                for begin in range(0, len(ordered), _BATCH):
                    some = ordered[begin : begin + _BATCH]
                    versions = await target.fetch(name, some)
                    is_all = len(versions) == len(some) and not await self.source.fetch(name, some)
                    if not is_all or not all(has_expired(ttl, version, at) for version in versions.values()):
                        return
                    expired[str(name)] += len(some)
        report.pass_over(expired)

    async def _deletes(self, link: Link | None, last: Link | None, unread: Unread) -> dict[Delete, None] | None:
        """Return the late operations if all of them are deletes in collections with TTL indexes; None: they are not."""
        if unread.others:
            return None
        found: dict[Delete, None] = {}
        async with aclosing(self._operations(link, last)) as operations:
            async for operation in operations:
                delete = _delete_of(operation)
                if delete is None or len(found) == _MOST:
                    return None
                found[delete] = None
        found.update(dict.fromkeys(unread.deletes))
        return found

    async def _operations(self, link: Link | None, last: Link | None) -> AsyncGenerator[Operation]:
        reader = LogReader(store=self.store)

        async def links() -> AsyncGenerator[Link]:
            async with aclosing(reader.links(after=link)) as newer:
                async for each in newer:
                    yield each
                    if last is not None and each.commit.sequence >= last.commit.sequence:
                        return

        async with aclosing(reader.operations_of(links())) as found:
            async for _, operation in found:
                if operation is not None and not operation.is_ours:
                    yield operation

    async def _sort(self, deletes: Mapping[Delete, None], late: Late) -> None:
        ttl = {name: (await self.source.facts(name)).ttl for name in dict.fromkeys(d.namespace for d in deletes)}
        unknown = {delete: None for delete in deletes if ttl[delete.namespace]}
        if not unknown:
            return
        async with self.open_target() as target:
            for name, indexes in ttl.items():
                of = [delete for delete in unknown if delete.namespace == name]
                for at in range(0, len(of), _BATCH):
                    some = of[at : at + _BATCH]
                    versions = await target.fetch(name, [delete.id for delete in some])
                    late.expired[str(name)] += _take(some, versions, indexes, unknown)
        if unknown:
            await self._look_into_log(unknown, ttl, late)

    async def _look_into_log(
        self, unknown: Mapping[Delete, None], ttl: Mapping[Namespace, Sequence[TtlIndex]], late: Late
    ) -> None:
        """Look at the last versions that the log tells."""
        wanted = {(delete.namespace, delete.id): delete for delete in unknown}
        expired: dict[Delete, bool] = {}
        reader = LogReader(store=self.store)
        async with aclosing(reader.operations_of(reader.links())) as found:
            async for _, operation in found:
                if operation is None or operation.document_id is None:
                    continue
                delete = wanted.get((operation.namespace, operation.document_id))
                if delete is not None and operation.cluster_time < delete.at:
                    version = operation.document
                    indexes = ttl[delete.namespace]
                    expired[delete] = version is not None and has_expired(indexes, version, delete.at)
        late.expired.update(str(delete.namespace) for delete, is_expiry in expired.items() if is_expiry)


def _delete_of(operation: Operation) -> Delete | None:
    id_ = operation.document_id
    is_one = operation.kind == "delete" and id_ is not None
    return Delete(operation.namespace, id_, operation.cluster_time) if is_one and id_ is not None else None


def _take(
    some: Sequence[Delete], versions: Mapping[DocumentId, bytes], ttl: Sequence[TtlIndex], unknown: dict[Delete, None]
) -> int:
    """Take out of `unknown` what the target lacks as well, and what had expired there; return how many."""
    taken = 0
    for delete in some:
        version = versions.get(delete.id)
        if version is None or has_expired(ttl, version, delete.at):
            unknown.pop(delete)
            taken += 1
    return taken
