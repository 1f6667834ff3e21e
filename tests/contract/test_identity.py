"""Which `_id`s are one: a real server, the agent's own rule and the one of the fakes agree."""

from __future__ import annotations

import random
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, Final

from bson import Binary, Code, Decimal128, Int64, ObjectId, encode
from bson.codec_options import CodecOptions
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient

from d5agent.core.log.identity import identity_of
from d5agent.core.log.raw import DocumentId, id_document
from tests.fakes.documents import raw_id
from tests.fakes.indexes import identity

if TYPE_CHECKING:
    from d5agent.drill.servers import Mongod

_RAW: Final = CodecOptions(document_class=RawBSONDocument)
_DUPLICATE_KEY: Final = 11000
_IDS: Final = 3_000  # each meets all before it
_COMMAND: Final = 1_000
_DECIMALS: Final = (
    *("0", "-0", "0E+6111", "0E-6176", "1", "1.0", "1.000", "10", "1E+1", "1E-1", "0.1", "-1", "NaN", "-NaN"),
    *("Infinity", "-Infinity", "9E+6144", "9.000E+6144", "1E-6176", "9007199254740993", "9223372036854775807"),
    *("1234567890123456789012345678.123456", "1234567890123456789012345678.123457", "1E+308", "1E+22"),
    *("9999999999999999999999999999999999", "0.1000000000000000055511151231257827", "9223372036854775808", "0.5"),
)
_DOUBLES: Final = (
    *(0.0, -0.0, 1.0, -1.0, 0.1, 0.5, 10.0, 1e22, 1e308, 5e-324, float(2**53), float(2**53 + 2), float(2**63)),
    *(float("nan"), float("inf"), float("-inf"), 1.7976931348623157e308),
)
_INTEGERS: Final = (0, 1, -1, 10, 2**31 - 1, -(2**31))
_LONGS: Final = (*_INTEGERS, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1, -(2**63))
_OTHERS: Final[tuple[Any, ...]] = (
    *("", "a", "A", "1", "é", "e\u0301", "a\0b", None, True, False, ObjectId(b"0123456789ab"), Code("a"), Code("")),
    *(Binary(b"", 0), Binary(b"a", 0), Binary(b"a", 5), DatetimeMS(0), DatetimeMS(2**60), {}),
    *(Code("a", {"x": 1}), Code("a", {"x": 1.0}), Code("a", {"y": 1})),
)


def _number(dice: random.Random) -> object:
    kind = dice.randrange(4)
    if kind == 0:
        return dice.choice(_INTEGERS)
    if kind == 1:
        return Int64(dice.choice(_LONGS))
    if kind == 2:
        return dice.choice(_DOUBLES)
    return Decimal128(dice.choice(_DECIMALS))


def _same_number(value: object, dice: random.Random) -> object:
    """Return a number that is equal in another type, or nearly so: it differs in the last of its 34 digits."""
    with localcontext() as context:
        context.prec = 34
        number = value.to_decimal() if isinstance(value, Decimal128) else Decimal(value)  # type: ignore[arg-type]
        if not number.is_finite() or abs(number.adjusted()) > 300 or not number:
            return value
        return Decimal128(number.next_plus() if dice.random() < 0.3 else +number)


def _value(dice: random.Random, depth: int) -> object:
    kind = dice.random()
    if kind < 0.5:
        number = _number(dice)
        return _same_number(number, dice) if dice.random() < 0.3 else number
    if kind < 0.7 or not depth:
        return dice.choice(_OTHERS)
    if kind < 0.8:
        return [_value(dice, depth - 1) for _ in range(dice.randrange(3))]
    names = dice.sample(("a", "b", ""), dice.randrange(1, 3))
    return {name: _value(dice, depth - 1) for name in names}


def _string_or_symbol(id_: DocumentId) -> list[DocumentId]:
    return [DocumentId(b"\x0e" + id_[1:])] if id_[0] == 0x02 else []


def _ids(dice: random.Random) -> list[DocumentId]:
    """Return `_id`s as a server may hold them, many of them equal in other types."""
    found: list[DocumentId] = []
    while len(found) < _IDS:
        value = _value(dice, 2)
        id_ = raw_id({"v": value} if isinstance(value, list) else value)
        found += [id_, *_string_or_symbol(id_)]
    # The names of an array's elements are no part of it.
    return [*found, *(_with_array(encode(array)) for array in ({"0": 1, "1": 2}, {"7": 1, "": 2.0}))]


def _with_array(array: bytes) -> DocumentId:
    inner = b"\x04v\0" + array + b"\0"
    return DocumentId(b"\x03" + (len(inner) + 4).to_bytes(4, "little") + inner)


async def test_ids_that_are_equal_to_a_server_are_one(mongod: Mongod, fresh_name: str) -> None:
    ids = _ids(random.Random(13))
    refused = set()
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongod.uri)
    async with client:
        for at in range(0, len(ids), _COMMAND):
            documents = [RawBSONDocument(id_document(id_)) for id_ in ids[at : at + _COMMAND]]
            command = {"insert": "c", "documents": documents, "ordered": False}
            answer = await client[fresh_name].command(command, codec_options=_RAW)  # an error quotes the `_id`
            errors = answer.get("writeErrors", [])
            assert {error["code"] for error in errors} <= {_DUPLICATE_KEY}, errors
            refused |= {at + error["index"] for error in errors}
        await client.drop_database(fresh_name)
    assert len(refused) > _IDS / 10
    for rule in (identity_of, identity):
        seen: dict[object, DocumentId] = {}
        for number, id_ in enumerate(ids):
            place = rule(id_)
            assert (place in seen) == (number in refused), (rule.__module__, id_, seen.get(place))
            seen[place] = id_
