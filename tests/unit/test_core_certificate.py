"""The certificate: sealed, bound to one end of one log, and refused when it is anything else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from d5agent.core.compare.compare import Difference, DifferenceKind
from d5agent.core.compare.comparison import Comparison, Part
from d5agent.core.compare.report import VerifyReport
from d5agent.core.log.chain import Commit, Link, Total, WriterIdentity
from d5agent.core.log.operation import ClusterTime, Position
from d5agent.core.reports.certificate import Evidence, certificate_key, certificate_of, check_certificate, sealed
from d5agent.core.run.timeline import Timeline
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError, OperatorError
from tests.fakes.documents import raw_id
from tests.fakes.events import ORDERS

COMMIT = Commit(
    sequence=7,
    writer=WriterIdentity(run_id="run", agent_id="agent", host="host", since="2026-11-02T08:00:00+00:00"),
    written_at="2026-11-02T08:30:00+00:00",
    previous="0" * 64,
    segments=(),
    position=Position(cluster_time=ClusterTime(7, 8), token=None),
    total=Total(operations=5, bytes=500, segments=2),
)
LINK = Link(commit=COMMIT, digest="d" * 64)


PART = Part(first=0, last=7, documents=3, began_at="2026-11-02T08:44:00", ended_at="2026-11-02T08:44:30")
EVIDENCE = Evidence(
    source=ServerFacts(hosts=("source:27017",), set_name="rs0", version="5.0.0"),
    target=ServerFacts(hosts=("target:27017",), set_name="rs0", cluster_id="6b0a", version="6.0.5"),
    first=Link(commit=replace(COMMIT, sequence=0), digest="f" * 64),
    comparison=Comparison(parts=[PART], watched_since="2026-11-02T08:44:00", unchanged_at="2026-11-02T08:44:31"),
)


def report(*, is_equal: bool = True) -> VerifyReport:
    found = VerifyReport(scope="touched", run_id="run", sequence=7, operations=5)
    found.count(ORDERS, 3)
    if not is_equal:
        found.add(Difference(namespace=ORDERS, id=raw_id(1), kind=DifferenceKind.MISSING))
    return found


def certificate(*, is_equal: bool = True) -> dict[str, Any]:
    return certificate_of(
        report(is_equal=is_equal),
        LINK,
        Timeline(run_id="run"),
        issuer={"host": "host", "version": "0", "agent_id": "agent"},
        read_only_since="2026-11-02T08:44:00+00:00",
        evidence=EVIDENCE,
    ) | {"issued_at": "2026-11-02T08:45:00+00:00"}


def test_a_certificate_of_this_end_of_the_log_is_accepted() -> None:
    check_certificate(sealed(certificate()), LINK)
    told = json.loads(sealed(certificate()))
    assert told["log"] == {
        "sequence": 7,
        "key": "replication/.log/000000000007.json",
        "sha256": "d" * 64,
        "cluster_time": [7, 8],
        "operations": 5,
        "segments": 2,
        "bytes": 500,
        "first": {
            "sequence": 0,
            "key": "replication/.log/000000000000.json",
            "sha256": "f" * 64,
            "cluster_time": [7, 8],
        },
    }
    assert told["servers"]["target"] == {
        "hosts": ["target:27017"],
        "set_name": "rs0",
        "cluster_id": "6b0a",
        "version": "6.0.5",
    }
    assert told["comparison"]["parts"] == [
        {
            "first": 0,
            "last": 7,
            "documents": 3,
            "began_at": "2026-11-02T08:44:00",
            "ended_at": "2026-11-02T08:44:30",
        }
    ]
    assert told["result"]["namespaces"] == {"shop.orders": {"compared": 3, "different": 0, "repaired": 0}}
    assert certificate_key("run") == "reports/run/certificate.json"
    assert certificate_key("run", "html") == "reports/run/certificate.html"


def test_the_seal_does_not_depend_on_how_the_json_is_laid_out() -> None:
    body = json.loads(sealed(certificate()))
    check_certificate(json.dumps(dict(reversed(body.items()))).encode(), LINK)


@pytest.mark.parametrize(
    "link",
    [
        replace(LINK, digest="e" * 64),
        replace(LINK, commit=replace(COMMIT, sequence=8)),
    ],
    ids=["another log", "another end"],
)
def test_a_certificate_of_another_log_is_refused(link: Link) -> None:
    with pytest.raises(OperatorError, match="another log") as refused:
        check_certificate(sealed(certificate()), link)
    assert "d5agent start monitor-restore" in refused.value.hint


def test_no_certificate_and_one_of_unequal_databases_are_refused() -> None:
    with pytest.raises(OperatorError, match="there is no certificate"):
        check_certificate(None, LINK)
    with pytest.raises(OperatorError, match="does not say"):
        check_certificate(sealed(certificate(is_equal=False)), LINK)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("result", "equal"), False),
        (("result", "different"), 1),
        (("log", "sha256"), "e" * 64),
        (("issued_at",), "2027-01-01T00:00:00+00:00"),
        (("kind",), "report"),
        (("more",), 1),
    ],
)
def test_an_altered_certificate_is_found_out(path: tuple[str, ...], value: object) -> None:
    body = json.loads(sealed(certificate()))
    at = body
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    with pytest.raises(CorruptDataError, match="altered"):
        check_certificate(json.dumps(body).encode(), LINK)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"{}", b'{"sha256": "", "version": 1}'])
def test_what_is_no_certificate_is_damaged(body: bytes) -> None:
    with pytest.raises(CorruptDataError, match="damaged"):
        check_certificate(body, LINK)


def test_a_certificate_of_another_version_is_not_guessed_at() -> None:
    with pytest.raises(OperatorError, match="another version"):
        check_certificate(sealed({**certificate(), "version": 3}), LINK)


@pytest.mark.parametrize("absent", ["servers", "comparison", ("log", "first"), ("comparison", "parts")])
def test_a_certificate_that_lacks_its_evidence_is_damaged(absent: str | tuple[str, str]) -> None:
    body = certificate()
    if isinstance(absent, str):
        del body[absent]
    else:
        body[absent[0]] = {name: value for name, value in body[absent[0]].items() if name != absent[1]}
    with pytest.raises(CorruptDataError, match="damaged"):
        check_certificate(sealed(body), LINK)


def test_a_certificate_of_the_first_version_is_what_it_was() -> None:
    body = certificate()
    del body["servers"], body["comparison"], body["log"]["first"]
    check_certificate(sealed({**body, "version": 1}), LINK)
    with pytest.raises(OperatorError, match="does not say"):
        check_certificate(sealed({**body, "version": 1, "result": {"equal": False}}), LINK)
