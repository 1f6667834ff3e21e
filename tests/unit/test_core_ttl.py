"""What a TTL index deletes, and how it is known again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from bson import encode
from bson.datetime_ms import DatetimeMS

from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.replay.ttl import NEVER, TtlIndex, has_expired

NOW: Final = datetime(2026, 11, 2, 8, tzinfo=UTC)
AT: Final = ClusterTime(int(NOW.timestamp()), 1)
OLD: Final = NOW - timedelta(seconds=61)
INDEX: Final = TtlIndex(
    namespace=Namespace("shop", "sessions"), name="at_1", field="at", seconds=60, collection_id="abc"
)


@pytest.mark.parametrize(
    ("field", "document", "is_expired"),
    [
        ("at", {"at": OLD}, True),
        ("at", {"at": NOW - timedelta(seconds=59)}, False),
        ("at", {"at": NOW - timedelta(seconds=59, milliseconds=1)}, True),  # within this very second
        ("at", {"at": DatetimeMS(-(2**62))}, True),
        ("at", {"at": "2026-01-01"}, False),
        ("at", {"at": None}, False),
        ("at", {}, False),
        ("at", {"at": [NOW, OLD]}, True),
        ("at", {"at": [NOW, "text"]}, False),
        ("at", {"at": [[OLD]]}, False),
        ("at", {"at": {"at": OLD}}, False),
        ("meta.at", {"meta": {"at": OLD}}, True),
        ("meta.at", {"meta": {"at": NOW}}, False),
        ("meta.at", {"meta": [{"at": NOW}, {"at": OLD}]}, True),
        ("meta.at", {"meta": [OLD, [{"at": OLD}]]}, False),
        ("meta.1", {"meta": [NOW, OLD]}, True),
        ("meta.at", {"meta": OLD}, False),
    ],
)
def test_a_document_expires_by_its_earliest_date(field: str, document: dict[str, Any], *, is_expired: bool) -> None:
    assert has_expired([replace(INDEX, field=field)], encode(document), AT) is is_expired


@pytest.mark.parametrize(
    "index",
    [
        replace(INDEX, seconds=NEVER),
        replace(INDEX, seconds=float("nan")),
        replace(INDEX, is_partial=True),  # nobody knows whether it holds this document
    ],
)
def test_an_index_that_may_not_delete_expires_nothing(index: TtlIndex) -> None:
    assert not has_expired([index], encode({"at": OLD}), AT)
    assert has_expired([index, INDEX], encode({"at": OLD}), AT)


def test_a_document_that_cannot_be_read_has_not_expired() -> None:
    assert not has_expired([INDEX], encode({"at": OLD})[:-3], AT)


def test_an_index_is_the_same_by_its_collections_id() -> None:
    renamed = replace(INDEX, namespace=Namespace("shop", "archive"), seconds=NEVER)
    assert INDEX.is_same(renamed)
    assert not INDEX.is_same(replace(INDEX, collection_id="another"))
    assert not INDEX.is_same(replace(INDEX, name="other_1"))
    without = replace(INDEX, collection_id="")
    assert without.is_same(INDEX)
    assert not without.is_same(renamed)


def test_an_index_comes_back_from_a_state_file() -> None:
    assert TtlIndex.from_json(INDEX.to_json()) == INDEX
