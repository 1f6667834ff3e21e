"""The gateway's raw BSON walk and its tokens: cut and read, byte for byte."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from bson.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from d5agent.drill.gateway.bsonwalk import elements, find, without
from d5agent.drill.gateway.events import token_document
from d5agent.drill.gateway.tokens import (
    InvalidTokenError,
    Position,
    TokenCodec,
    upstream_position,
)

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.builds(bson.ObjectId, st.binary(min_size=12, max_size=12)),
    st.builds(bson.Regex, st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.just("im")),
    st.builds(Timestamp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.builds(bson.Code, st.text(), st.none()),
    st.builds(bson.Code, st.text(), st.dictionaries(st.just("x"), st.integers(0, 9))),
    st.sampled_from([bson.MinKey(), bson.MaxKey(), bson.Decimal128("1.5")]),
)


_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=10,
)


_documents = st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), _values, max_size=8)


@given(_documents)
def test_the_walk_finds_every_element_where_it_is(document: dict[str, Any]) -> None:
    raw = b"junk" + bson.encode(document)
    walked = list(elements(raw, 4))
    assert [name.decode() for _, name, _, _, _ in walked] == list(bson.decode(raw[4:]))  # the encoder puts _id first
    assert b"".join(raw[begin:end] for _, _, begin, _, end in walked) == raw[8:-1]


@given(_documents, st.data())
def test_cutting_fields_leaves_the_others_as_they_are(document: dict[str, Any], data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(document)))) if document else set()
    raw = bson.encode(document)
    kept = {key: value for key, value in document.items() if key not in names}
    assert b"".join(without(raw, 0, {name.encode() for name in names})) == bson.encode(kept)


def test_an_unknown_type_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(ValueError, match="0x20"):
        list(elements(b"\x08\0\0\0\x20a\0\0", 0))


_positions = st.builds(
    lambda seconds, increment, ordinal: Position((seconds << 32) | increment, ordinal),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**20 - 1),
    st.integers(0, 2**20 - 1),
)


@given(_positions)
def test_a_token_tells_its_position(position: Position) -> None:
    codec = TokenCodec(b"abcdef")
    event, post_batch = codec.event_token(position), codec.post_batch_token(position)
    assert (len(event), len(post_batch)) == (36, 20)
    assert codec.read(event.decode()) == codec.read(post_batch.decode()) == position


@given(_positions, st.integers(0, 35), st.sampled_from("0123456789abcdef"))
def test_a_damaged_event_token_is_invalid(position: Position, at: int, digit: str) -> None:
    codec = TokenCodec(b"abcdef")
    token = codec.event_token(position).decode()
    damaged = token[:at] + digit + token[at + 1 :]
    if damaged != token:
        with pytest.raises(InvalidTokenError):
            codec.read(damaged)
    with pytest.raises(InvalidTokenError):
        TokenCodec(b"fedcba").read(token)


@pytest.mark.parametrize("token", [None, 7, "", "82", "zz" * 18, "zz" * 10, b"00" * 18])
def test_what_is_no_token_is_invalid(token: object) -> None:
    with pytest.raises(InvalidTokenError):
        TokenCodec(b"abcdef").read(token)


def test_a_post_batch_token_never_points_past_what_it_cannot_hold() -> None:
    codec = TokenCodec(b"abcdef")
    for position in (Position((7 << 32) | 2**21, 5), Position((7 << 32) | 3, 2**21)):
        assert codec.read(codec.post_batch_token(position).decode()) < position


@pytest.mark.parametrize(
    ("token", "ordinal"),
    [
        ("826B050854000000192B0229296E04", 0),
        ("826B050854000000192B022C0100296E5A1004", 1),
        ("826B050854000000192B022C0100296F5A1004", 2),
        ("826B050854000000192B022C01002B026E5A1004", 3),
        ("826B050854000000192B022C01002B086E5A1004", 9),
        ("826B050854000000192B022C01002C01046E5A1004", 261),
        ("826B050854000000192B022C01002D0186A06E5A1004", 1 + 2 * 50_000),
    ],
)
def test_an_upstream_token_tells_its_position(token: str, ordinal: int) -> None:
    expected = Position((0x6B050854 << 32) | 0x19, ordinal)
    assert upstream_position(token.encode()) == expected


def test_a_token_document_is_bson() -> None:
    assert bson.decode(token_document(b"82ab")) == {"_data": "82ab"}


def test_a_found_element_is_the_first_of_its_name() -> None:
    raw = bson.encode({"a": 1, "b": {"a": 2}})
    found = find(raw, 0, b"b")
    assert found is not None
    assert bson.decode(raw[found[3] : found[4]]) == {"a": 2}
    assert find(raw, 0, b"c") is None
