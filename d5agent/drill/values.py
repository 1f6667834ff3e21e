"""Values, ids and names that a copy gets wrong first: every BSON type, at its edges."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any

from bson import (
    Binary,
    Code,
    DatetimeMS,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from bson.raw_bson import RawBSONDocument

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

ODD_DATABASES = ("ventas-ñandú", "百貨店", "a%2Fb", "Sales+Q1=100&more", "~")
ODD_COLLECTIONS = (
    "with space",
    "dots.in.the.name",
    "a/b",
    "100%",
    "%2e%2e",
    "ünïcödé",
    "注文",
    "semi;colon 'quoted' \"twice\"",
    "back\\slash",
    "line\nbreak",
    "CASE",
    "case",
    "-dash",
    "_2.bson",
    "l" * 120,
)
ODD_FIELDS = ("a.b", "$price", "..", "", " ", "ключ", "キー", "é", "e\u0301", "0", "__proto__")

# Types that no driver writes any more, but old databases hold: undefined, symbol, DBPointer.
_DEPRECATED = RawBSONDocument(
    b"\x26\x00\x00\x00\x06u\x00\x0es\x00\x02\x00\x00\x00s\x00\x0cp\x00\x02\x00\x00\x00c\x00iiiiiiiiiiii\x00"
)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -(2**31),
    Int64(0),
    Int64(2**63 - 1),
    Int64(-(2**63)),
    0.1,
    -0.0,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
    Decimal128("1.10"),
    Decimal128("-0"),
    Decimal128("NaN"),
    Decimal128("9.999999999999999999999999999999999E+6144"),
    "",
    "nul\x00inside",
    "🜚 e\u0301 \u202eright to left",
    "line\nbreak\ttab \x7f",
    MinKey(),
    MaxKey(),
    Timestamp(0, 0),
    Timestamp(2**32 - 1, 2**32 - 1),
    Regex("^a.*/b$", "imsx"),
    Regex("", ""),
    Code("function () { return 1; }"),
    Code("function () { return a; }", {"a": Int64(1), "b": {"c": []}}),
    Binary(b"", 0),
    Binary(b"\x00\xff" * 20, 0),
    Binary(b"old", 2),
    Binary(b"u" * 16, 3),
    Binary(b"m" * 16, 5),
    Binary(b"private", 128),
    DBRef("orders", ObjectId(b"r" * 12), "shop"),
    _EPOCH,
    dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    dt.datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=dt.UTC),
    DatetimeMS(253_402_300_800_000),
    DatetimeMS(-(2**62)),
    [],
    {},
    [[], [[]], {}],
    {"": {"": ""}},
    [None, 1, "two", {"three": [3.0]}],
    _DEPRECATED,
)


def any_value(rng: random.Random, depth: int = 0) -> Any:  # noqa: ANN401 - any BSON value
    """Return a value of any type, sometimes nested."""
    kind = rng.random()
    if depth < 3 and kind < 0.10:
        return any_fields(rng, depth=depth + 1)
    if depth < 3 and kind < 0.18:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    if kind < 0.30:
        return rng.randrange(-(2**31), 2**31)
    if kind < 0.35:
        return ObjectId(rng.randbytes(12))
    if kind < 0.38:
        return Binary.from_uuid(uuid.UUID(bytes=rng.randbytes(16), version=4))
    return rng.choice(_VALUES)


def any_fields(rng: random.Random, *, depth: int = 0) -> dict[str, Any]:
    """Return a few fields in an order of their own."""
    names = [f"field{number}" for number in range(12)]
    return {name: any_value(rng, depth) for name in rng.sample(names, rng.randrange(1, 7))}


def every_value() -> dict[str, Any]:
    """Return one document that holds each of the odd values."""
    return {f"v{number}": value for number, value in enumerate(_VALUES)}


def odd_fields(rng: random.Random) -> dict[str, Any]:
    """Return a document whose field names not every server takes."""
    names = rng.sample(ODD_FIELDS, rng.randrange(1, len(ODD_FIELDS)))
    return {"inside": dict.fromkeys(names, 1), **{name: any_value(rng) for name in names}}


_IDS: tuple[Callable[[random.Random, int], Any], ...] = (
    lambda _, number: ObjectId(number.to_bytes(12)),
    lambda _, number: number % 2**31,
    lambda _, number: Int64(2**40 + number),
    lambda _, number: -number - 0.5,
    lambda _, number: Decimal128(f"{number}.25"),
    lambda _, number: f"path/{number}/with ?#&=+% and.dots",
    lambda _, number: f"注文 {number} ñ é e\u0301 🜚",
    lambda _, number: f"{number}-" + "long" * 225,
    lambda _, number: {"tenant": "a/b", "number": number},
    lambda _, number: {"number": Int64(number), "tenant": None, "nested": {"list": [1, "2"]}},
    lambda _, number: Binary(number.to_bytes(9), 0),
    lambda _, number: Binary(number.to_bytes(9), 128),
    lambda _, number: Binary.from_uuid(uuid.UUID(int=number)),
    lambda _, number: DatetimeMS(-number),
    lambda _, number: DatetimeMS(number),
    lambda _, number: Timestamp(number % 2**32, 1),
    lambda _, number: Code(f"function () {{ return {number}; }}"),
    lambda _, number: DBRef("orders", number),
    lambda _, number: f"nul\x00inside {number}",
)
# Each of these can be the _id of one document only.
SINGLE_IDS: tuple[Any, ...] = (
    None,
    True,
    False,
    MinKey(),
    MaxKey(),
    "",
    {},
    -0.0,
    float("nan"),
    float("-inf"),
    Int64(-(2**63)),
    Decimal128("9.99E+6000"),
    Timestamp(0, 0),
    Binary(b"", 0),
    ".",
    "..",
    "/",
)


def any_id(rng: random.Random, number: int) -> Any:  # noqa: ANN401 - any BSON value
    """Return an `_id` of any kind; another number gives another id."""
    return rng.choice(_IDS)(rng, number)
