"""Keys: examples that operators see, and the refusals. The rest is a property."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from bson import Binary, Code, Decimal128, Int64, ObjectId

from d5agent.core.log.naming import commit_key, id_to_text, parse_segment_key, segment_key, text_to_id
from d5agent.core.log.operation import ClusterTime, Namespace
from d5agent.core.log.raw import DocumentId
from d5agent.errors import CorruptDataError
from tests.fakes.documents import raw_id

DATA = Path(__file__).parents[1] / "data"
TIME = ClusterTime(1_793_600_000, 7)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (ObjectId("507f1f77bcf86cd799439011"), "507f1f77bcf86cd799439011"),
        ("507f1f77bcf86cd799439011", '"507f1f77bcf86cd799439011"'),
        (42, "42"),
        ("42", '"42"'),
        (Int64(42), '{"$numberLong":"42"}'),
        (42.0, '{"$numberDouble":"42.0"}'),
        (Decimal128("42"), '{"$numberDecimal":"42"}'),
        ("order-7", "order-7"),
        ("", '""'),
        ("null", '"null"'),
        (None, "null"),
        (True, "true"),
        ("{a", '"{a"'),
        ({"b": 1, "a": "x"}, '{"b":{"$numberInt":"1"},"a":"x"}'),
        (Binary(b"\0", 128), '{"$binary":{"base64":"AA==","subType":"80"}}'),
    ],
)
def test_an_id_reads_as_people_would_write_it(value: object, text: str) -> None:
    assert id_to_text(raw_id(value)) == text
    assert text_to_id(text) == raw_id(value)


@pytest.mark.parametrize(
    "id_",
    [DocumentId(b"\x02\x02\0\0\0\xff\0"), DocumentId(b"\x06"), raw_id(Code("f", {"$oid": 1}))],
    ids=["not UTF-8", "undefined", "ambiguous"],
)
def test_an_id_that_json_would_change_is_written_as_its_bytes(id_: DocumentId) -> None:
    assert id_to_text(id_).startswith('{"$bson":"')
    assert text_to_id(id_to_text(id_)) == id_


def test_ids_of_equal_numbers_and_of_other_types_have_keys_of_their_own() -> None:
    values = (1, 1.0, Int64(1), Decimal128("1"), Decimal128("1.0"), "1", True, 0.0, -0.0)
    assert len({id_to_text(raw_id(value)) for value in values}) == len(values)


def test_ids_of_another_field_order_have_texts_of_their_own() -> None:
    one, other = raw_id({"a": 1, "b": 2}), raw_id({"b": 2, "a": 1})
    assert id_to_text(one) != id_to_text(other)


def test_a_key_tells_time_document_and_ordinal() -> None:
    key = segment_key(Namespace("shop", "orders/new"), TIME, raw_id("a_b/c~d"), ordinal=2)
    assert key == "replication/shop/orders%2Fnew/1793600000-0000000007_a%5Fb%2Fc%7Ed_2.bson"
    parts = parse_segment_key(key)
    assert (parts.namespace, parts.first, parts.ordinal) == (Namespace("shop", "orders/new"), TIME, 2)
    assert parts.document_id == raw_id("a_b/c~d")


def test_a_database_event_stands_under_a_name_no_collection_can_have() -> None:
    key = segment_key(Namespace("shop"), TIME, None)
    assert key == "replication/shop/.database/1793600000-0000000007_~none.bson"
    parts = parse_segment_key(key)
    assert (parts.namespace, parts.document_id, parts.ordinal) == (Namespace("shop"), None, 1)


def test_a_segment_of_several_collections_stands_under_a_name_no_database_can_have() -> None:
    key = segment_key(None, TIME, raw_id("a_b"), ordinal=3)
    assert key == "replication/.mixed/1793600000-0000000007_a%5Fb_3.bson"
    parts = parse_segment_key(key)
    assert (parts.namespace, parts.first, parts.document_id, parts.ordinal) == (None, TIME, raw_id("a_b"), 3)


@pytest.mark.parametrize("namespace", [Namespace("shop", "orders"), Namespace("shop"), None])
@pytest.mark.parametrize("id_", [raw_id("a"), raw_id("a.bson"), raw_id("a.bson.zst"), raw_id(".zst"), None])
@pytest.mark.parametrize("ordinal", [1, 2])
def test_a_compressed_segments_key_differs_by_its_ending_alone(
    namespace: Namespace | None, id_: DocumentId | None, ordinal: int
) -> None:
    plain = segment_key(namespace, TIME, id_, ordinal=ordinal)
    key = segment_key(namespace, TIME, id_, ordinal=ordinal, suffix=".bson.zst")
    assert key == f"{plain}.zst"
    assert parse_segment_key(key) == parse_segment_key(plain)
    assert parse_segment_key(key).document_id == id_


def test_a_long_id_keeps_its_beginning_and_gets_a_hash() -> None:
    key = segment_key(Namespace("shop", "orders"), TIME, raw_id("é" * 1000))
    part = key.rpartition("_")[2].removesuffix(".bson")
    beginning, _, digest = part.partition("~")
    assert beginning[: 6 * 13] == "%C3%A9" * 13
    assert not beginning.endswith("%")
    assert len(digest) == 64
    assert parse_segment_key(key).document_id is None


@pytest.mark.parametrize(
    "key",
    [
        "replication/.log/000000000000.json",
        "replication/shop/orders/1_2.bson",
        "replication/shop/orders/1793600000-0000000007_x_0.bson",
        "elsewhere/shop/orders/1793600000-0000000007_x.bson",
        "replication/shop/orders/1793600000-0000000007_x.bson.new",
        "replication/shop/orders/1793600000-0000000007_x.zst",
        "replication/shop/orders/1793600000-0000000007_x.bson.zst.zst",
        "replication/.mixed/1793600000-0000000007.bson",
        "replication/shop/1793600000-0000000007_x.bson",
        "replication/.log/rollup/000000000000.bson",
    ],
)
def test_what_is_no_segments_key_is_corrupt(key: str) -> None:
    with pytest.raises(CorruptDataError, match="not the key of a segment"):
        parse_segment_key(key)


def test_commits_are_numbered_with_twelve_digits() -> None:
    assert commit_key(41) == "replication/.log/000000000041.json"


@pytest.mark.parametrize("line", (DATA / "keys-1.jsonl").read_text(encoding="utf-8").splitlines())
def test_keys_are_as_they_have_always_been(line: str) -> None:
    row = json.loads(line)
    if "id" in row:
        id_ = DocumentId(base64.b64decode(row["id"]))
        assert segment_key(Namespace("shop", "orders"), TIME, id_) == row["key"]
        assert parse_segment_key(row["key"]).document_id in {id_, None}
    else:
        namespace = Namespace(row["database"], row["collection"])
        assert segment_key(namespace, ClusterTime(1, 2), raw_id(1)) == row["key"]
