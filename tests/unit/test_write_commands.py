"""Which command writes which document: an insert or a replacement would change some, or be refused."""

from __future__ import annotations

import pytest
from bson import Timestamp, encode

from d5agent.adapters.write_commands import is_capped_refusal, kinds_of
from d5agent.core.log.raw import has_repeated_name
from d5agent.core.replay.replay import Write
from tests.fakes.documents import raw_id

ZERO = Timestamp(0, 0)


def kind_of(document: bytes, *, is_new: bool = False, may_insert: bool = True) -> str:
    (kind,) = [
        kind
        for kind, writes in kinds_of(
            [Write(id=raw_id(1), document=document, is_new=is_new)], may_insert=may_insert
        ).items()
        if writes
    ]
    return kind


@pytest.mark.parametrize(
    ("fields", "new", "old"),
    [
        ({"price": 5}, "insert", "update"),
        ({"$price": 5}, "insert", "rewrite"),
        ({"text": "costs $5", "dollars": "$$"}, "insert", "update"),
        ({"a": {"$price": 5}}, "insert", "update"),
        ({"t": ZERO}, "rewrite", "rewrite"),
        ({"t": ZERO, "$price": 5}, "rewrite", "rewrite"),
        ({"a": {"t": ZERO}}, "insert", "update"),
        ({"a": [ZERO], "b": Timestamp(1, 0)}, "insert", "update"),
    ],
)
def test_only_what_the_server_would_change_or_refuse_is_rewritten(
    fields: dict[str, object], new: str, old: str
) -> None:
    document = encode({"_id": 1, **fields})
    assert kind_of(document, is_new=True) == new
    assert kind_of(document) == old
    assert kind_of(document, is_new=True, may_insert=False) == old


def test_an_id_that_is_a_zero_timestamp_is_kept_by_every_command() -> None:
    assert kind_of(encode({"_id": ZERO, "n": 1})) == "update"


@pytest.mark.parametrize("rest", [b"$\x7e\x01", b"\x11t\0" + bytes(8)])
def test_bytes_that_are_no_document_are_left_to_the_server(rest: bytes) -> None:
    assert kind_of(b"\x40\0\0\0" + rest + b"\0") == "update"


@pytest.mark.parametrize(
    ("document", "is_repeated"),
    [
        ({"a": 1, "b": {"c": 1, "d": 2}, "e": [{"c": 1}]}, False),
        ({"a": 1, "X": 2}, True),
        ({"b": {"a": 1, "X": 2}}, True),
        ({"b": [1, {"a": 1, "X": 2}]}, True),
    ],
)
def test_fields_of_one_name_are_found_at_any_depth(document: dict[str, object], *, is_repeated: bool) -> None:
    assert has_repeated_name(encode(document).replace(b"X\0", b"a\0")) is is_repeated


def test_a_capped_collection_is_known_by_its_refusals() -> None:
    assert is_capped_refusal({"writeErrors": [{"code": 20}]})
    assert is_capped_refusal({"writeErrors": [{"code": 263}]})
    assert not is_capped_refusal({"writeErrors": [{"code": 11000}]})
    assert not is_capped_refusal({})
