"""The page: it stands alone, is well formed, tells all that was found, and escapes what comes from a database."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, Final

import pytest
from typing_extensions import override

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.compare.comparison import Comparison, Part
from d5agent.core.compare.repair import LastEvent, Repair
from d5agent.core.compare.report import NAMED, VerifyReport
from d5agent.core.log.chain import Commit, Link, Total, WriterIdentity
from d5agent.core.log.operation import ClusterTime, Namespace, Position
from d5agent.core.reports.certificate import Evidence, certificate_of, end_of_stream
from d5agent.core.reports.charts import clock, duration, number, rates
from d5agent.core.reports.html import page_of
from d5agent.core.run.services import Fence
from d5agent.core.run.timeline import Timeline
from d5agent.core.servers import ServerFacts
from tests.fakes.documents import raw_id

EVIL: Final = "<script>alert('1')</script>"
ORDERS: Final = Namespace("shop", EVIL)
_VOID: Final = "meta"
_OUTSIDE: Final = re.compile(r"(?:src|href|url|@import|https?:)", re.IGNORECASE)


class Reader(HTMLParser):
    """Reads a page as a browser would: elements must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag != _VOID:
            self.open.append(tag)

    @override
    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def read(page: str) -> Reader:
    """Return what a page says; it must be well formed, and stand alone."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert not reader.seen & {"script", "img", "link", "iframe", "object", "embed"}
    assert not _OUTSIDE.search(page)
    return reader


def found(*, is_equal: bool) -> VerifyReport:
    report = VerifyReport(scope="touched", run_id="run", sequence=7, operations=1234, seconds=3.5)
    report.count(ORDERS, 4321)
    difference = Difference(namespace=ORDERS, id=raw_id(EVIL), kind=DifferenceKind.DIFFERENT, fields=(EVIL,))
    if not is_equal:
        report.add(difference)
        report.counts.append(f"{ORDERS}: 1 documents in the source, 2 in the target")
    event = LastEvent(5, ClusterTime(1_793_600_000, 9), "update", has_document=False)
    report.add_repair(Repair(difference=difference, written_hash=1, event=event))
    report.facts["shop"] = [f"{ORDERS}: index a_1 is missing in the target: {EVIL}"]
    return report


PART = Part(first=0, last=7, documents=3, began_at="2026-11-02T08:44:00", ended_at="2026-11-02T08:44:30")


def certificate(
    *, is_equal: bool = True, timeline: Timeline | None = None, unchanged_at: str = "2026-11-02T08:44:31"
) -> dict[str, Any]:
    commit = Commit(
        sequence=7,
        writer=WriterIdentity(run_id="run", agent_id="agent", host="host", since=""),
        written_at="",
        previous=None,
        segments=(),
        position=Position(cluster_time=ClusterTime(1_793_600_000, 8), token=None),
        total=Total(operations=1234, bytes=500, segments=2),
    )
    fence = Fence(sequence=6, cluster_time=ClusterTime(1_793_600_000, 7), at="", marker="fence-1")
    written = certificate_of(
        found(is_equal=is_equal),
        Link(commit=commit, digest="d" * 64),
        timeline or Timeline(),
        issuer={"host": EVIL, "version": "0.1.0", "agent_id": "agent"},
        read_only_since="2026-11-02T08:44:00+00:00",
        evidence=Evidence(
            source=ServerFacts(hosts=(EVIL,), set_name="rs0", version="5.0.0"),
            target=ServerFacts(hosts=("target:27017",), set_name="rs0", cluster_id="6b0a", version="6.0.5"),
            first=Link(commit=replace(commit, sequence=0), digest="f" * 64),
            comparison=Comparison(parts=[PART], watched_since=PART.began_at, unchanged_at=unchanged_at),
        ),
    )
    return {
        **written,
        "issued_at": "2026-11-02T08:45:30+00:00",
        "end_of_stream": end_of_stream(fence, operations_after=6),
    }


def busy() -> Timeline:
    timeline = Timeline(run_id="run")
    for second in range(100):
        at = 1_793_600_000.0 + second
        timeline.see(at, ["replication"] if second < 50 else ["replication", "restore: replay"])
        timeline.capture.add(at, 3.0 if second == 30 else 0.5, second * 100.0)
        timeline.restore.add(at, max(0, second - 50) * 1000.0, 0.0)
    return timeline


def test_a_certificate_says_what_an_auditor_asks() -> None:
    reader = read(page_of(certificate(timeline=busy())))
    for said in (
        "Both databases are equal",
        "4,321 documents of the source",
        "all 1,234 operations of the log",
        "run",
        "d5agent 0.1.0 on",
        "1 min 30 s, from 2026-11-02T08:44:00+00:00",
        "its last event carried no document",
        "in replication/.log/000000000005.json",
        "index a_1 is missing in the target",
        "d" * 64,
        "proved by the marker fence-1, stored in replication/.log/000000000006.json; operations after it: 6",
        "restore: replay",
        "set rs0, cluster 6b0a, version 6.0.5: target:27017",
        "from 2026-11-02T08:44:00 to 2026-11-02T08:44:30, in 1 parts",
        "watched from 2026-11-02T08:44:00 to 2026-11-02T08:44:31; what was written there was compared again",
        "How far capture was behind the source (at most 3 s)",
        "Operations replayed a second (at most 1,000 /s)",
    ):
        assert said in reader.text, said
    assert "svg" in reader.seen
    assert "Documents compared a second" not in reader.text  # nothing to draw


def test_a_target_that_was_not_watched_is_told() -> None:
    document = certificate(unchanged_at="")
    document["comparison"]["why_not_watched"] = "a privilege is missing"
    assert "not watched (a privilege is missing); everything was compared after" in read(page_of(document)).text
    del document["servers"]  # as in the first version
    assert "not watched" not in read(page_of(document)).text


def test_names_from_a_database_are_told_and_never_run() -> None:
    for document in (certificate(is_equal=False, timeline=busy()), report_document()):
        page = page_of(document)
        assert EVIL not in page
        assert EVIL in read(page).text


def report_document() -> dict[str, Any]:
    return {"kind": "report", "run_id": EVIL, "issued_at": "now", "result": found(is_equal=False).to_json()}


def test_unequal_databases_are_said_to_be_so_and_each_difference_is_named() -> None:
    reader = read(page_of(report_document()))
    assert "The databases are not equal" in reader.text
    assert "1 differ, and 1 collections differ in number" in reader.text
    assert "1 documents in the source, 2 in the target" in reader.text
    assert "All of them are named" in reader.text
    assert "How to check" not in reader.text


def test_what_is_counted_only_is_said_to_be_so() -> None:
    report = found(is_equal=False)
    for n in range(NAMED + 10):
        difference = Difference(namespace=ORDERS, id=raw_id(n), kind=DifferenceKind.EXTRA)
        report.add(difference)
        report.add_repair(Repair(difference=difference, written_hash=None))
    report.facts["shop"] = ["line"] * 1005
    text = read(page_of({"kind": "report", "run_id": "", "issued_at": "now", "result": report.to_json()})).text
    assert text.count("11 more are counted and not named here") == 2
    assert "and 5 more" in text


def test_a_report_of_nothing_is_a_page_too() -> None:
    empty = VerifyReport(scope="full")
    text = read(page_of({"kind": "report", "run_id": "", "issued_at": "now", "result": empty.to_json()})).text
    assert "Both databases are equal" in text
    assert "Nothing." in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations_are_told_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_rates_are_growth_a_second_and_a_restart_is_none() -> None:
    assert rates([(0.0, 0.0), (2.0, 10.0), (2.0, 10.0), (4.0, 4.0), (5.0, 7.0)], 1) == [
        (2.0, 5.0),
        (4.0, 0.0),
        (5.0, 3.0),
    ]
    assert [number(value) for value in (0.1234, 9.0, 12345.6)] == ["0.123", "9", "12,346"]
    assert clock(0) == "1970-01-01 00:00:00"


def test_a_certificate_says_who_could_write_to_the_target() -> None:
    held = {"write_block": "not set", "since": "2026-11-02", "was_open": True, "obstacle": EVIL}
    index = {"namespace": "shop.sessions", "index": "at_1", "seconds": 60}
    reader = read(page_of({**certificate(), "target_hold": {**held, "ttl_held": [index]}}))
    assert "others could write to the target while restore was at work" in reader.text
    assert "shop.sessions at_1 (60 s)" in reader.text
    closed = {"write_block": "set by d5agent", "since": "2026-11-02", "was_open": False, "obstacle": "", "ttl_held": []}
    reader = read(page_of({**certificate(), "target_hold": closed}))
    assert "write-block mode: set by d5agent, since 2026-11-02" in reader.text
    assert "TTL indexes held" not in reader.text


def test_a_certificate_says_what_has_expired_meanwhile() -> None:
    written = certificate()
    reader = read(page_of({**written, "result": {**written["result"], "expired": {"shop.sessions": 3}}}))
    assert "shop.sessions: 3; the target still holds these documents" in reader.text


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        ({"kept": True, "built_again": ["shop.orders", EVIL]}, f"built again on shop.orders, {EVIL}"),
        ({"kept": True, "built_again": [f"c{n}" for n in range(22)]}, "c19 and 2 more"),
        ({"kept": True, "built_again": []}, "none had to be built again"),
        ({"kept": False, "built_again": []}, "[restore] keep_indexes is false"),
    ],
)
def test_a_certificate_says_which_indexes_were_built_again(recorded: dict[str, Any], words: str) -> None:
    written = certificate()
    specifications = {"key": "reports/run/specifications.json", **recorded}
    reader = read(page_of({**written, "result": {**written["result"], "specifications": specifications}}))
    assert "recorded before the restore in reports/run/specifications.json" in reader.text
    assert words in reader.text


def test_a_certificate_says_where_overwritten_documents_are() -> None:
    kept = {"dump": "dump/run/target/", "key": "reports/run/overwritten/index.json", "documents": 2, "deleted": 1}
    whole = {**kept, "state": "complete", "moved": [], "why": ""}
    reader = read(page_of({**certificate(), "overwritten": whole}))
    assert "2 documents, and 1 that somebody deleted" in reader.text
    assert "not known" not in reader.text
    reader = read(page_of({**certificate(), "overwritten": {**whole, "state": "not known", "why": EVIL}}))
    assert f"Whether that is all is not known: {EVIL}" in reader.text
