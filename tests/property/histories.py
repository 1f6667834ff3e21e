"""Random histories of a cluster, and the log that was captured of them."""

from __future__ import annotations

import itertools
import math
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bson import Int64, decode
from hypothesis import strategies as st

from d5agent.core.log.operation import Namespace, parse_event
from d5agent.core.log.raw import id_document
from d5agent.core.log.segmenter import Segmenter
from d5agent.steps.log.writer import LogWriter
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import (
    FakeCluster,
    ImpossibleError,
    Op,
    delete,
    drop,
    drop_database,
    insert,
    rename,
    replace,
    update,
)
from tests.fakes.commits import WRITER
from tests.fakes.documents import FakeDatabase, raw_id
from tests.fakes.one_by_one import OneByOne
from tests.fakes.store import FakeObjectStore
from tests.property.shapes import SPARSE, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from d5agent.core.log.raw import DocumentId

UNIQUE: Final = Namespace("shop", "unique")
PLAIN: Final = Namespace("shop", "plain")
OTHER: Final = Namespace("stock", "other")
IDS: Final = (1, 2, 3, 4, 1.0, Int64(2), "a")
VALUES: Final = (None, None, 1, 2, 3)
_COUNTS: Final = (1, 2, 3, 4, 5)
# Order matters most in a hot collection with a unique field.
_PLACES: Final = (UNIQUE, UNIQUE, UNIQUE, PLAIN, OTHER)
_FIRST: Final = (
    *((UNIQUE, 1, 1), (UNIQUE, 2, 2), (UNIQUE, 3, 3), (UNIQUE, "a", None)),
    *((PLAIN, 1, 1), (PLAIN, 2, 1), (OTHER, 1, 1)),
)
_DOCUMENT_KINDS: Final = ("write", "write", "write", "replace", "delete", "recreate", "take_over", "exchange", "twice")
_HANDING_ROUND: Final = ("rotate", "hand_round", "several")
_BARRIERS: Final = ("drop", "rename", "rename", "drop_database")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens: somebody writes, or the agent reads the stream, or time passes."""

    kind: str
    namespace: Namespace = UNIQUE
    other: Namespace = PLAIN
    ids: tuple[object, object] = (1, 2)
    value: object = None
    count: int = 0


def steps(*, barriers: int) -> st.SearchStrategy[list[Step]]:
    """Return histories; without barriers, only documents change. At 12 every third step is one."""
    moves = _BARRIERS * barriers
    kinds = st.sampled_from((*_DOCUMENT_KINDS * 4, *_HANDING_ROUND * 3, *("capture", "wait") * 6, *moves))
    # A step is three draws instead of seven: hypothesis spends more on drawing than a history does on happening.
    places = st.sampled_from(tuple(itertools.product(_PLACES, _PLACES)))
    details = st.sampled_from(tuple(itertools.product(IDS, IDS, VALUES, _COUNTS)))
    return st.lists(st.builds(_step, kinds, places, details), min_size=20, max_size=60)


def _step(kind: str, places: tuple[Namespace, Namespace], details: tuple[object, object, object, int]) -> Step:
    first, second, value, count = details
    return Step(kind, *places, (first, second), value, count)


@dataclass(slots=True, kw_only=True)
class Recording:
    """A cluster that lives, and a log that follows it: as a segmenter cuts it, at whatever moments."""

    shape: Shape = SPARSE
    segment_bytes: int = 400
    looks_up_by_name: bool = False
    clock: FakeClock = field(default_factory=FakeClock)
    store: FakeObjectStore = field(default_factory=lambda: FakeObjectStore(page_size=3))
    cuts_at_barriers: bool = False
    """Write the log as earlier versions did: each barrier in a commit of its own."""
    numbers: int = 0
    at: int = 0
    seconds: float = 0.0
    cluster: FakeCluster = field(init=False)
    _segmenter: Segmenter = field(init=False)
    _log: OneByOne = field(init=False)
    _is_after_barrier: bool = False

    def __post_init__(self) -> None:
        database = FakeDatabase(unique={UNIQUE: frozenset({self.shape.index})})
        self.cluster = FakeCluster(clock=self.clock, database=database, looks_up_by_name=self.looks_up_by_name)
        self.cluster.apply(*[insert(namespace, self._fields(id_, value)) for namespace, id_, value in _FIRST])
        self._segmenter = Segmenter(max_bytes=self.segment_bytes, max_age_seconds=2)
        self._log = OneByOne(LogWriter(store=self.store, clock=self.clock, writer=WRITER, last=None))

    def begin(self) -> None:
        """Let the log begin here: what happened before is not in it."""
        self.at = len(self.cluster)

    async def do(self, step: Step) -> None:
        """Let a step happen, as far as a cluster would allow it."""
        if step.kind == "capture":
            await self.capture(step.count)
        elif step.kind == "wait":
            self.seconds += step.count
            await self._tick()
        else:
            self.numbers += 1
            with suppress(ImpossibleError):
                self._happen(step)

    async def capture(self, count: int) -> None:
        """Read some events; looked-up documents are as they are at this moment."""
        for _ in range(min(count, len(self.cluster) - self.at)):
            operation = parse_event(self.cluster.event(self.at))
            self.at += 1
            if self.cuts_at_barriers and (operation.is_barrier or self._is_after_barrier):
                self._segmenter.seal(None)
                await self._tick(math.inf)
            self._is_after_barrier = operation.is_barrier
            for cut in self._segmenter.add(operation, now=self.seconds):
                await self._log.take(cut)
        if self.at == len(self.cluster):
            self._segmenter.seal(None)
            await self._tick()

    @property
    def sequence(self) -> int:
        """The number of the newest commit; -1: there is none."""
        last = self._log.writer.last
        return -1 if last is None else last.commit.sequence

    async def finish(self) -> None:
        """Capture all that is left, and commit it."""
        await self.capture(len(self.cluster))
        cut = self._segmenter.drain()
        if cut is not None:
            await self._log.take(cut)

    async def _tick(self, now: float | None = None) -> None:
        cut = self._segmenter.tick(now=self.seconds if now is None else now)
        if cut is not None:
            await self._log.take(cut)

    def _happen(self, step: Step) -> None:
        ops = self._ops(step)
        if step.kind != "hand_round":
            self.cluster.apply(*ops)
            return
        for op in ops:  # the same as "rotate", but each by itself: anything may be read in between
            self.cluster.apply(op)

    def _ops(self, step: Step) -> Sequence[Op]:
        namespace, (first, second) = step.namespace, step.ids
        made: dict[str, Callable[[], Sequence[Op]]] = {
            "write": lambda: [self._write(namespace, first, step.value)],
            "twice": lambda: [self._write(namespace, first, None), update(namespace, self._fields(first, step.value))],
            "replace": lambda: [replace(namespace, self._fields(first, step.value))],
            "delete": lambda: [delete(namespace, first)],
            "recreate": lambda: [delete(namespace, first), insert(namespace, self._fields(second, step.value))],
            "take_over": lambda: self._take_over(namespace, first, step.value),
            "exchange": lambda: self._rotate(namespace, [raw_id(first), raw_id(second)]),
            "rotate": lambda: self._rotate(namespace, self._ids(namespace)),
            "hand_round": lambda: self._rotate(namespace, self._ids(namespace)),
            "several": lambda: [
                self._write(namespace, first, step.value),
                self._write(step.other, second, None),
                delete(namespace, first),
            ],
            "drop": lambda: [drop(namespace)],
            "rename": lambda: [rename(namespace, step.other)],
            "drop_database": lambda: [drop_database(namespace.database)],
        }
        return made[step.kind]()

    def _write(self, namespace: Namespace, id_: object, value: object) -> Op:
        is_there = self.cluster.database.find(namespace, raw_id(id_)) is not None
        return (update if is_there else insert)(namespace, self._fields(id_, value))

    def _take_over(self, namespace: Namespace, id_: object, value: object) -> Sequence[Op]:
        """Give a document a value; who held it gives it up in the same transaction."""
        wanted = self._write(namespace, id_, value)
        keys = self.shape.index.keys(wanted.document or b"")
        documents = self.cluster.database.contents().get(namespace, {})
        holders = [holder for holder, document in documents.items() if keys & self.shape.index.keys(document)]
        return [*(self._release(namespace, holder) for holder in holders if holder != wanted.id), wanted]

    def _rotate(self, namespace: Namespace, ids: Sequence[DocumentId]) -> Sequence[Op]:
        """Let each document have what the one before it has; all give up what they have first."""
        found = [self.cluster.database.find(namespace, id_) for id_ in ids]
        documents = [decode(document) for document in found if document is not None]
        if len(documents) < len(ids) or len(set(ids)) < 2:
            raise ImpossibleError(namespace)
        released = [self._release(namespace, id_) for id_ in ids]
        moved = zip(documents, documents[-1:] + documents[:-1], strict=True)
        return [*released, *(update(namespace, {**giver, "_id": heir["_id"]}) for heir, giver in moved)]

    def _release(self, namespace: Namespace, id_: DocumentId) -> Op:
        value = decode(id_document(id_))["_id"]
        return update(namespace, self._fields(value, f"free {value!r} {self.numbers}"))

    def _ids(self, namespace: Namespace) -> Sequence[DocumentId]:
        return list(self.cluster.database.contents().get(namespace, {}))

    def _fields(self, id_: object, value: object) -> Mapping[str, object]:
        return self.shape.fields(id_, value, self.numbers)


def shuffled(seed: int) -> random.Random:
    """Return an order of writes."""
    return random.Random(seed)
