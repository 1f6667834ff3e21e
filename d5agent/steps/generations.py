"""Compares while the source is still written to: generation by generation, so that little is left for the cutover.

What changes after a generation has compared it stands in a later commit, and is compared again. So a document that was
found equal needs no second look, and one that was not is carried to the next generation (ADR 21).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.replay import Doubts
from d5agent.core.report import VerifyReport
from d5agent.steps.verifier import ROUNDS, Verifier

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from d5agent.core.log import Link
    from d5agent.core.operation import Namespace
    from d5agent.ports import Clock, DocumentReader, StateStore, Target
    from d5agent.steps.log_reader import LogReader

COMPARED: Final = "restore_compared"
"""The state that holds how far the documents are compared."""

_VERSION: Final = 1


@dataclass(slots=True, kw_only=True)
class Generations:
    """The comparison of one restore. What it has compared is saved, so that a restart does not begin anew."""

    reader: LogReader
    states: StateStore
    source: DocumentReader
    target: DocumentReader
    repair_into: Target
    clock: Clock
    waiting_bytes: int
    run_id: str
    on_progress: Callable[[VerifyReport], None] = lambda _: None
    number: int = 0
    report: VerifyReport = field(default_factory=lambda: VerifyReport(scope="touched"))
    _again: Doubts = field(default_factory=Doubts)
    _sequence: int = -1
    _last: Link | None = None

    async def load(self, *, applied: int) -> None:
        """Take what an earlier start has compared of the commits up to `applied`, which the target holds."""
        self.report.run_id = self.run_id
        value = await self.states.load(COMPARED)
        is_ours = value is not None and value.get("version") == _VERSION and value.get("run_id") == self.run_id
        if value is None or not is_ours or value["sequence"] > applied:
            return  # compared anew: that is always right
        self._sequence, self._again = value["sequence"], Doubts.from_json(value["again"])
        for name, compared in value["namespaces"].items():
            self.report.count(name, compared)

    @property
    def carried(self) -> int:
        """How many documents differed when they were last compared."""
        return len(self._again)

    @property
    def carries_whole(self) -> bool:
        """Whether so many differed that whole collections are to be compared again."""
        return bool(self._again.whole)

    async def compare(self, upto: Link) -> None:
        """Compare what the commits after the last generation touched, up to one, and what is carried.

        Without repair: it could put an older state over a newer one while both sides are written to.
        """
        if upto.commit.sequence <= self._sequence and not (self._again.documents or self._again.whole):
            return
        verifier = self._verifier(repair_into=None, rounds=1)
        again, self._again = self._again, Doubts()
        await verifier.compare_again(again)
        await verifier.touched(self.reader, self._links(upto), (), with_facts=False)
        self._again = self.report.take_differences()
        self._sequence = upto.commit.sequence
        self.number += 1
        await self._save()

    async def conclude(self, whole: set[Namespace], *, applied: int) -> VerifyReport:
        """Compare the rest, with repair: nobody writes any more. `whole`: namespaces to compare whole.

        `applied`: the last commit that the target was brought up to.

        May be called again when operations came in meanwhile.
        """
        self.report.sequence = applied
        self._forget()
        verifier = self._verifier(repair_into=self.repair_into)
        await verifier.touched(self.reader, self._links(None), whole)
        if self.report.is_equal and verifier.repairer is not None and verifier.repairer.has_written:
            await self._look_again(whole)
        return self.report

    def _forget(self) -> None:
        """Let all commits be compared again: what was equal once may have changed in the target since."""
        self._sequence, self._last, self._again = -1, None, Doubts()
        self.report.begin_again()

    async def _look_again(self, whole: set[Namespace]) -> None:
        """Compare everything once more without repair: a repair may have changed other documents of the target."""
        report = VerifyReport(scope="touched", run_id=self.run_id)
        verifier = self._verifier(repair_into=None, report=report)
        await verifier.touched(self.reader, self.reader.links(), whole, with_facts=False)
        self.report.is_unstable |= not report.is_equal
        self.report.take_from(report)

    def _verifier(
        self, *, repair_into: Target | None, rounds: int = ROUNDS, report: VerifyReport | None = None
    ) -> Verifier:
        return Verifier(
            source=self.source,
            target=self.target,
            repair_into=repair_into,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            rounds=rounds,
            on_progress=self.on_progress,
            report=report or self.report,
        )

    async def _links(self, upto: Link | None) -> AsyncGenerator[Link]:
        """Yield the commits that are not compared yet, up to one; None: all."""
        async for link in self.reader.links(after=self._last):
            if upto is not None and link.commit.sequence > upto.commit.sequence:
                return
            if link.commit.sequence > self._sequence:
                yield link
            self._last = link

    async def _save(self) -> None:
        value = {
            "version": _VERSION,
            "run_id": self.run_id,
            "sequence": self._sequence,
            "again": self._again.to_json(),
            "namespaces": {name: tally.compared for name, tally in sorted(self.report.namespaces.items())},
        }
        await self.states.save(COMPARED, value)
