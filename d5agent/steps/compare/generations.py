"""Compares while the source is still written to: generation by generation, so that little is left for the cutover.

What changes in the source after a generation has compared it stands in a later commit, what changes in the target is
seen by the watch: both are compared again. So a document that was found equal needs no second look, and one that was
not is carried to the next generation. Where the target cannot be watched, all is compared after the fence (ADR 37).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from d5agent.core.compare.changed import Changed
from d5agent.core.compare.comparison import Comparison, Part
from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.chain import token_from_json, token_to_json
from d5agent.core.log.operation import Namespace
from d5agent.core.replay.replay import Unresolved
from d5agent.errors import OperatorError
from d5agent.steps.compare.touched import seen_in, touched_among
from d5agent.steps.compare.verifier import ROUNDS, Verifier
from d5agent.steps.log.reader import link_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from collections.abc import Set as AbstractSet

    from d5agent.core.log.chain import Link
    from d5agent.ports import Clock, DocumentReader, StateStore, Target
    from d5agent.steps.compare.difference_resolver import Keep
    from d5agent.steps.compare.target_watch import TargetWatch
    from d5agent.steps.log.reader import LogReader

COMPARED: Final = "restore_compared"
"""The state that holds how far the documents are compared."""

_VERSION: Final = 1
_LOOKS: Final = 20  # at what was written to the target while the last comparison ran


@dataclass(slots=True, kw_only=True)
class Generations:
    """The comparison of one restore. What it has compared is saved, so that a restart does not begin anew.

    `keep`: stores documents of the target before a repair overwrites or deletes them.
    """

    reader: LogReader
    states: StateStore
    source: DocumentReader
    target: DocumentReader
    repair_into: Target
    clock: Clock
    waiting_bytes: int
    run_id: str
    watch: TargetWatch
    keep: Keep | None = None
    on_progress: Callable[[VerifyReport], None] = lambda _: None
    number: int = 0
    comparison: Comparison = field(default_factory=Comparison)
    report: VerifyReport = field(default_factory=lambda: VerifyReport(scope="touched"))
    _again: Unresolved = field(default_factory=Unresolved)
    _sequence: int = -1
    _last: Link | None = None

    async def load(self, *, applied: int) -> None:
        """Take what an earlier start has compared of the commits up to `applied`, which the target holds."""
        self.report.run_id = self.run_id
        value = await self.states.load(COMPARED)
        is_ours = value is not None and value.get("version") == _VERSION and value.get("run_id") == self.run_id
        if value is None or not is_ours or value["sequence"] > applied:
            return  # compared anew: that is always right
        position = token_from_json(value.get("watched"))
        if position is None:
            return  # nobody knows what was written to the target since
        self.watch.position, self.watch.since = position, value["watched_since"]
        self.comparison = Comparison.parts_from_json(value["parts"])
        self._sequence, self._again = value["sequence"], Unresolved.from_json(value["again"])
        self._last = await link_of(self.reader.store, self._sequence)
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

    async def compare(self, upto: Link, whole: AbstractSet[Namespace] = frozenset()) -> None:
        """Compare what the commits after the last generation touched, up to one, and what is carried.

        `whole`: namespaces that count whole, as far as the log has moved names.
        Without repair: it could put an older state over a newer one while both sides are written to.
        """
        if upto.commit.sequence <= self._sequence and not (self._again.documents or self._again.whole):
            return
        changed = await self._changed_since()
        began = self._now(), self.report.compared
        verifier = self._verifier(repair_into=None, rounds=1, changed=changed)
        again, self._again = self._again, Unresolved()
        await verifier.compare_again(again)
        await verifier.touched(self.reader, self._links(upto), (), with_facts=False)
        await self._compare_changed(verifier, whole)
        self._again = self.report.take_differences()
        self._note(began, last=upto.commit.sequence)
        self._sequence = upto.commit.sequence
        self.number += 1
        await self._save()

    async def conclude(self, whole: AbstractSet[Namespace], *, applied: int) -> VerifyReport:
        """Compare the rest, with repair: nobody writes any more. `whole`: namespaces to compare whole.

        `applied`: the last commit that the target was brought up to. After any repair everything is compared once more
        without it; at the end nothing was written to the target since it was compared.

        May be called again when operations came in meanwhile.
        """
        self.report.sequence, self.report.is_unstable = applied, False
        changed = await self._changed_since()
        began = self._now(), self.report.compared
        verifier = self._verifier(repair_into=self.repair_into, changed=changed)
        again, self._again = self._again, Unresolved()
        # Of what a generation has compared, nothing needs to be compared whole: each document was looked at.
        await verifier.compare_again(again)
        await verifier.touched(self.reader, self._links(None), whole if self._sequence < 0 else ())
        await self._compare_changed(verifier, whole)
        self._note(began, last=applied)
        has_written = verifier.repairer is not None and verifier.repairer.has_written
        if self.report.is_equal and (has_written or self.report.capped):
            await self._look_again(whole)
        if self.report.is_equal:
            await self._prove_unchanged(whole)
        return self.report

    def _note(self, began: tuple[str, int], *, last: int) -> None:
        """Note when a part was compared: when it began, and how many documents had been compared before."""
        at, before = began
        documents = self.report.compared - before
        part = Part(first=self._sequence + 1, last=last, documents=documents, began_at=at, ended_at=self._now())
        self.comparison.add(part)

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="milliseconds")

    async def _changed_since(self) -> Changed:
        """Return what was written to the target since the last look; where nobody can say, all is to be compared."""
        position = self.watch.position
        changed = await self.watch.look()
        if changed is not None and changed.is_full:
            # Mostly replay wrote that, from commits which are compared next in any case.
            self.watch.position = position
            changed = await self.watch.look(await seen_in(self.reader, after=self._last, beyond=self._sequence))
        if changed is None or changed.is_full:
            self._forget()
            await self.watch.begin()
            return Changed()
        return changed

    async def _compare_changed(self, verifier: Verifier, whole: AbstractSet[Namespace]) -> None:
        """Compare what was written to the target, and was not compared since: by the agent itself, or by others."""
        await self._refuse_moves(verifier.changed, whole)
        found = await self._differing(verifier.changed, whole)
        if found.documents:
            await verifier.compare_again(found)
            await verifier.settle_repairs()

    async def _refuse_moves(self, changed: Changed, whole: AbstractSet[Namespace]) -> None:
        """Raise when somebody has dropped or renamed a collection that was compared; another start compares it all."""
        moved = changed.moved_within({*self._compared(), *whole})
        if not moved:
            return
        self._forget()
        self.watch.position = None
        await self._save()
        raise OperatorError(
            "somebody dropped or renamed a collection of the target that restore had written",
            hint="find out who, and take the right away; then type: d5agent start restore, which compares everything "
            "again and repairs it from the source",
            names=", ".join(map(str, moved)),
        )

    async def _differing(self, changed: Changed, whole: AbstractSet[Namespace]) -> Unresolved:
        """Return those documents that differ now, without what the log does not touch: that is not restore's."""
        documents = changed.within({*self._compared(), *whole})
        report = VerifyReport(scope="touched", run_id=self.run_id)
        verifier = self._verifier(repair_into=None, rounds=1, report=report)
        found = (await verifier.compare_again(Unresolved(documents=documents))).take_differences().documents
        if not found:
            return Unresolved()
        touched = await touched_among(self.reader, found)
        is_whole = {name for name in found if name in whole or Namespace(name.database) in whole}
        return Unresolved(documents={**touched, **{name: found[name] for name in is_whole}})

    async def _prove_unchanged(self, whole: AbstractSet[Namespace]) -> None:
        """See that nothing was written to the target since it was compared; compare what was, without repair."""
        self.comparison.why_not_watched = self.watch.why_not
        if self.watch.position is None:
            return
        for _ in range(_LOOKS):
            changed = await self.watch.look()
            if changed is None or changed.is_full:
                await self._look_again(whole)
            else:
                await self._refuse_moves(changed, whole)
                if not changed.within({*self._compared(), *whole}):
                    await self.watch.end()
                    self.comparison.watched_since, self.comparison.unchanged_at = self.watch.since, self._now()
                    return
                await self._tell(await self._differing(changed, whole))
            if changed is None or not self.report.is_equal:
                self.comparison.why_not_watched = self.watch.why_not
                return
        raise OperatorError(
            "somebody keeps writing to the documents of the target that restore compares",
            hint="find out who (db.currentOp() on MongoDB), and take the right away; then type: d5agent start restore",
            looks=_LOOKS,
        )

    async def _tell(self, found: Unresolved) -> None:
        """Report documents that differ although they were equal before."""
        if found.documents:
            report = VerifyReport(scope="touched", run_id=self.run_id)
            await self._verifier(repair_into=None, report=report).compare_again(found)
            self._take_unstable(report)

    def _compared(self) -> set[Namespace]:
        """Return the collections of which documents were compared."""
        parts = (name.partition(".") for name in self.report.namespaces)
        return {Namespace(database, collection) for database, _, collection in parts}

    def _forget(self) -> None:
        """Let all commits be compared again: what was equal once may have changed in the target since."""
        self._sequence, self._last, self._again, self.comparison = -1, None, Unresolved(), Comparison()
        self.report.begin_again()

    async def _look_again(self, whole: AbstractSet[Namespace]) -> None:
        """Compare everything once more without repair: a repair may have changed other documents of the target."""
        report = VerifyReport(scope="touched", run_id=self.run_id)
        verifier = self._verifier(repair_into=None, report=report)
        await verifier.touched(self.reader, self.reader.links(), whole, with_facts=False)
        self.comparison.final_pass = self._now()
        self._take_unstable(report)

    def _take_unstable(self, report: VerifyReport) -> None:
        self.report.is_unstable |= not report.is_equal
        self.report.take_from(report)

    def _verifier(
        self,
        *,
        repair_into: Target | None,
        rounds: int = ROUNDS,
        report: VerifyReport | None = None,
        changed: Changed | None = None,
    ) -> Verifier:
        return Verifier(
            source=self.source,
            target=self.target,
            repair_into=repair_into,
            clock=self.clock,
            waiting_bytes=self.waiting_bytes,
            rounds=rounds,
            on_progress=self.on_progress,
            report=self.report if report is None else report,
            changed=Changed() if changed is None else changed,
            keep=self.keep,
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
            "watched": token_to_json(self.watch.position),
            "watched_since": self.watch.since,
            "parts": self.comparison.to_json()["parts"],
            "namespaces": {name: tally.compared for name, tally in sorted(self.report.namespaces.items())},
        }
        await self.states.save(COMPARED, value)
