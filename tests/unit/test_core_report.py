"""Reports: all differences are counted, the first are named, and equal means equal."""

from __future__ import annotations

from d5agent.core.compare import Difference, DifferenceKind
from d5agent.core.report import NAMED, VerifyReport, index_differences
from tests.fakes.documents import raw_id
from tests.fakes.events import ORDERS


def _difference(number: int) -> Difference:
    return Difference(namespace=ORDERS, id=raw_id(number), kind=DifferenceKind.MISSING)


def test_a_report_without_differences_is_equal() -> None:
    report = VerifyReport(scope="touched", compared=3)
    assert report.is_equal
    report.indexes.append("shop.orders: index a_1 is missing in the target: x")
    report.repaired.append(_difference(1))
    assert report.is_equal


def test_a_difference_or_another_count_is_not_equal() -> None:
    report = VerifyReport(scope="full")
    report.add(_difference(1))
    assert not report.is_equal
    assert not VerifyReport(scope="full", counts=["shop.orders: 1 documents in the source, 2 in the target"]).is_equal


def test_many_differences_are_counted_and_some_named() -> None:
    report = VerifyReport(scope="full")
    for number in range(NAMED + 5):
        report.add(_difference(number))
    assert (report.different, len(report.differences)) == (NAMED + 5, NAMED)


def test_a_report_as_json_holds_what_a_certificate_needs() -> None:
    report = VerifyReport(scope="touched", run_id="run", sequence=7, operations=9, compared=2, seconds=1.23456)
    report.namespaces |= {"shop.orders", "shop.items"}
    report.add(_difference(1))
    report.repaired.append(_difference(2))
    assert report.to_json() == {
        "version": 1,
        "scope": "touched",
        "run_id": "run",
        "sequence": 7,
        "operations": 9,
        "equal": False,
        "compared": 2,
        "different": 1,
        "namespaces": ["shop.items", "shop.orders"],
        "differences": [{"namespace": "shop.orders", "id": "1", "kind": "missing", "fields": []}],
        "repaired": [{"namespace": "shop.orders", "id": "2", "kind": "missing", "fields": []}],
        "indexes": [],
        "counts": [],
        "seconds": 1.235,
    }


def test_indexes_that_the_target_lacks_or_has_otherwise_are_told() -> None:
    source = {"a_1": '{"a": 1}', "b_1": '{"b": 1}', "same_1": "same"}
    target = {"b_1": '{"b": -1}', "same_1": "same", "own_1": "its own"}
    assert index_differences("shop.orders", source, target) == [
        'shop.orders: index a_1 is missing in the target: {"a": 1}',
        'shop.orders: index b_1 differs: {"b": 1} in the source, {"b": -1}',
    ]
