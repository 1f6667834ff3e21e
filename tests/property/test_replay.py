"""Replay brings any target to what the source is, whatever happened, and wherever it was cut."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from d5agent.steps.replay.checkpoint import CHECKPOINT
from tests.fakes.mortal import Life
from tests.fakes.target import FakeTarget
from tests.property.histories import shuffled
from tests.property.rehearsal import ANY_SHAPE, CALM, COPIED_AT, CROWDED, MANNERS, WILD, Manner, rehearsal

if TYPE_CHECKING:
    import random

    from d5agent.core.log.operation import Namespace
    from d5agent.core.replay.replay import Barrier
    from tests.fakes.documents import FakeDatabase
    from tests.property.histories import Step
    from tests.property.shapes import Shape


@given(before=CALM, after=CALM, copied_at=COPIED_AT, shape=ANY_SHAPE, manner=MANNERS)
def test_without_drops_and_renames_replay_needs_no_repair(
    before: list[Step], after: list[Step], copied_at: float, shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, copied_at=copied_at, shape=shape)
        await case.replay(Life(None))
        assert case.target.database.contents() == case.recording.cluster.database.contents()
        report = await case.verify()
        assert not report.repaired
        assert report.is_equal

    asyncio.run(run())


@given(before=WILD, after=WILD, copied_at=COPIED_AT, shape=ANY_SHAPE, manner=MANNERS)
def test_a_target_of_any_age_becomes_what_the_source_is(
    before: list[Step], after: list[Step], copied_at: float, shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, copied_at=copied_at, shape=shape)
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())


@given(before=WILD, after=WILD, shape=ANY_SHAPE, manner=MANNERS)
def test_a_look_up_that_finds_another_collection_of_the_same_name_does_no_harm(
    before: list[Step], after: list[Step], shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, by_name=True, shape=shape)
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())


@given(before=WILD, after=WILD, cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3), shape=ANY_SHAPE, manner=MANNERS)
def test_a_replay_that_is_killed_at_any_call_is_carried_on_to_the_same_end(
    before: list[Step], after: list[Step], cuts: list[float], shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, shape=shape)
        await case.die(cuts)
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())


@given(before=WILD, after=WILD, back=st.floats(0, 1), shape=ANY_SHAPE, manner=MANNERS)
def test_a_replay_begun_again_from_any_earlier_checkpoint_ends_the_same(
    before: list[Step], after: list[Step], back: float, shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, shape=shape)
        await case.replay(Life(None))
        saved = [value for name, value in case.states.history if name == CHECKPOINT]
        await case.states.save(CHECKPOINT, saved[int(back * (len(saved) - 1))])
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())


class _Watched(FakeTarget):
    """Notes which collections a rename should have replaced and did not, since what is renamed was never written.

    All that was told of it was in doubt. Only what stood there before may be left: that is for the repair.
    """

    def __init__(self, database: FakeDatabase, *, shuffle: random.Random) -> None:
        super().__init__(database, shuffle=shuffle)
        self.spared: set[Namespace] = set()

    @override
    async def apply(self, barrier: Barrier) -> None:
        origin, to = barrier.namespace, barrier.rename_to
        is_spared = to is not None and (origin not in self.database.collections or origin in self.spared)
        self.spared -= {origin, to}
        if to is not None and is_spared:
            self.spared.add(to)
        await super().apply(barrier)


@given(before=WILD, after=WILD, cuts=st.lists(st.floats(0, 1), max_size=2), shape=ANY_SHAPE, manner=MANNERS)
def test_drops_and_renames_need_no_repair_where_the_log_tells_all(
    before: list[Step], after: list[Step], cuts: list[float], shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, shape=shape)
        case.target = watched = _Watched(case.target.database, shuffle=shuffled(manner.seed))
        await case.die(cuts)
        await case.replay(Life(None))
        source, target = case.recording.cluster.database.contents(), watched.database.contents()
        for namespace in {*source, *target} - watched.spared:
            assert target.get(namespace) == source.get(namespace)

    asyncio.run(run())


@given(
    before=WILD, after=CROWDED, cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4), shape=ANY_SHAPE, manner=MANNERS
)
def test_crowded_barriers_are_exact_wherever_replay_dies(
    before: list[Step], after: list[Step], cuts: list[float], shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, shape=shape)
        case.target = watched = _Watched(case.target.database, shuffle=shuffled(manner.seed))
        await case.die(cuts)
        await case.replay(Life(None))
        source, target = case.recording.cluster.database.contents(), watched.database.contents()
        for namespace in {*source, *target} - watched.spared:
            assert target.get(namespace) == source.get(namespace)
        await case.require_equal()

    asyncio.run(run())


@given(
    before=WILD, after=CROWDED, cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3), shape=ANY_SHAPE, manner=MANNERS
)
def test_replay_from_an_old_mirror_ends_equal_after_comparison(
    before: list[Step], after: list[Step], cuts: list[float], shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, shape=shape)
        await case.die(cuts, with_disk=True)
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())


@given(before=WILD, after=CROWDED, back=st.floats(0, 1), shape=ANY_SHAPE, manner=MANNERS)
def test_only_renamed_names_need_comparison_after_a_repeated_replay(
    before: list[Step], after: list[Step], back: float, shape: Shape, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, shape=shape)
        await case.replay(Life(None))
        saved = [value for name, value in case.states.history if name == CHECKPOINT]
        await case.states.save(CHECKPOINT, saved[int(back * (len(saved) - 1))])
        await case.replay(Life(None))
        renamed = {op.rename_to for op in case.recording.cluster.operations() if op.rename_to is not None}
        assert case.checkpoint.doubts.whole <= renamed
        await case.require_equal()

    asyncio.run(run())
