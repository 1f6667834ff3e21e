"""Replay brings any target to what the source is, whatever happened, and wherever it was cut."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hypothesis import given, note
from hypothesis import strategies as st

from d5agent.core.operation import Namespace
from d5agent.steps.log_reader import LogReader
from d5agent.steps.replayer import CHECKPOINT, Checkpoint, Replayer, load_checkpoint
from d5agent.steps.verifier import Verifier
from tests.fakes.machine import FakeJournal
from tests.fakes.mortal import DiedError, Life, mortal
from tests.fakes.store import FakeStateStore
from tests.fakes.target import FakeReader, FakeTarget
from tests.property.histories import Recording, Step, shuffled, steps

if TYPE_CHECKING:
    from d5agent.core.report import VerifyReport

RUN: Final = "run"


@dataclass(slots=True, kw_only=True)
class Rehearsal:
    """A history, its log, and a target that is brought up to date, in one process after the other."""

    recording: Recording
    target: FakeTarget
    manner: Manner
    states: FakeStateStore = field(default_factory=FakeStateStore)
    checkpoint: Checkpoint = field(default_factory=lambda: Checkpoint(run_id=RUN))

    async def replay(self, life: Life) -> None:
        """Apply what the last saved checkpoint has not; settle what is in doubt."""
        self.target.before_each = life.spend
        states = mortal(self.states, life)
        self.checkpoint = await load_checkpoint(states, RUN)
        reader = LogReader(store=mortal(self.recording.store, life))
        replayer = Replayer(
            reader=reader,
            target=mortal(self.target, life),
            source=mortal(FakeReader(self.recording.cluster), life),
            states=states,
            journal=FakeJournal(),
            checkpoint=self.checkpoint,
            lanes=self.manner.lanes,
            window_bytes=self.manner.window_bytes,
        )
        await replayer.apply_log(reader.links())
        assert not await replayer.settle()
        assert not self.checkpoint.doubts.documents
        self.target.before_each = lambda: None

    async def verify(self) -> VerifyReport:
        """Compare what was touched, and repair it."""
        verifier = Verifier(
            source=FakeReader(self.recording.cluster),
            target=self.target,
            repair_into=self.target,
            clock=self.recording.clock,
            waiting_bytes=300,
        )
        reader = LogReader(store=self.recording.store)
        return await verifier.touched(reader, reader.links(), whole=self.checkpoint.doubts.whole)

    async def require_equal(self) -> None:
        """See that only what is in doubt as a whole needs repair; verify, and see for ourselves."""
        source, target = self.recording.cluster.database.contents(), self.target.database.contents()
        whole = self.checkpoint.doubts.whole
        for namespace in {*source, *target} - whole:
            if Namespace(namespace.database) not in whole:
                assert target.get(namespace) == source.get(namespace)
        report = await self.verify()
        assert self.target.database.contents() == self.recording.cluster.database.contents()
        assert report.is_equal
        assert not report.differences


@dataclass(frozen=True, slots=True)
class Manner:
    """How a replay is done: a target that is slow or quick, a window that is small or large."""

    lanes: int
    window_bytes: int
    seed: int


async def rehearsal(
    before: list[Step], after: list[Step], manner: Manner, *, copied_at: float = 0.0, by_name: bool = False
) -> Rehearsal:
    """Let a history happen; the log begins after `before`. The target is what the source was at a moment of `after`."""
    recording = Recording(looks_up_by_name=by_name)
    for step in before:
        if step.kind not in {"capture", "wait"}:
            await recording.do(step)
    recording.begin()
    copy = recording.cluster.database.copy()
    for number, step in enumerate(after):
        await recording.do(step)
        if number < copied_at * len(after):
            copy = recording.cluster.database.copy()
    await recording.finish()
    note(f"{recording.sequence} is the last commit, {len(recording.cluster)} events")
    target = FakeTarget(copy, shuffle=shuffled(manner.seed))
    return Rehearsal(recording=recording, target=target, manner=manner)


MANNERS: Final = st.builds(Manner, st.integers(1, 4), st.sampled_from((1, 600, 2000, 1_000_000)), st.integers(0, 1000))
COPIED_AT: Final = st.sampled_from((0.0, 0.5, 1.0))
CALM: Final = steps(with_barriers=False)
WILD: Final = steps(with_barriers=True)


@given(before=CALM, after=CALM, copied_at=COPIED_AT, manner=MANNERS)
def test_without_drops_and_renames_replay_needs_no_repair(
    before: list[Step], after: list[Step], copied_at: float, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, copied_at=copied_at)
        await case.replay(Life(None))
        assert case.target.database.contents() == case.recording.cluster.database.contents()
        report = await case.verify()
        assert not report.repaired
        assert report.is_equal

    asyncio.run(run())


@given(before=WILD, after=WILD, copied_at=COPIED_AT, manner=MANNERS)
def test_a_target_of_any_age_becomes_what_the_source_is(
    before: list[Step], after: list[Step], copied_at: float, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, copied_at=copied_at)
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())


@given(before=WILD, after=WILD, manner=MANNERS)
def test_a_look_up_that_finds_another_collection_of_the_same_name_does_no_harm(
    before: list[Step], after: list[Step], manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner, by_name=True)
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())


@given(before=WILD, after=WILD, cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3), manner=MANNERS)
def test_a_replay_that_is_killed_at_any_call_is_carried_on_to_the_same_end(
    before: list[Step], after: list[Step], cuts: list[float], manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner)
        uncut = await _halves_of(case)
        for cut in cuts:
            with suppress(DiedError):  # a later life may be long enough for what an earlier one left
                await case.replay(Life(int(cut * (uncut - 1))))
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())


async def _halves_of(case: Rehearsal) -> int:
    """Return how many moments there are to die in, from a run beside."""
    life = Life(None)
    beside = FakeTarget(case.target.database.copy(), shuffle=shuffled(case.manner.seed))
    await Rehearsal(recording=case.recording, target=beside, manner=case.manner).replay(life)
    return life.spent


@given(before=WILD, after=WILD, back=st.floats(0, 1), manner=MANNERS)
def test_a_replay_begun_again_from_any_earlier_checkpoint_ends_the_same(
    before: list[Step], after: list[Step], back: float, manner: Manner
) -> None:
    async def run() -> None:
        case = await rehearsal(before, after, manner)
        await case.replay(Life(None))
        saved = [value for name, value in case.states.history if name == CHECKPOINT]
        await case.states.save(CHECKPOINT, saved[int(back * (len(saved) - 1))])
        await case.replay(Life(None))
        await case.require_equal()

    asyncio.run(run())
