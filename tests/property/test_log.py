"""Operations in, the log, operations out: nothing lost, nothing twice, each namespace in order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bson import Timestamp, decode, encode
from hypothesis import given
from hypothesis import strategies as st

from d5agent.core.log.glance import glance
from d5agent.core.log.naming import parse_segment_key
from d5agent.core.log.operation import OWN_DATABASE, ClusterTime, Namespace, Position, parse_event
from d5agent.core.log.segmenter import Segmenter
from d5agent.steps.capture.pipeline import ByteBudget, Pipeline
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.writer import LogWriter
from tests.fakes.barrier_order import concerned, require_barriers_in_order
from tests.fakes.clock import FakeClock
from tests.fakes.commits import WRITER
from tests.fakes.mortal import DiedError, Life, mortal
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from d5agent.core.log.chain import Commit
    from d5agent.core.log.operation import Operation
    from d5agent.ports import ObjectStore

_OWN_SEGMENTS: Final = 4  # quiet collections of a cut that have segments of their own
_MANY: Final = 9  # collections of a lively moment: more than may have a segment each
_NAMES: Final = (
    *(Namespace("shop", "a"), Namespace("shop", "b"), Namespace("stock", "a")) * 2,
    *(Namespace("shop", f"quiet{number}") for number in range(_MANY)),
    Namespace(OWN_DATABASE, "marks"),
)
_KINDS: Final = (*("insert", "update", "replace", "delete") * 20, "drop", "rename", "dropDatabase", "unheardOf")


@dataclass(frozen=True, slots=True)
class Event:
    """An event, and what happens before it: it is later by `later` increments; the stream was empty; time passed."""

    kind: str
    namespace: Namespace
    id: int
    later: int
    size: int
    is_quiet_before: bool
    names_position: bool
    seconds: float


_EVENTS: Final = st.lists(
    st.builds(
        Event,
        st.sampled_from(_KINDS),
        st.sampled_from(_NAMES),
        st.integers(1, 3),
        st.sampled_from((0, 0, 1)),
        st.sampled_from((0, 0, 20, 300, 900)),
        st.sampled_from((False, False, True)),
        st.booleans(),
        st.sampled_from((0.0, 0.0, 0.0, 0.3, 5.0)),
    ),
    min_size=15,
    max_size=60,
)
_SIZES: Final = st.sampled_from((1, 300, 1500, 6000, 1_000_000))
_AGES: Final = st.sampled_from((0.0, 1.0, 60.0))


def _operations(events: list[Event]) -> list[Operation]:
    operations = []
    increment = 1
    for number, event in enumerate(events):
        increment += event.later
        is_document = event.kind in {"insert", "update", "replace", "delete"}
        namespace = {"db": event.namespace.database, "coll": event.namespace.collection}
        if event.kind == "dropDatabase":
            del namespace["coll"]
        raw = {
            "_id": {"_data": f"{number:08x}"},
            "operationType": event.kind,
            "clusterTime": Timestamp(1_793_600_000, increment),
            "ns": namespace,
            **({"to": {"db": "shop", "coll": ("new", "a", "b")[event.id - 1]}} if event.kind == "rename" else {}),
            **({"documentKey": {"_id": event.id}} if is_document else {}),
            "fullDocument": {"_id": event.id, "filling": "x" * event.size},
        }
        operations.append(parse_event(encode(raw)))
    return operations


async def _capture(
    store: ObjectStore,
    events: list[Event],
    operations: list[Operation],
    *,
    max_bytes: int,
    max_age: float,
    breaks_off: bool = True,
    compresses: bool = False,
) -> None:
    """Write the log of what comes after its last commit, as the service does: stored side by side.

    The first stream breaks off at its end, where a further event might share the last one's cluster time.
    """
    reader = LogReader(store=store)
    last = await reader.last()
    writer = LogWriter(store=store, clock=FakeClock(), writer=WRITER, last=last, compresses=compresses)
    pipeline = Pipeline(writer=writer, room=ByteBudget(max_bytes=2000), on_commit=_nothing)
    begin = 0 if last is None else _number_after(last.commit.position)
    segmenter = Segmenter(max_bytes=max_bytes, max_age_seconds=max_age, own_segments=_OWN_SEGMENTS)
    now = 0.0
    async with pipeline.open():
        for event, operation in list(zip(events, operations, strict=True))[begin:]:
            now += event.seconds
            if event.is_quiet_before and event.later:
                between = encode({"_data": f"-{decode(operation.token)['_data']}"})
                position = Position(cluster_time=operation.cluster_time, token=between)
                segmenter.seal(position if event.names_position else None)
                if (cut := segmenter.tick(now=now)) is not None:
                    await pipeline.take(cut)
            for cut in segmenter.add(glance(operation.raw), now=now):
                await pipeline.take(cut)
        if not breaks_off:
            segmenter.seal(None)
        if (cut := segmenter.drain()) is not None:
            await pipeline.take(cut)
    if breaks_off:
        await _capture(store, events, operations, max_bytes=max_bytes, max_age=max_age, breaks_off=False)
    else:
        assert segmenter.is_empty


async def _nothing(_: Commit) -> None:
    """Nobody looks at the commits."""


def _number_after(position: Position) -> int:
    data = decode(position.token or b"")["_data"]
    return int(data[1:], 16) if data.startswith("-") else int(data, 16) + 1


async def _require_whole(store: FakeObjectStore, operations: list[Operation]) -> None:
    reader = LogReader(store=store)
    stored = [[o async for o in reader.operations(link.commit)] async for link in reader.links()]
    everything = [operation for commit in stored for operation in commit]
    assert [o async for _, o in reader.operations_of(reader.links()) if o is not None] == everything
    assert sorted(o.raw for o in everything) == sorted(o.raw for o in operations)
    for namespace in {operation.namespace for operation in operations}:
        of_one = [o.raw for o in everything if o.namespace == namespace]
        assert of_one == [o.raw for o in operations if o.namespace == namespace]
    times: list[ClusterTime] = []
    for commit in stored:
        assert len(commit) == 1 or all(concerned(operation) for operation in commit if operation.is_barrier)
        times += sorted({o.cluster_time for o in commit})
    assert times == sorted(times)
    shared = [time for time in times if times.count(time) > 1]
    assert all(any(o.is_barrier for o in operations if o.cluster_time == time) for time in shared)
    require_barriers_in_order(everything, operations)
    await _require_marks_apart(reader)


async def _require_marks_apart(reader: LogReader) -> None:
    """Whoever looks for the agent's marks finds all of them, and in a commit's few segments a few namespaces."""
    async for link in reader.links():
        own = [o async for o in reader.operations(link.commit, only_own=True)]
        assert own == [o async for o in reader.operations(link.commit) if o.is_ours]
        for ref in link.commit.segments:
            namespaces = {o.namespace async for o in reader.segment(ref)}
            assert parse_segment_key(ref.key).namespace is None or namespaces == {parse_segment_key(ref.key).namespace}


@given(events=_EVENTS, max_bytes=_SIZES, max_age=_AGES, compresses=st.booleans())
def test_what_is_captured_comes_out_of_the_log_again(
    *, events: list[Event], max_bytes: int, max_age: float, compresses: bool
) -> None:
    async def run() -> None:
        store = FakeObjectStore(page_size=3)
        operations = _operations(events)
        await _capture(
            store, events, operations, max_bytes=max_bytes, max_age=max_age, breaks_off=False, compresses=compresses
        )
        await _require_whole(store, operations)
        summary = await LogReader(store=store).check()
        assert not summary.orphans
        assert summary.last is not None
        assert summary.last.commit.total.operations == len(operations)

    asyncio.run(run())


@given(events=_EVENTS, max_bytes=_SIZES, max_age=_AGES)
def test_a_stream_that_breaks_off_at_any_event_is_carried_on(
    events: list[Event], max_bytes: int, max_age: float
) -> None:
    async def run() -> None:
        store = FakeObjectStore(page_size=3)
        operations = _operations(events)
        await _capture(store, events, operations, max_bytes=max_bytes, max_age=max_age)
        await _require_whole(store, operations)

    asyncio.run(run())


@given(events=_EVENTS, max_bytes=_SIZES, max_age=_AGES, deaths=st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_a_capture_that_dies_at_any_call_loses_nothing_and_stores_nothing_twice(
    events: list[Event], max_bytes: int, max_age: float, deaths: list[int]
) -> None:
    async def run() -> None:
        store = FakeObjectStore(page_size=3)
        operations = _operations(events)
        for halves in [*deaths, None]:
            try:
                mortal_store = mortal(store, Life(halves))
                await _capture(mortal_store, events, operations, max_bytes=max_bytes, max_age=max_age)
            except DiedError:
                continue
        await _require_whole(store, operations)
        await LogReader(store=store).check()

    asyncio.run(run())
