"""What a person sees of a comparison."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.compare.report import NAMED, VerifyReport
from d5agent.screen.verify import verify_progress, verify_table
from tests.fakes.documents import raw_id
from tests.fakes.events import ORDERS


def found(different: int) -> VerifyReport:
    report = VerifyReport(scope="full")
    report.count(ORDERS, 1234)
    for number in range(different):
        report.add(Difference(namespace=ORDERS, id=raw_id(number), kind=DifferenceKind.MISSING))
    return report


def shown(report: VerifyReport, certificate: dict[str, Any] | None = None) -> str:
    console = Console(file=io.StringIO(), width=200)
    values = {"report": "r.json", "report_url": "s3://bucket/prefix/reports/r.json", "certificate": certificate}
    console.print(verify_table({**report.to_json(), **values}))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_equal_databases() -> None:
    text = shown(found(0))
    assert "equal: 1,234 documents compared (full), 0 different" in text
    assert "no certificate has been issued" in text
    assert "report: s3://bucket/prefix/reports/r.json, as a page beside it" in text


def test_differences_are_named_and_those_that_are_not_are_counted() -> None:
    report = found(NAMED + 7)
    report.counts.append("shop.[orders]: 1 documents in the source, 2 in the target")
    report.facts["shop"] = ["shop.orders: index [a] is missing"]
    text = shown(report)
    assert "not equal" in text
    assert "and 7 more documents" in text
    assert "shop.[orders]: 1 documents" in text
    assert "index [a] is missing" in text


def test_a_certificate_is_told_whole_or_what_is_wrong() -> None:
    url = "s3://bucket/prefix/reports/run/certificate.json"
    certificate = {"key": "certificate.json", "url": url, "valid": True, "reason": ""}
    assert f"whole, and this log's: {url}" in shown(found(0), certificate)
    ended = {**certificate, "reason": "issued at noon; its run is over"}
    assert f"whole, issued at noon; its run is over: {url}" in shown(found(0), ended)
    altered = {**certificate, "valid": False, "reason": "the certificate was altered"}
    assert "the certificate was altered" in shown(found(0), altered)


def test_progress_is_told_on_a_terminal_and_nowhere_else() -> None:
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
        with verify_progress(console) as tell:
            tell(found(3))
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert ("1,234 documents compared in 1 collections" in text) == is_terminal
        assert ("3 different" in text) == is_terminal


def test_progress_has_its_part_of_a_whole_where_that_is_known() -> None:
    report = found(0)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with verify_progress(console) as tell:
        report.expected = 5_000
        tell(report)
    assert isinstance(console.file, io.StringIO)
    assert "1,234 of about 5,000 documents compared" in console.file.getvalue()
