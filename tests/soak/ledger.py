"""The writers' books, and what they say about a log: nothing lost, doubled, reordered or invented.

Each write has a running number that stands in the document (`n`), and an update adds one to the document's own
count (`v`). The number tells which write an event is; the count, which the database itself keeps, tells that no
update between two events is missing, whether its writer heard of it or not.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

NUMBERLESS: Final = frozenset({"delete", "drop"})
"""Events that carry no document, so no number: the first one in the log is the first one that was asked for."""


class Outcome(StrEnum):
    """What the writer knows of a write. Without an answer it may have happened or not; refused, it has not."""

    UNKNOWN = "unknown"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"


class Line(NamedTuple):
    """What has an order of its own: a document, or (no document) a collection as a whole."""

    namespace: str
    document: str = ""

    @override
    def __str__(self) -> str:
        """As a person would look for it."""
        return f"{self.namespace} {self.document}".rstrip()


@dataclass(slots=True, kw_only=True)
class Entry:
    """One write in the books."""

    number: int
    writer: int
    line: Line
    kind: str
    outcome: Outcome = Outcome.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Writes that were asked for together; atomic ones happen all or none."""

    entries: tuple[Entry, ...]
    is_atomic: bool

    def acknowledge(self) -> None:
        """Book that the database has said yes."""
        self._conclude(Outcome.ACKNOWLEDGED)

    def refuse(self) -> None:
        """Book that none of it can have happened: the transaction was never committed."""
        self._conclude(Outcome.REFUSED)

    def _conclude(self, outcome: Outcome) -> None:
        for entry in self.entries:
            entry.outcome = outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One event of the log: `number` and `version` as it carries them."""

    line: Line
    kind: str
    number: int | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where the log, or the database, does not agree with the books."""

    line: Line
    number: int
    what: str

    @override
    def __str__(self) -> str:
        """On one line."""
        return f"{self.line}: write {self.number} {self.what}"


@dataclass(slots=True)
class Ledger:
    """The books of all writers; they write into one event loop, so one count numbers all writes."""

    attempts: list[Attempt] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def attempt(self, writer: int, writes: Sequence[tuple[Line, str]], *, is_atomic: bool = False) -> Attempt:
        """Book writes that are about to be asked for: an answer that never comes finds them here."""
        entries = tuple(Entry(number=next(self._numbers), writer=writer, line=line, kind=kind) for line, kind in writes)
        self.attempts.append(Attempt(entries=entries, is_atomic=is_atomic))
        return self.attempts[-1]

    def entries(self) -> Iterator[Entry]:
        """Yield every write, in the order in which they were asked for."""
        return itertools.chain.from_iterable(attempt.entries for attempt in self.attempts)

    def count(self, outcome: Outcome) -> int:
        """Return how many writes ended like that."""
        return sum(entry.outcome is outcome for entry in self.entries())


def differences(ledger: Ledger, log: Iterable[Seen], database: Mapping[Line, int]) -> list[Difference]:
    """Return where the log does not hold what was acknowledged, in order; empty: it does.

    `database` is the number in each document as the database holds it at the end.
    """
    booked: dict[Line, list[Entry]] = defaultdict(list)
    for entry in ledger.entries():
        booked[entry.line].append(entry)
    logged: dict[Line, list[Seen]] = defaultdict(list)
    for event in log:
        logged[event.line].append(event)
    found: list[Difference] = []
    captured: set[int] = set()
    for line in booked.keys() | logged.keys():
        check = _LineCheck(line, booked.get(line, ()))
        found += check.differences(logged.get(line, ()))
        found += _differs_at_the_end(line, logged.get(line, ()), database.get(line))
        captured |= check.captured
    for line in database.keys() - logged.keys():
        found.append(
            Difference(line=line, number=database[line], what="is in the database, and nothing of it in the log")
        )
    found += itertools.chain.from_iterable(_halves(attempt, captured) for attempt in ledger.attempts)
    return sorted(found, key=lambda difference: (difference.number, difference.what))


class _LineCheck:
    """Follows the events of one line beside the books."""

    def __init__(self, line: Line, entries: Sequence[Entry]) -> None:
        self.captured: set[int] = set()
        self._line = line
        self._entries = entries
        self._numbered = {entry.number: entry for entry in entries if entry.kind not in NUMBERLESS}
        self._numberless = {
            kind: deque(e for e in entries if e.kind == kind and e.outcome is not Outcome.REFUSED)
            for kind in NUMBERLESS
        }
        self._newest: dict[int, int] = {}
        self._version: int | None = None

    def differences(self, events: Sequence[Seen]) -> Iterator[Difference]:
        for event in events:
            entry = self._entry_of(event)
            if entry is None:
                newest = event.number or max(self._newest.values(), default=0)
                yield self._difference(newest, f"or what follows it was invented: nobody asked for this {event.kind}")
                continue
            yield from self._compare(entry, event)
            self.captured.add(entry.number)
            self._newest[entry.writer] = max(entry.number, self._newest.get(entry.writer, 0))
        for entry in self._entries:
            if entry.outcome is Outcome.ACKNOWLEDGED and entry.number not in self.captured:
                yield self._difference(entry.number, f"was lost: an acknowledged {entry.kind}")

    def _entry_of(self, event: Seen) -> Entry | None:
        if event.kind in NUMBERLESS:
            queue = self._numberless[event.kind]
            return queue.popleft() if queue else None
        return self._numbered.get(event.number or 0)

    def _compare(self, entry: Entry, event: Seen) -> Iterator[Difference]:
        if entry.number in self.captured:
            yield self._difference(entry.number, f"was doubled: the log holds this {event.kind} again")
        elif entry.outcome is Outcome.REFUSED:
            yield self._difference(entry.number, f"was invented: this {event.kind} was given up by its writer")
        elif entry.kind != event.kind:
            yield self._difference(entry.number, f"was a {entry.kind}, the log has a {event.kind}")
        # A write without an answer may reach the database late; one with an answer was over before the next began.
        newest = self._newest.get(entry.writer, 0)
        if entry.outcome is Outcome.ACKNOWLEDGED and newest > entry.number:
            yield self._difference(entry.number, f"was reordered: the log has it after write {newest}")
        yield from self._count(entry, event)

    def _count(self, entry: Entry, event: Seen) -> Iterator[Difference]:
        expected = None if self._version is None else self._version + 1
        if event.kind == "update" and event.version != expected:
            yield self._difference(
                entry.number, f"does not follow: the document's count is {event.version}, {expected} comes next"
            )
        self._version = event.version

    def _difference(self, number: int, what: str) -> Difference:
        return Difference(line=self._line, number=number, what=what)


def _differs_at_the_end(line: Line, events: Sequence[Seen], number: int | None) -> Iterator[Difference]:
    """Compare the last event of a document with what the database holds."""
    if not line.document or not events:
        return
    last = events[-1]
    if last.number == number:
        return
    if number is None:
        yield Difference(line=line, number=last.number or 0, what="is where the log ends, the document is gone")
    else:
        ends = last.kind if last.number is None else f"write {last.number}"
        yield Difference(line=line, number=number, what=f"is what the database ends with, the log with {ends}")


def _halves(attempt: Attempt, captured: set[int]) -> Iterator[Difference]:
    """Find transactions of which the log holds only a part."""
    missing = [entry for entry in attempt.entries if entry.number not in captured]
    if attempt.is_atomic and 0 < len(missing) < len(attempt.entries):
        yield Difference(line=missing[0].line, number=missing[0].number, what="is missing from its transaction")
