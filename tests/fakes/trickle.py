"""Logs of many small commits, and a store that counts what reading them costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from typing_extensions import override

from d5agent.core.log.operation import OWN_DATABASE, Namespace, Position
from d5agent.core.log.segment import encode_segment, mixed_segment
from d5agent.core.log.segmenter import Cut
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.writer import LogWriter
from tests.fakes.clock import FakeClock
from tests.fakes.commits import WRITER
from tests.fakes.events import ITEMS, at, operation
from tests.fakes.one_by_one import OneByOne
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from d5agent.core.log.chain import Link
    from d5agent.core.log.segment import Segment
    from d5agent.ports import StoredObject

MARKS: Final = Namespace(OWN_DATABASE, "marks")


class CountingStore(FakeObjectStore):
    """Counts the requests that read: `fetched` has the keys, `listed` the pages."""

    def __init__(self, objects: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        self.objects.update(objects or {})
        self.fetched: list[str] = []
        self.listed = 0

    @override
    async def get(self, key: str) -> bytes | None:
        self.fetched.append(key)
        return await super().get(key)

    @override
    async def list_objects(self, prefix: str, *, after: str = "") -> AsyncGenerator[Sequence[StoredObject]]:
        async for page in super().list_objects(prefix, after=after):
            self.listed += 1
            yield page


def small(number: int) -> tuple[Segment, ...]:
    """Return what a commit of a trickle holds: one operation."""
    return (encode_segment([operation("insert", number + 1, number)]),)


def varied(number: int) -> tuple[Segment, ...]:
    """Return what a commit of a livelier log holds: nothing, little, much, several collections, a mark."""
    orders = [operation("insert", number + 1, f"{number} {n}") for n in range(3)]
    items = [operation("update", number + 1, number, namespace=ITEMS)]
    large = operation("insert", number + 1, number, fullDocument={"filling": "x" * 20_000})
    mark = operation("insert", number + 1, f"mark {number}", namespace=MARKS)
    kinds = (
        (),
        (encode_segment(orders),),
        (mixed_segment([orders, items]), encode_segment([mark])),
        (encode_segment(items), encode_segment([large])),
    )
    return kinds[number % 7 % 4]


async def write_log(
    store: FakeObjectStore,
    commits: Sequence[tuple[Segment, ...]],
    *,
    last: Link | None = None,
    compresses: bool = False,
) -> Link:
    """Append commits to a log; return the newest one."""
    writer = LogWriter(store=store, clock=FakeClock(), writer=WRITER, last=last, compresses=compresses)
    log = OneByOne(writer)
    begin = 0 if last is None else last.commit.sequence + 1
    for number, segments in enumerate(commits, begin):
        await log.take(Cut(segments=segments, position=Position(cluster_time=at(number + 1), token=None)))
    assert writer.last is not None
    return writer.last


async def operations_in(store: FakeObjectStore, *, after: Link | None = None) -> list[tuple[int, bytes]]:
    """Return all operations of a log, each with the number of its commit."""
    reader = LogReader(store=store)
    found = reader.operations_of(reader.links(after=after))
    return [(link.commit.sequence, o.raw) async for link, o in found if o is not None]
