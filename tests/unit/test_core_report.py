"""Reports: all differences are counted, the first are named, and equal means equal."""

from __future__ import annotations

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.compare.repair import Repair
from d5agent.core.compare.report import NAMED, VerifyReport, fact_differences
from tests.fakes.documents import raw_id
from tests.fakes.events import ITEMS, ORDERS


def _difference(number: int) -> Difference:
    return Difference(namespace=ORDERS, id=raw_id(number), kind=DifferenceKind.MISSING)


def test_a_report_without_differences_is_equal() -> None:
    report = VerifyReport(scope="touched", compared=3)
    assert report.is_equal
    report.facts["shop.orders"] = ["shop.orders: index a_1 is missing in the target: x"]
    report.add_repair(Repair(difference=_difference(1), written_hash=None))
    assert report.is_equal


def test_a_difference_or_another_count_is_not_equal() -> None:
    report = VerifyReport(scope="full")
    report.add(_difference(1))
    assert not report.is_equal
    assert not VerifyReport(scope="full", counts=["shop.orders: 1 documents in the source, 2 in the target"]).is_equal


def test_many_differences_and_repairs_are_counted_and_some_named() -> None:
    report = VerifyReport(scope="full")
    for number in range(NAMED + 5):
        report.add(_difference(number))
        report.add_repair(Repair(difference=_difference(number), written_hash=None))
    assert (report.different, len(report.differences)) == (NAMED + 5, NAMED)
    assert (report.repairs, len(report.repaired)) == (NAMED + 5, NAMED)
    assert len(report.unequal) == NAMED + 5


def test_a_report_as_json_holds_what_a_certificate_needs() -> None:
    report = VerifyReport(scope="touched", run_id="run", sequence=7, operations=9, seconds=1.23456)
    report.count(ORDERS, 2)
    report.count(ITEMS, 1)
    report.add(_difference(1))
    report.add_repair(Repair(difference=_difference(2), written_hash=None))
    report.facts |= {"shop.orders": ["shop.orders: index"], "shop.items": ["shop.items: index"]}
    assert report.to_json() == {
        "version": 2,
        "scope": "touched",
        "run_id": "run",
        "sequence": 7,
        "operations": 9,
        "equal": False,
        "compared": 3,
        "different": 1,
        "repairs": 1,
        "namespaces": {
            "shop.items": {"compared": 1, "different": 0, "repaired": 0},
            "shop.orders": {"compared": 2, "different": 1, "repaired": 1},
        },
        "differences": [{"namespace": "shop.orders", "id": "1", "kind": "missing", "fields": []}],
        "repaired": [
            {
                "namespace": "shop.orders",
                "id": "2",
                "kind": "missing",
                "fields": [],
                "cause": "unexplained",
                "explanation": "no event explains it: a defect of the agent, or somebody else wrote to the target",
                "last_event": None,
            }
        ],
        "indexes": ["shop.items: index", "shop.orders: index"],
        "counts": [],
        "expired": {},
        "seconds": 1.235,
    }


def test_what_the_target_lacks_has_otherwise_or_alone_is_told() -> None:
    source = {"a_1": '{"a": 1}', "b_1": '{"b": 1}', "same_1": "same"}
    target = {"b_1": '{"b": -1}', "same_1": "same", "own_1": "its own"}
    assert fact_differences(ORDERS, "index", source, target) == [
        'shop.orders: index a_1 is missing in the target: {"a": 1}',
        'shop.orders: index b_1 differs: {"b": 1} in the source, {"b": -1}',
        "shop.orders: index own_1 is in the target only: its own",
    ]
