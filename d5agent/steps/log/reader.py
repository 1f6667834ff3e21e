"""Reads the log: commits in order, checked as a chain, and the operations of their segments, prefetched."""

from __future__ import annotations

from collections import deque
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.core.log.chain import (
    ROLLUP_SIZE,
    ROLLUPS,
    Commit,
    Link,
    check_link,
    decode_commit,
    decode_rollup,
    digest,
    first_of_rollup,
    is_commit_key,
    is_own,
    key_before,
    rollup_key,
    sequence_of,
)
from d5agent.core.log.naming import LOG, SEGMENTS, commit_key
from d5agent.core.log.segment import decode_segment
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.steps.log.packs import Packs, thousand_of
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from d5agent.core.log.operation import Operation
    from d5agent.core.log.segment import SegmentRef
    from d5agent.ports import ObjectStore

_PREFETCH_BYTES: Final = 16 * 1024 * 1024
_PREFETCH_SEGMENTS: Final = 16
_GROUP_SEGMENTS: Final = 256
_GROUP_COMMITS: Final = 4 * ROLLUP_SIZE


StoredSegment = tuple["SegmentRef", bytes]
"""A segment and its object's content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """What a whole check of the log found: it is whole up to `last`, and these objects belong to no commit."""

    last: Link | None
    orphans: tuple[str, ...]
    commits: int = 0
    """How many were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReader:
    """Reads one log. It never writes."""

    store: ObjectStore

    async def links(self, *, after: Link | None = None) -> AsyncGenerator[Link]:
        """Yield the commits after `after` (None: all), each checked against the one before.

        Roll-ups serve what they hold, so a long log is few requests. CorruptDataError: the chain is broken.
        """
        before = after
        async with aclosing(self._bodies(None if after is None else after.commit.sequence + 1)) as bodies:
            async for number, body in bodies:
                try:
                    link = Link(commit=decode_commit(body, key=commit_key(number)), digest=digest(body))
                    check_link(before, link)
                except CorruptDataError:
                    await self._check_copy(number, digest(body))
                    await self._check_copy(number - 1, None if before is None else before.digest)
                    raise
                yield link
                before = link

    async def last(self) -> Link | None:
        """Return the newest commit; None: the log is empty. The chain before it is not read."""
        newest = await self._newest_key()
        body = await self.store.get(newest) if newest else None
        if not newest or body is None:
            return None
        return Link(commit=decode_commit(body, key=newest), digest=digest(body))

    async def first_sequence(self) -> int:
        """Return the number of the first commit in the store; 0: there is none."""
        async with aclosing(self.store.list_objects(LOG)) as pages:
            async for page in pages:
                for found in page:
                    if is_commit_key(found.key):
                        return sequence_of(found.key)
        return 0

    async def last_sequence(self) -> int:
        """Return the number of the newest commit, whether it can be read or not; -1: there is none."""
        newest = await self._newest_key()
        return sequence_of(newest) if newest else -1

    async def _newest_key(self) -> str | None:
        newest: str | None = None
        # With the last one that is rolled up: a log of exactly 1,000 commits has none after it.
        first = max([0, *(first + ROLLUP_SIZE - 1 for first in await self.rolled_up())])
        async for page in self.store.list_objects(LOG, after=key_before(first)):
            newest = max([newest or "", *(found.key for found in page if is_commit_key(found.key))])
        return newest

    async def rolled_up(self) -> dict[int, int]:
        """Return the roll-ups: the first commit of each, and how many bytes it is."""
        return {
            first_of_rollup(found.key): found.bytes
            async for page in self.store.list_objects(ROLLUPS)
            for found in page
            if found.key.endswith(".jsonl")
        }

    async def operations(self, commit: Commit, *, only_own: bool = False) -> AsyncGenerator[Operation]:
        """Yield the operations of a commit, in order by namespace; or only the agent's own marks among them."""
        refs = tuple(ref for ref in commit.segments if is_own(ref)) if only_own else commit.segments
        async with aclosing(self._bodies_of(refs)) as bodies:
            async for ref, body in bodies:
                for operation in decode_segment(ref, body):
                    yield operation

    async def operations_of(self, links: AsyncIterator[Link]) -> AsyncGenerator[tuple[Link, Operation | None]]:
        """Yield the operations of commits, in order; after the last one of each commit, None."""
        async with aclosing(self.segments_of(links)) as segments:
            async for link, segment in segments:
                if segment is None:
                    yield link, None
                else:
                    for operation in decode_segment(*segment):
                        yield link, operation

    async def segments_of(self, links: AsyncIterator[Link]) -> AsyncGenerator[tuple[Link, StoredSegment | None]]:
        """Yield the segments of commits as they are stored, in order; after the last one of each commit, None.

        Segments of several small commits are fetched together, from packs where there are any: a trickle's log is
        many objects of a few bytes.
        """
        packed = await self.rolled_up()
        packs = Packs(store=self.store, packed=packed)
        group: list[Link] = []
        size = count = 0
        async for link in links:
            segments = link.commit.segments
            bytes_ = sum(ref.bytes for ref in segments)
            is_full = size + bytes_ > _PREFETCH_BYTES or count > _GROUP_SEGMENTS or len(group) == _GROUP_COMMITS
            if group and is_full:
                async for found in self._segments_of_group(group, packs):
                    yield found
                group, size, count = [], 0, 0
            group.append(link)
            size += bytes_
            count += 0 if thousand_of(link) in packed else len(segments)
        async for found in self._segments_of_group(group, packs):
            yield found

    async def segment(self, ref: SegmentRef) -> AsyncGenerator[Operation]:
        """Yield the operations of one segment."""
        for operation in decode_segment(ref, await self._get(ref.key)):
            yield operation

    async def check(
        self, *, after: Link | None = None, look: Callable[[Operation], None] = lambda _: None
    ) -> LogSummary:
        """Read all of the log after a commit and check it: chain, hashes, counts. CorruptDataError names the fault.

        `look` is called with each operation.
        """
        last, commits = after, 0
        named: set[int] = set()  # hashes of keys: a week's trickle has a million, and memory is bounded
        async with aclosing(self.operations_of(self.links(after=after))) as operations:
            async for link, operation in operations:
                if operation is None:
                    named.update(hash(ref.key) for ref in link.commit.segments)
                    last, commits = link, commits + 1
                else:
                    look(operation)
        if after is not None:
            return LogSummary(last=last, orphans=(), commits=commits)
        orphans: list[str] = []
        async for page in self.store.list_objects(SEGMENTS):
            for key in (found.key for found in page if not found.key.startswith(LOG)):
                if hash(key) not in named:
                    orphans.append(key)
                named.discard(hash(key))
        if named:  # read from a pack, and gone all the same
            gone = [r.key async for link in self.links() for r in link.commit.segments if hash(r.key) in named]
            raise _missing(min(gone))
        return LogSummary(last=last, orphans=tuple(orphans), commits=commits)

    async def _segments_of_group(
        self, group: list[Link], packs: Packs
    ) -> AsyncGenerator[tuple[Link, StoredSegment | None]]:
        if len(group) == 1:  # perhaps larger than memory: in portions
            async with aclosing(self._bodies_of(group[0].commit.segments)) as bodies:
                async for segment in bodies:
                    yield group[0], segment
            yield group[0], None
            return
        found = await packs.bodies_of(group)
        keys = [ref.key for link in group for ref in link.commit.segments if ref.key not in found]
        fetched = deque(await self._get_all(keys))
        for link in group:
            for ref in link.commit.segments:
                yield link, (ref, found[ref.key] if ref.key in found else fetched.popleft())
            yield link, None

    async def _check_copy(self, number: int, found: str | None) -> None:
        """Blame the roll-up if it has a commit otherwise than the commit's own object: with that, the log is whole."""
        stored = await self.store.get(commit_key(number)) if number >= 0 else None
        if stored is not None and digest(stored) != found:
            raise CorruptDataError(
                "a roll-up of the log is damaged",
                hint="delete it: its commits are stored beside it, and the log is read from them",
                key=rollup_key(number - number % ROLLUP_SIZE),
            )

    async def _bodies(self, first: int | None) -> AsyncGenerator[tuple[int, bytes]]:
        """Yield the commits from a number on (None: the first): from roll-ups where there are any, one by one else."""
        sizes = await self.rolled_up()
        if first is None:  # the first commit may be gone, and its roll-up be there
            first = min([await self.first_sequence(), *sizes])
        begin, end = first - first % ROLLUP_SIZE, max([0, *(at + ROLLUP_SIZE for at in sizes)])
        while begin < end:
            some = _portion(begin, sizes)
            next_begin = begin + max(1, len(some)) * ROLLUP_SIZE
            # A crash may have left one out: its commits are there all the same.
            found = self._rolled_up_bodies(some) if some else self._single_bodies(begin, until=next_begin)
            async with aclosing(found) as bodies:
                async for number, body in bodies:
                    if number >= first:
                        yield number, body
            begin = next_begin
        async with aclosing(self._single_bodies(max(first, begin))) as bodies:
            async for number, body in bodies:
                yield number, body

    async def _rolled_up_bodies(self, begins: list[int]) -> AsyncGenerator[tuple[int, bytes]]:
        rollups = await self._get_all([rollup_key(begin) for begin in begins])
        for begin, rollup in zip(begins, rollups, strict=True):
            for number, line in enumerate(decode_rollup(rollup), begin):
                yield number, line

    async def _single_bodies(self, first: int, *, until: int | None = None) -> AsyncGenerator[tuple[int, bytes]]:
        async for page in self.store.list_objects(LOG, after=key_before(first)):
            keys = [found.key for found in page if is_commit_key(found.key)]
            for at in range(0, len(keys), _PREFETCH_SEGMENTS):
                some = keys[at : at + _PREFETCH_SEGMENTS]
                for key, body in zip(some, await self._get_all(some), strict=True):
                    number = sequence_of(key)
                    if until is not None and number >= until:
                        return
                    yield number, body

    async def _bodies_of(self, refs: tuple[SegmentRef, ...]) -> AsyncGenerator[StoredSegment]:
        at = 0
        while at < len(refs):
            end, size = at, 0
            while end < len(refs) and end - at < _PREFETCH_SEGMENTS and (end == at or size < _PREFETCH_BYTES):
                size += refs[end].bytes
                end += 1
            some = refs[at:end]
            for ref, body in zip(some, await self._get_all([ref.key for ref in some]), strict=True):
                yield ref, body
            at = end

    async def _get_all(self, keys: list[str]) -> list[bytes]:
        return await parallel(self._get, keys, limit=_PREFETCH_SEGMENTS)

    async def _get(self, key: str) -> bytes:
        body = await self.store.get(key)
        if body is None:
            raise _missing(key)
        return body


def no_log(where: str) -> OperatorError:
    """Return the error of who finds no commit. `where`: the place that was looked at, as `s3://bucket/prefix`."""
    return OperatorError(
        f"no log below {where}",
        hint="see that [store] bucket and prefix are those that replication writes to (d5agent status shows its run)."
        " After clean there is none: d5agent verify --full compares without it, and an archived log is below"
        " archive/RUN/",
    )


async def link_of(store: ObjectStore, sequence: int) -> Link:
    """Return one commit of the log, and its hash. CorruptDataError: it is missing."""
    key = commit_key(sequence)
    body = await store.get(key)
    if body is None:
        raise CorruptDataError("a commit is missing in the log", hint="bring it back (bucket versioning)", key=key)
    return Link(commit=decode_commit(body, key=key), digest=digest(body))


def _missing(key: str) -> CorruptDataError:
    return CorruptDataError(
        "an object of the log is missing",
        hint="bring it back (bucket versioning), then run it again; nothing was written",
        key=key,
    )


def _portion(begin: int, sizes: Mapping[int, int]) -> list[int]:
    """Return the roll-ups from `begin` on that are fetched together: without a gap, and not too large."""
    some: list[int] = []
    size = 0
    while begin in sizes and len(some) < _PREFETCH_SEGMENTS and (not some or size + sizes[begin] <= _PREFETCH_BYTES):
        size += sizes[begin]
        some.append(begin)
        begin += ROLLUP_SIZE
    return some
