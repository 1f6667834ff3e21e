"""The soak's check finds what it is there for: each way in which a log can differ from the writers' books."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soak.ledger import Attempt, Ledger, Line, Seen, differences
from tests.soak.plan import Moment, Trouble, plan

A, B, HOT = Line("shop.own", "a"), Line("shop.own", "b"), Line("shop.hot", "0")
SCRATCH = Line("shop.scratch")


class Books:
    """A ledger, and the log and the database as they are if nothing goes wrong."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.log: list[Seen] = []
        self.database: dict[Line, int] = {}
        self._versions: dict[Line, int] = {}

    def write(self, writer: int, *writes: tuple[Line, str], is_atomic: bool = False) -> Attempt:
        """Book writes, acknowledge and capture them."""
        attempt = self.ledger.attempt(writer, writes, is_atomic=is_atomic)
        attempt.acknowledge()
        self.capture(attempt)
        return attempt

    def capture(self, attempt: Attempt) -> None:
        for entry in attempt.entries:
            line, kind = entry.line, entry.kind
            self._versions[line] = self._versions.get(line, 0) + 1 if kind == "update" else 0
            if kind in {"delete", "drop"}:
                self.log.append(Seen(line=line, kind=kind))
                self.database.pop(line, None)
            else:
                self.log.append(Seen(line=line, kind=kind, number=entry.number, version=self._versions[line]))
                if line.document:
                    self.database[line] = entry.number

    def found(self) -> list[str]:
        return [str(difference) for difference in differences(self.ledger, self.log, self.database)]


@pytest.fixture
def books() -> Books:
    """Two writers' documents, one that both share, a transaction, and a collection dropped and filled again."""
    made = Books()
    made.write(0, (HOT, "insert"))
    made.write(1, (A, "insert"))
    made.write(1, (A, "update"))
    made.write(2, (B, "insert"))
    made.write(2, (HOT, "update"))
    made.write(1, (HOT, "update"))
    made.write(1, (A, "replace"))
    made.write(2, (B, "update"), (B, "update"), (B, "update"), is_atomic=True)
    made.write(1, (A, "delete"))
    made.write(1, (A, "insert"))
    made.write(2, (SCRATCH, "insert"), (SCRATCH, "insert"))
    made.write(2, (SCRATCH, "drop"))
    made.write(2, (SCRATCH, "insert"))
    made.write(2, (HOT, "update"))
    made.write(1, (A, "update"))
    return made


def _first_index(books: Books, line: Line, kind: str) -> int:
    return next(at for at, event in enumerate(books.log) if (event.line, event.kind) == (line, kind))


def test_a_log_that_holds_everything_in_order_agrees(books: Books) -> None:
    assert books.found() == []


def test_each_lost_event_is_found(books: Books) -> None:
    whole = books.log
    for at in range(len(whole)):
        books.log = whole[:at] + whole[at + 1 :]
        assert any("was lost" in line for line in books.found()), whole[at]


def test_each_doubled_event_is_found(books: Books) -> None:
    whole = books.log
    for at, event in enumerate(whole):
        for place in range(at, len(whole)):
            books.log = [*whole[: place + 1], event, *whole[place + 1 :]]
            assert any("was doubled" in line or "was invented" in line for line in books.found()), event


def test_each_exchange_of_neighbours_is_found(books: Books) -> None:
    whole = books.log
    exchanged = 0
    for at, event in enumerate(whole):
        for other in range(at + 1, len(whole)):
            if whole[other].line == event.line:
                books.log = [*whole[:at], whole[other], *whole[at + 1 : other], event, *whole[other + 1 :]]
                assert books.found(), (event, whole[other])
                exchanged += 1
                break
    assert exchanged > 10


def test_events_of_different_documents_have_no_order(books: Books) -> None:
    books.log.sort(key=lambda event: event.line)
    assert books.found() == []


def test_the_order_of_a_shared_document_is_its_own_count(books: Books) -> None:
    first, second = (at for at, event in enumerate(books.log) if event.line == HOT and event.version in {1, 2})
    books.log[first], books.log[second] = books.log[second], books.log[first]
    assert books.found()[0] == "shop.hot 0: write 5 does not follow: the document's count is 1, 3 comes next"


@pytest.mark.parametrize("line", [A, Line("shop.own", "nobody's")])
@pytest.mark.parametrize("kind", ["insert", "update", "replace", "delete", "drop"])
def test_an_event_that_nobody_asked_for_is_found(books: Books, line: Line, kind: str) -> None:
    books.log.append(Seen(line=line, kind=kind, number=None if kind in {"delete", "drop"} else 99, version=9))
    assert any(f"was invented: nobody asked for this {kind}" in found for found in books.found())


def test_an_event_of_another_kind_is_found(books: Books) -> None:
    at = _first_index(books, A, "replace")
    books.log[at] = replace(books.log[at], kind="insert")
    assert books.found() == ["shop.own a: write 7 was a replace, the log has a insert"]


def test_a_write_without_an_answer_may_be_there_or_not(books: Books) -> None:
    attempt = books.ledger.attempt(1, [(A, "update")])
    assert books.found() == []
    books.capture(attempt)
    assert books.found() == []


def test_a_write_without_an_answer_may_come_late_but_not_before_what_was_over(books: Books) -> None:
    late = books.ledger.attempt(2, [(HOT, "update")])
    books.write(2, (HOT, "update"))
    books.capture(late)
    assert books.found() == []
    (at,) = (at for at, event in enumerate(books.log) if event.number == late.entries[0].number)
    event = books.log.pop(at)
    books.log.insert(1, event)
    assert any("was reordered" in found for found in books.found())


def test_a_write_without_an_answer_that_the_database_has_must_be_in_the_log(books: Books) -> None:
    attempt = books.ledger.attempt(1, [(A, "update")])
    books.database[A] = attempt.entries[0].number
    assert books.found() == ["shop.own a: write 19 is what the database ends with, the log with write 18"]


def test_a_document_that_only_the_database_has_is_found(books: Books) -> None:
    attempt = books.ledger.attempt(1, [(Line("shop.own", "c"), "insert")])
    books.database[attempt.entries[0].line] = attempt.entries[0].number
    assert books.found() == ["shop.own c: write 19 is in the database, and nothing of it in the log"]


def test_a_document_that_the_database_has_no_more_is_found(books: Books) -> None:
    del books.database[B]
    assert books.found() == ["shop.own b: write 10 is where the log ends, the document is gone"]


def test_a_transaction_that_was_given_up_must_not_be_in_the_log(books: Books) -> None:
    attempt = books.ledger.attempt(1, [(A, "update"), (A, "update")], is_atomic=True)
    attempt.refuse()
    assert books.found() == []
    books.capture(attempt)
    assert [found for found in books.found() if "was invented: this update was given up" in found]


def test_half_a_transaction_is_found_although_its_answer_was_lost(books: Books) -> None:
    attempt = books.ledger.attempt(1, [(A, "update"), (A, "update")], is_atomic=True)
    books.capture(attempt)
    assert books.found() == []
    books.log.pop()
    books.database[A] = attempt.entries[0].number
    assert books.found() == ["shop.own a: write 20 is missing from its transaction"]


def test_a_gap_without_an_answer_is_found_by_the_documents_own_count(books: Books) -> None:
    silent = books.ledger.attempt(1, [(HOT, "update")])
    books.capture(silent)
    books.write(2, (HOT, "update"))
    assert books.found() == []
    books.log = [event for event in books.log if event.number != silent.entries[0].number]
    assert books.found() == ["shop.hot 0: write 20 does not follow: the document's count is 5, 4 comes next"]


def test_a_seed_gives_the_same_plan_again_and_another_seed_another() -> None:
    assert plan(5, kills=20, loses_disks=True) == plan(5, kills=20, loses_disks=True)
    assert plan(5, kills=20, loses_disks=True).lives != plan(6, kills=20, loses_disks=True).lives


def test_plans_hold_every_end_and_every_trouble() -> None:
    long = plan(1, kills=300, loses_disks=True)
    assert long.kills == 300
    assert {life.moment for life in long.lives} == set(Moment)
    assert {life.fault.trouble for life in long.lives if life.fault} == set(Trouble)
    assert 0 < sum(not life.is_killed for life in long.lives) < 100
    assert 0 < sum(life.loses_disk for life in long.lives) < 30
    after_loss = [after for before, after in zip(long.lives, long.lives[1:], strict=False) if before.loses_disk]
    assert {life.moment for life in after_loss} == {Moment.ANSWERING}
    assert not any(life.loses_disk for life in plan(1, kills=300, loses_disks=False).lives)
