"""What a plan says on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.log.operation import Namespace
from d5agent.core.plan.estimate import Estimate
from d5agent.core.plan.plan import Named, Plan, Row, UniqueConflict
from d5agent.screen.plan import plan_table
from tests.fakes.documents import raw_id

ORDERS = Namespace("shop", "or[d]ers")


def shown(plan: Plan) -> str:
    """Return the text, its blanks and lines joined."""
    plan.estimate = plan.estimate or Estimate(
        reading_seconds=20, writing_seconds=180, comparing_seconds=5, basis=("reading: measured [x]",)
    )
    values: dict[str, Any] = plan.to_json()
    console = Console(width=300, highlight=False)
    with console.capture() as captured:
        console.print(plan_table(values))
    return " ".join(captured.get().split())


def differing(number: int, kind: DifferenceKind = DifferenceKind.DIFFERENT) -> Difference:
    fields = ("a", "b") if kind is DifferenceKind.DIFFERENT else ()
    return Difference(namespace=ORDERS, id=raw_id(number), kind=kind, fields=fields)


def test_a_plan_without_anything_to_look_at_is_a_table_an_estimate_and_a_verdict() -> None:
    text = shown(Plan(operations=1_234, bytes=5_000, rows={ORDERS: Row(inserts=3, documents=2, equal=1, insert=1)}))
    assert "restore would apply 1,234 operations, 4.9 KiB" in text
    assert "shop.or[d]ers │ 3/0/0/0" in text
    assert "about 3 min 25 s: reading 20 s, writing 3 min, comparing 5 s" in text
    assert "reading: measured [x]" in text
    assert text.endswith("nothing stands in the way")
    for word in ("conflicts", "documents that would be", "renames", "undelivered"):
        assert word not in text


def test_a_plan_says_what_nobody_has_looked_at() -> None:
    text = shown(Plan())
    assert "looked at: documents that the log touches, as they are on both sides now not looked at: whether" in text
    assert "DMS had delivered MongoDB's last write to each document that would be overwritten" in text
    assert "to look at both: d5agent plan --divergence" in text


def test_a_plan_with_divergence_says_what_it_cannot_find() -> None:
    plan = Plan(divergence=Named(), undelivered=Named())
    text = shown(plan)
    assert "also for writes in MongoDB that DMS had not delivered, and all other documents" in text
    assert "not looked at: undelivered writes to fields that were written on DocumentDB, too" in text
    assert "--divergence" not in text
    assert "drops or renames" not in text
    plan.whole = {ORDERS: None, Namespace("old"): None}
    assert "undelivered writes in what the log drops or renames: old, shop.or[d]ers" in shown(plan)


def test_what_stands_in_the_way_is_named() -> None:
    plan = Plan()
    conflict = {"namespace": ORDERS, "index": "u_1", "value": '{"u": [1]}', "is_written": False}
    plan.conflicts.add(UniqueConflict(id=raw_id(1), holder=raw_id(2), **conflict))  # type: ignore[arg-type]  # its fields
    event = {"kind": "shuffle", "namespace": str(ORDERS), "to": None, "sequence": 7, "cluster_time": [5, 6], "key": "k"}
    plan.unknown.add(event)
    text = shown(plan)
    assert 'unique indexes foreseen: 1 shop.or[d]ers u_1 {"u": [1]}: 1 and 2 (in the target, and not touched)' in text
    assert "operations of a type that nobody knows how to apply: 1 shuffle shop.or[d]ers: commit 7, at 5-6" in text
    assert "restore would not get through:" in text
    assert "type 'shuffle' cannot be replayed: commit 7" in text
    assert "conflicts of unique indexes are foreseen: 1" in text


def test_drops_and_renames_are_named_with_their_position() -> None:
    plan = Plan()
    plan.events.add(
        {"kind": "rename", "namespace": "a.b", "to": "a.c", "sequence": 3, "cluster_time": [5, 6], "key": "k"}
    )
    assert "drops and renames, in order: 1 rename a.b to a.c: commit 3, at 5-6" in shown(plan)


def test_overwrites_are_named_and_those_that_surprise_are_marked() -> None:
    plan = Plan()
    plan.differs(differing(1))
    plan.differs(differing(2), is_new=True)
    text = shown(plan)
    assert "would be overwritten, 1 of them inserted during the outage and yet in the target: 2 shop" in text
    assert "shop.or[d]ers 2: a, b (inserted during the outage, and yet in the target) shop.or[d]ers 1: a, b" in text


def test_of_a_long_list_the_first_twenty_are_shown_and_the_rest_counted() -> None:
    plan = Plan(divergence=Named())
    assert plan.divergence is not None
    for number in range(1_234):
        plan.divergence.add(differing(number, list(DifferenceKind)[number % 3]))
    text = shown(plan)
    assert "documents that the outage did not touch, and that differ: 1,234 shop" in text
    assert "ers 0: only in the source shop.or[d]ers 1: only in the target shop.or[d]ers 2: differs: a, b" in text
    assert "shop.or[d]ers 19:" in text
    assert "shop.or[d]ers 20:" not in text
    assert "… and 1,214 more: in the report" in text


def test_no_divergence_is_said_when_it_was_asked_for() -> None:
    assert "the outage did not touch, and that differ: 0" in shown(Plan(divergence=Named()))


def test_indexes_and_notes_are_shown() -> None:
    text = shown(Plan(indexes=[f"shop.x: index i{n} is missing" for n in range(25)], notes=["mind [this]"]))
    assert "indexes and options that differ: 25 shop.x: index i0 is missing" in text
    assert "… and 5 more" in text
    assert "mind [this]" in text


def test_undelivered_writes_on_touched_documents_are_shown_with_where_they_stay() -> None:
    plan = Plan(run_id="run", divergence=Named(), undelivered=Named())
    assert "delivered: 0" not in shown(plan)
    plan.note_undelivered(differing(1))
    plan.note_undelivered(differing(2, DifferenceKind.MISSING))
    plan.note_undelivered(None)
    text = shown(plan)
    assert "whose last write in MongoDB DMS had not delivered: 2" in text
    assert "shop.or[d]ers 1: written in MongoDB: a, b" in text
    assert "shop.or[d]ers 2: deleted in MongoDB" in text
    assert "MongoDB's versions stay in its dump: dump/run/target/" in text
    plan.run_id = ""
    assert "its dump" not in shown(plan)
    plan.undelivered = None
    plan.note_undelivered(differing(3))
    assert "undelivered" not in plan.to_json()
