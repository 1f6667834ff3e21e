"""Which values are one: what no server stores. The rest is a contract with a real server."""

from __future__ import annotations

import pytest
from bson import Decimal128, encode

from d5agent.core.log.identity import identity_of
from d5agent.core.log.raw import DocumentId, id_document
from tests.fakes.documents import raw_id


@pytest.mark.parametrize(
    "value",
    [
        DocumentId(b"\x01\0"),
        DocumentId(b"\x13\0"),
        DocumentId(b"\x0f\0"),
        DocumentId(b"\x03" + encode({"a": 1})[:-1]),
        DocumentId(b"\x14\0"),
    ],
    ids=["double", "decimal", "code", "document", "unknown"],
)
def test_a_damaged_value_is_its_own_bytes(value: DocumentId) -> None:
    assert identity_of(value) == value


def test_a_value_that_is_too_deep_is_its_own_bytes() -> None:
    document = encode({"a": 1})
    for _ in range(5_000):
        document = id_document(DocumentId(b"\x03" + document))
    assert identity_of(DocumentId(b"\x03" + document)) == b"\x03" + document


@pytest.mark.parametrize("top", [0x60, 0x6C, 0xEC])
def test_a_decimal_of_more_than_34_digits_is_zero(top: int) -> None:
    assert identity_of(DocumentId(b"\x13\1" + bytes(14) + bytes((top,)))) == identity_of(raw_id(0))


def test_a_decimal_just_over_34_digits_is_zero() -> None:
    largest = int.from_bytes(Decimal128("9999999999999999999999999999999999").bid, "little")
    bid = (largest + 1).to_bytes(16, "little")
    assert identity_of(DocumentId(b"\x13" + bid)) == identity_of(raw_id(0.0))
