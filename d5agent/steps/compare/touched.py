"""The documents that a log touches, each once, in bounded memory: in parts, and in portions of these."""

from __future__ import annotations

import math
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.named_fields import fields_named_by
from d5agent.core.log.identity import identity_of
from d5agent.core.log.naming import names_in_keys, parse_segment_key
from d5agent.core.log.segment import touches_of
from d5agent.core.plan.compact_hash_set import BYTES_EACH, MASK_BYTES_EACH, CompactHashSet

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

    from d5agent.core.compare.named_fields import FieldBits
    from d5agent.core.log.chain import Commit, Link
    from d5agent.core.log.operation import Namespace, Operation
    from d5agent.core.log.raw import DocumentId
    from d5agent.steps.log.reader import LogReader

_BATCH: Final = 500  # documents looked up at a time
_BATCH_BYTES: Final = 2 * 1024 * 1024
_FILLED: Final = 0.9  # parts are not all of one size
_SEEN: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some documents of one namespace, to look up at a time. `new`: those whose first operation is an insert."""

    namespace: Namespace
    ids: tuple[DocumentId, ...]
    new: frozenset[DocumentId]


@dataclass(slots=True)
class Portion:
    """Documents and the largest of their events' sizes, by namespace."""

    sizes: dict[Namespace, dict[DocumentId, int]] = field(default_factory=dict)
    new: dict[Namespace, set[DocumentId]] = field(default_factory=dict)
    count: int = 0

    def add(self, operation: Operation, id_: DocumentId, *, is_first: bool) -> None:
        """Take an operation on a document. `is_first`: the document is to stand in this portion."""
        sizes = self.sizes.setdefault(operation.namespace, {})
        if is_first:
            self.count += 1
            if operation.kind == "insert":
                self.new.setdefault(operation.namespace, set()).add(id_)
        if is_first or id_ in sizes:
            sizes[id_] = max(sizes.get(id_, 0), len(operation.raw))

    def batches(self) -> Iterator[Batch]:
        """Yield the documents in batches that fit into memory, as far as their events tell; large ones alone."""
        for namespace, sizes in self.sizes.items():
            new = self.new.get(namespace, set())
            ids: list[DocumentId] = []
            held = 0
            for id_, size in sorted(sizes.items()):
                if ids and (len(ids) == _BATCH or held + size > _BATCH_BYTES):
                    yield Batch(namespace=namespace, ids=tuple(ids), new=frozenset(new.intersection(ids)))
                    ids, held = [], 0
                ids.append(id_)
                held += size
            if ids:
                yield Batch(namespace=namespace, ids=tuple(ids), new=frozenset(new.intersection(ids)))


@dataclass(slots=True, kw_only=True)
class LogPart:
    """A log up to a commit, and those of its documents whose hash falls into one of `parts` parts.

    `portion`: how many documents are held at a time. `fields`: remember which fields of each document events name.
    """

    reader: LogReader
    last: Link
    part: int
    parts: int
    seen: CompactHashSet
    portion: int
    fields: FieldBits | None = None

    async def operations(self) -> AsyncGenerator[tuple[Commit, Operation]]:
        """Yield all operations, of all parts, but the agent's own; each document of this part is then known."""
        async with aclosing(operations_until(self.reader, self.last)) as found:
            async for commit, operation in found:
                thing = (operation.namespace, operation.document_id)
                if operation.document_id is not None and hash(thing) % self.parts == self.part:
                    self.seen.add(thing)
                    if self.fields is not None:
                        bits = self.fields.mask(operation.namespace, fields_named_by(operation))
                        self.seen.set_bits(thing, bits)
                yield commit, operation

    async def portions(self, is_wanted: Callable[[Namespace], bool]) -> AsyncGenerator[Portion]:
        """Yield the documents of this part in wanted namespaces, each once, after all `operations` were read."""
        portion = Portion()
        async with aclosing(operations_until(self.reader, self.last)) as found:
            async for _, operation in found:
                id_ = operation.document_id
                if id_ is None or not is_wanted(operation.namespace):
                    continue
                thing = (operation.namespace, id_)
                if hash(thing) % self.parts == self.part:
                    portion.add(operation, id_, is_first=self.seen.mark(thing))
                if portion.count == self.portion:
                    yield portion
                    portion = Portion()
        yield portion

    def unnamed(self, namespace: Namespace, id_: DocumentId, names: set[bytes]) -> set[bytes]:
        """Return those of a document's fields that no operation names, once all `operations` were read."""
        if self.fields is None:
            return set()
        return self.fields.unnamed(namespace, self.seen.mask((namespace, id_)), names)

    def touches(self, namespace: Namespace, id_: DocumentId) -> bool | None:
        """Whether the log touches a document; None: it belongs to another part, which alone knows."""
        thing = (namespace, id_)
        return thing in self.seen if hash(thing) % self.parts == self.part else None


def log_parts(
    reader: LogReader, last: Link, *, room_bytes: int, portion: int, fields: FieldBits | None
) -> Iterator[LogPart]:
    """Yield the parts of a log, one after the other: each takes all the memory that there is for them."""
    each = BYTES_EACH + (0 if fields is None else MASK_BYTES_EACH)
    operations, room = last.commit.total.operations, room_bytes // each
    parts = max(1, math.ceil(operations / (room * _FILLED)))
    for part in range(parts):
        seen = CompactHashSet(min(operations, room), has_masks=fields is not None)
        yield LogPart(reader=reader, last=last, part=part, parts=parts, seen=seen, portion=portion, fields=fields)


async def operations_until(reader: LogReader, last: Link) -> AsyncGenerator[tuple[Commit, Operation]]:
    """Yield the applications' operations up to a commit: what is written meanwhile is left to who asks again."""

    async def links() -> AsyncGenerator[Link]:
        async with aclosing(reader.links()) as found:
            async for link in found:
                yield link
                if link.commit.sequence >= last.commit.sequence:
                    return

    async with aclosing(reader.operations_of(links())) as operations:
        async for link, operation in operations:
            if operation is not None and not operation.is_ours:
                yield link.commit, operation


async def seen_in(reader: LogReader, *, after: Link | None, beyond: int) -> CompactHashSet:
    """Return the documents that the commits beyond a number touch, by namespace and identity.

    `after`: an earlier commit, from which the log is read. A dozen bytes a document.
    """
    seen = CompactHashSet(_SEEN)

    async def links() -> AsyncGenerator[Link]:
        async for link in reader.links(after=after):
            if link.commit.sequence > beyond:
                yield link

    async with aclosing(reader.segments_of(links())) as segments:
        async for _, segment in segments:
            for namespace, id_, *_ in touches_of(*segment) if segment is not None else ():
                if id_ is not None:
                    seen.add((namespace, identity_of(id_)))
    return seen


async def touched_among(
    reader: LogReader, documents: Mapping[Namespace, set[DocumentId]]
) -> dict[Namespace, set[DocumentId]]:
    """Return those documents that the log touches; only the segments of their collections are read."""
    wanted = {(namespace, identity_of(id_)): id_ for namespace, ids in documents.items() for id_ in ids}
    names = {None, *map(names_in_keys, documents)}
    found: dict[Namespace, set[DocumentId]] = {}

    async def concerned() -> AsyncGenerator[Link]:
        async for link in reader.links():
            segments = (ref for ref in link.commit.segments if parse_segment_key(ref.key).namespace in names)
            yield replace(link, commit=replace(link.commit, segments=tuple(segments)))

    async with aclosing(reader.segments_of(concerned())) as segments:
        async for _, segment in segments:
            for namespace, id_, *_ in touches_of(*segment) if segment is not None else ():
                place = None if id_ is None else (namespace, identity_of(id_))
                if place is not None and place in wanted:
                    found.setdefault(namespace, set()).add(wanted[place])
    return found
