"""How long a restore will take, and what that rests on."""

from __future__ import annotations

import pytest
from bson import encode

from d5agent.core.log.operation import ClusterTime, Namespace, Operation
from d5agent.core.plan.estimate import KnownRate, Measured, Writes, estimate
from tests.fakes.documents import raw_id

ORDERS = Namespace("shop", "orders")


def operation(number: int | None, *, bytes_: int = 100) -> Operation:
    document = encode({"_id": number, "x": "y" * (bytes_ - 22)})
    id_ = None if number is None else raw_id(number)
    return Operation("insert", ORDERS, ClusterTime(1, 1), b"", id_, (0, len(document)), None, document)


def test_a_document_that_changes_again_within_a_window_is_written_once() -> None:
    writes = Writes(window_bytes=1_000_000)
    for number in (1, 2, 1, 1, 2):
        writes.take(operation(number))
    assert writes.documents == 2


def test_and_once_in_each_window() -> None:
    writes = Writes(window_bytes=600)  # two documents of 100 bytes, and what holds them
    for number in (1, 2, 1, 2, 1):
        writes.take(operation(number))
    assert writes.documents == 5
    writes = Writes(window_bytes=100_000)
    for barrier_or_document in (operation(1), operation(None), operation(1)):
        writes.take(barrier_or_document)
    assert writes.documents == 2


def test_without_an_earlier_restore_writing_is_assumed_and_said_to_be() -> None:
    writes = Writes(window_bytes=1)
    writes.documents, writes.bytes = 50_000, 32 * 1024 * 1024
    found = estimate(read=Measured(1_000, 2.0), compared=Measured(400, 4.0), writes=writes, known=None)
    assert (found.reading_seconds, found.writing_seconds, found.comparing_seconds) == (4, 12, 4)
    assert found.to_json()["seconds"] == 20
    text = " ".join(found.basis)
    assert "assumed, 5,000 a second" in text
    assert "500 operations a second" in text
    assert "comparing 400 documents: measured, 100 a second" in text


def test_an_earlier_restore_tells_how_fast_writing_is() -> None:
    writes = Writes(window_bytes=1)
    writes.documents = 50_000
    known = KnownRate(documents_per_second=2_500, at="2026-11-01T08:00:00+00:00")
    found = estimate(read=Measured(), compared=Measured(), writes=writes, known=known)
    assert found.to_json()["writing_seconds"] == 20
    assert found.seconds == 20
    assert "as fast as the restore of 2026-11-01T08:00:00+00:00, 2,500 a second" in found.basis[1]


@pytest.mark.parametrize("known", [None, KnownRate(documents_per_second=2_500, at="then")])
def test_a_limit_of_restore_is_what_writing_takes(known: KnownRate | None) -> None:
    writes = Writes(window_bytes=1)
    writes.documents = 50_000
    found = estimate(read=Measured(), compared=Measured(), writes=writes, known=known, limit=100)
    assert found.writing_seconds == 500
    assert found.basis[1] == "writing 50,000 documents: [restore] max_operations_per_second allows 100 a second"
    without = estimate(read=Measured(), compared=Measured(), writes=writes, known=known)
    assert estimate(read=Measured(), compared=Measured(), writes=writes, known=known, limit=1e6) == without
