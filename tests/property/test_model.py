"""From any starting state of the target: it becomes what the source is, or what stands in the way is named."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hypothesis import given
from hypothesis import strategies as st

from d5agent.core.log.operation import Namespace
from d5agent.core.log.raw import document_id
from d5agent.steps.log.reader import LogReader
from tests.fakes.documents import FakeDatabase, raw_document, raw_id
from tests.fakes.indexes import identity
from tests.fakes.mortal import Life
from tests.fakes.target import FakeTarget
from tests.property.histories import IDS, OTHER, PLAIN, UNIQUE, VALUES, Step, shuffled
from tests.property.rehearsal import ANY_SHAPE, CALM, MANNERS, WILD, Manner, Rehearsal, rehearsal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Failure
    from tests.fakes.indexes import Identity
    from tests.property.shapes import Shape

_STRANGE_IDS: Final = (91, 92, "b")  # no history touches these


@dataclass(frozen=True, slots=True)
class Start:
    """What the target holds: what the source held at a moment (None: never anything), and strange documents.

    `shape`: its own unique index, instead of the source's.
    """

    copied_at: float | None
    strays: tuple[tuple[Namespace, object, object], ...]
    shape: Shape | None

    def database(self, copy: FakeDatabase, shape: Shape) -> FakeDatabase:
        """Return the target; what its index refuses of the copy is missing there."""
        unique = dict(copy.unique)
        if self.copied_at is None or self.shape is not None:
            unique = {UNIQUE: frozenset({(self.shape or shape).index})}
        database = FakeDatabase(unique=unique)
        for number, (namespace, id_, value) in enumerate(self.strays):
            database.put(namespace, raw_id(id_), raw_document(shape.fields(id_, value, 900 + number)))
        for namespace, documents in copy.contents().items() if self.copied_at is not None else ():
            for id_, document in documents.items():
                if database.find(namespace, id_) is None:
                    database.put(namespace, id_, document)
        return database


STARTS: Final = st.builds(
    Start,
    st.sampled_from((None, 0.0, 0.0, 0.5, 1.0)),
    st.lists(
        st.tuples(
            st.sampled_from((UNIQUE, UNIQUE, PLAIN, OTHER)),
            st.sampled_from((*IDS, *_STRANGE_IDS)),
            st.sampled_from(VALUES),
        ),
        max_size=4,
    ).map(tuple),
    st.one_of(st.none(), st.none(), ANY_SHAPE),
)
CUTS: Final = st.lists(st.floats(0, 1), max_size=2)


async def from_start(before: list[Step], after: list[Step], start: Start, shape: Shape, manner: Manner) -> Rehearsal:
    """Let a history happen, and give the target its starting state."""
    case = await rehearsal(before, after, manner, copied_at=start.copied_at or 0.0, shape=shape)
    case.target = FakeTarget(start.database(case.target.database, shape), shuffle=shuffled(manner.seed))
    return case


async def touched_by(case: Rehearsal) -> dict[Namespace, set[Identity]]:
    """Return which documents the log's operations concern."""
    found: dict[Namespace, set[Identity]] = {}
    reader = LogReader(store=case.recording.store)
    async for _, operation in reader.operations_of(reader.links()):
        if operation is not None and operation.document_id is not None:
            found.setdefault(operation.namespace, set()).add(identity(operation.document_id))
    return found


def require_named(case: Rehearsal, failure: Failure) -> None:
    """See that a refused document is one of the source's, and that another one of the target has its value."""
    source, target = case.recording.cluster.database, case.target.database
    document = source.find(failure.namespace, failure.write.id)
    assert failure.is_conflict
    assert document is not None
    assert target.taken_index(failure.namespace, failure.write.id, document) == failure.index
    if target.unique.get(failure.namespace) == source.unique.get(failure.namespace):
        wrong = _without_what_is_right(source, target)
        assert wrong.taken_index(failure.namespace, failure.write.id, document), "no strange document is in the way"


def _without_what_is_right(source: FakeDatabase, target: FakeDatabase) -> FakeDatabase:
    database = target.copy()
    for namespace, documents in source.contents().items():
        for id_, document in documents.items():
            if database.find(namespace, id_) == document:
                database.remove(namespace, id_)
    return database


def mend(case: Rehearsal) -> None:
    """Do what an operator is told to: remove what is in the way, documents or another index."""
    source, target = case.recording.cluster.database, case.target.database
    target.unique = dict(source.unique)
    for namespace, documents in target.contents().items():
        for id_, document in documents.items():
            if source.find(namespace, id_) != document:
                target.remove(namespace, id_)


def keyed(contents: Mapping[DocumentId, bytes]) -> dict[Identity, bytes]:
    """Return documents by what tells them apart for a server."""
    return {identity(document_id(document)): document for document in contents.values()}


@given(before=CALM, after=CALM, start=STARTS, shape=ANY_SHAPE, manner=MANNERS, cuts=CUTS)
def test_each_touched_document_becomes_the_sources_or_is_refused_by_name_and_no_other_is_changed(
    before: list[Step], after: list[Step], start: Start, shape: Shape, manner: Manner, cuts: list[float]
) -> None:
    async def run() -> None:
        case = await from_start(before, after, start, shape, manner)
        untouched = case.target.database.copy()
        await case.die(cuts)
        failures = await case.replay_what_fits(Life(None))
        refused = {(failure.namespace, identity(failure.write.id)) for failure in failures}
        for failure in failures:
            require_named(case, failure)
        touched = await touched_by(case)
        for namespace in {*touched, *untouched.collections}:
            source = keyed(case.recording.cluster.database.contents().get(namespace, {}))
            target = keyed(case.target.database.contents().get(namespace, {}))
            before_ = keyed(untouched.contents().get(namespace, {}))
            for key in {*source, *target, *before_}:
                wanted = source if key in touched.get(namespace, ()) else before_
                assert target.get(key) == wanted.get(key) or (namespace, key) in refused
        if refused:
            mend(case)
            await case.replay(Life(None))
            for namespace, keys in touched.items():
                assert {k: case.target.database.collections.get(namespace, {}).get(k) for k in keys} == {
                    k: case.recording.cluster.database.collections.get(namespace, {}).get(k) for k in keys
                }

    asyncio.run(run())


@given(before=WILD, after=WILD, start=STARTS, shape=ANY_SHAPE, manner=MANNERS, cuts=CUTS)
def test_with_drops_and_renames_it_ends_equal_or_what_is_in_the_way_is_named(
    before: list[Step], after: list[Step], start: Start, shape: Shape, manner: Manner, cuts: list[float]
) -> None:
    async def run() -> None:
        case = await from_start(before, after, start, shape, manner)
        await case.die(cuts)
        failures = await case.replay_what_fits(Life(None))
        for failure in failures:
            require_named(case, failure)
        if failures:
            mend(case)
            await case.replay(Life(None))
        report = await case.verify()
        if not report.is_equal:
            case.require_named(report)
            mend(case)
            report = await case.verify()
        assert report.is_equal, report.differences
        touched = await touched_by(case)
        source, target = case.recording.cluster.database, case.target.database
        for namespace in {*source.collections, *target.collections, *touched}:
            here, there = (keyed(side.contents().get(namespace, {})) for side in (source, target))
            if {namespace, Namespace(namespace.database)} & case.checkpoint.doubts.whole:
                assert here == there
            for key in touched.get(namespace, ()):
                assert here.get(key) == there.get(key)

    asyncio.run(run())
