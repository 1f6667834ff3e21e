"""A history, its log, and a target that is brought up to date: what the property tests of replay share."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hypothesis import note
from hypothesis import strategies as st

from d5agent.core.log.operation import Namespace
from d5agent.core.replay.pace import Pace
from d5agent.steps.compare.verifier import Verifier
from d5agent.steps.log.reader import LogReader
from d5agent.steps.replay.checkpoint import Checkpoint, load_checkpoint
from d5agent.steps.replay.replayer import Replayer
from tests.fakes.machine import FakeJournal
from tests.fakes.mortal import DiedError, Life, mortal
from tests.fakes.store import FakeStateStore
from tests.fakes.target import FakeReader, FakeTarget
from tests.property.histories import Recording, Step, shuffled, steps
from tests.property.shapes import SHAPES, SPARSE, Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.replay.replay import Failure

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
        """Apply what the last saved checkpoint has not; settle what is in doubt. Nothing is refused."""
        assert not await self.replay_what_fits(life)
        assert not self.checkpoint.doubts.documents

    async def replay_what_fits(self, life: Life) -> Sequence[Failure]:
        """The same into a target that may refuse: return what it does."""
        self.target.before_each = life.spend
        states = mortal(self.states, life)
        self.checkpoint = await load_checkpoint(states, RUN)
        reader = LogReader(store=mortal(self.recording.store, life))
        replayer = Replayer(
            reader=reader,
            target=mortal(self.target, life),
            target_reader=mortal(self.target, life),
            source=mortal(FakeReader(self.recording.cluster), life),
            states=states,
            journal=FakeJournal(),
            checkpoint=self.checkpoint,
            clock=self.recording.clock,
            pace=Pace(lanes=self.manner.lanes),
            window_bytes=self.manner.window_bytes,
        )
        await replayer.apply_log(reader.links())
        failures = await replayer.settle()
        self.target.before_each = lambda: None
        return failures

    async def die(self, cuts: Sequence[float], uncut: int | None = None, *, with_disk: bool = False) -> None:
        """Begin to replay, and die, once for each cut: the part of an undisturbed replay's calls that it lived.

        `with_disk`: each time the disk is lost as well, and the mirrors are all that is left.
        """
        uncut = uncut or await self.halves()
        for cut in cuts:
            with suppress(DiedError):  # a later life may be long enough for what an earlier one left
                await self.replay_what_fits(Life(int(cut * (uncut - 1))))
            if with_disk:
                self.states.lose_disk()

    async def halves(self) -> int:
        """Return how many moments there are to die in, from a run beside."""
        life = Life(None)
        beside = FakeTarget(self.target.database.copy(), shuffle=shuffled(self.manner.seed))
        await Rehearsal(recording=self.recording, target=beside, manner=self.manner).replay_what_fits(life)
        return life.spent

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
        if not report.is_equal:
            self.require_named(report)
            self.target.database.unique = dict(self.recording.cluster.database.unique)
            report = await self.verify()
        assert self.target.database.contents() == self.recording.cluster.database.contents()
        assert report.is_equal
        assert not report.differences

    def require_named(self, report: VerifyReport) -> None:
        """See that each difference is of a document that an index of the target alone refuses.

        A rename onto a collection takes that one's indexes away, unless what is renamed is not there: no document of
        it was ever told.
        """
        source, target = self.recording.cluster.database, self.target.database
        for difference in report.differences:
            document = source.find(difference.namespace, difference.id)
            assert document is not None
            assert target.unique.get(difference.namespace) != source.unique.get(difference.namespace)
            assert target.taken_index(difference.namespace, difference.id, document)


@dataclass(frozen=True, slots=True)
class Manner:
    """How a replay is done: a target that is slow or quick, a window that is small or large, a log of an old agent."""

    lanes: int
    window_bytes: int
    seed: int
    is_old_log: bool = False


async def rehearsal(
    before: list[Step],
    after: list[Step],
    manner: Manner,
    *,
    copied_at: float = 0.0,
    by_name: bool = False,
    shape: Shape = SPARSE,
) -> Rehearsal:
    """Let a history happen; the log begins after `before`. The target is what the source was at a moment of `after`."""
    recording = Recording(looks_up_by_name=by_name, shape=shape, cuts_at_barriers=manner.is_old_log)
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


MANNERS: Final = st.builds(
    Manner,
    st.integers(1, 4),
    st.sampled_from((1, 600, 2000, 1_000_000)),
    st.integers(0, 1000),
    st.sampled_from((False, False, True)),
)
COPIED_AT: Final = st.sampled_from((0.0, 0.5, 1.0))
CALM: Final = steps(barriers=0)
WILD: Final = steps(barriers=1)
CROWDED: Final = steps(barriers=12)
ANY_SHAPE: Final = st.sampled_from(SHAPES)
