"""The gateway's decisions: scopes, refusals, messages, and the table of facts."""

from __future__ import annotations

import asyncio
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import pytest
from bson.timestamp import Timestamp

from d5agent.drill.gateway import facts
from d5agent.drill.gateway.cluster import Cluster
from d5agent.drill.gateway.listings import shape_databases, shape_hello
from d5agent.drill.gateway.refusals import read_request
from d5agent.drill.gateway.replies import Replies
from d5agent.drill.gateway.router import Answer, Forward, Router
from d5agent.drill.gateway.scopes import WHOLE_CLUSTER, Scope, StreamLog
from d5agent.drill.gateway.streams import Stream
from d5agent.drill.gateway.tokens import (
    TokenCodec,
)
from d5agent.drill.gateway.wire import (
    CHECKSUM_PRESENT,
    Message,
    ProtocolError,
    read_message,
    with_body,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


PROJECT = Path(__file__).parents[2]


D, C = Scope("d", ""), Scope("d", "c")


def test_a_scope_shows_what_comes_after_it_was_enabled() -> None:
    log = StreamLog()
    log.modify(D, enable=True, at=10)
    log.modify(D, enable=True, at=12)
    log.modify(D, enable=False, at=20)
    shown = [time for time in (10, 11, 20, 21) if log.shows(C, time)]
    assert shown == [11, 20]
    assert not log.shows(Scope("e", "c"), 15)
    assert log.enabled() == []


def test_off_and_on_loses_what_nothing_else_covered() -> None:
    log = StreamLog()
    log.modify(WHOLE_CLUSTER, enable=True, at=10)
    log.modify(D, enable=True, at=15)
    log.modify(WHOLE_CLUSTER, enable=False, at=20)
    assert log.has_lost(WHOLE_CLUSTER, 19)
    log.modify(WHOLE_CLUSTER, enable=True, at=30)
    lost = [time for time in (19, 25, 30) if log.has_lost(WHOLE_CLUSTER, time)]
    assert lost == [19, 25]
    assert not log.has_lost(C, 19)
    log.expire(40)
    assert log.has_lost(C, 39)
    assert not log.has_lost(C, 40)


def test_a_stream_is_silent_when_nothing_inside_it_is_on() -> None:
    log = StreamLog()
    assert log.is_silent(WHOLE_CLUSTER)
    log.modify(C, enable=True, at=1)
    assert not log.is_silent(WHOLE_CLUSTER)
    assert not log.is_silent(D)
    assert log.is_silent(Scope("d", "other"))
    assert log.is_silent(Scope("e", ""))


def test_the_log_remembers_itself(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    log = StreamLog.load(path)
    log.modify(C, enable=True, at=2**63)
    log.expire(7)
    again = StreamLog.load(path)
    assert again == log
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def _message(
    body: dict[str, Any],
    *,
    sequence: Sequence[dict[str, Any]] = (),
    sequence_first: bool = False,
    flags: int = 0,
) -> Message:
    kind0 = b"\0" + bson.encode(body)
    kind1 = b""
    if sequence:
        rows = b"documents\0" + b"".join(map(bson.encode, sequence))
        kind1 = b"\1" + struct.pack("<i", len(rows) + 4) + rows
    sections = kind1 + kind0 if sequence_first else kind0 + kind1
    tail = b"sum!" if flags & CHECKSUM_PRESENT else b""
    size = 20 + len(sections) + len(tail)
    raw = struct.pack("<iiiiI", size, 7, 0, 2013, flags) + sections + tail
    message = asyncio.run(_read(raw))
    assert message is not None
    return message


async def _read(raw: bytes) -> Message | None:
    reader = asyncio.StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    return await read_message(reader)


@pytest.mark.parametrize("sequence_first", [True, False])
@pytest.mark.parametrize("flags", [0, CHECKSUM_PRESENT])
def test_a_request_is_read_wherever_its_body_stands(*, sequence_first: bool, flags: int) -> None:
    body = {"insert": "a", "txnNumber": bson.Int64(1), "$db": "d"}
    message = _message(body, sequence=[{"_id": 1}], sequence_first=sequence_first, flags=flags)
    request = read_request(message)
    assert (request.command, request.database, request.retryable) == ("insert", "d", True)
    other = with_body(message, [bson.encode({"insert": "b", "$db": "d"})])
    again = asyncio.run(_read(other))
    assert again is not None
    assert again.decode() == {"insert": "b", "$db": "d"}
    assert not again.flags & CHECKSUM_PRESENT
    assert b"sum!" not in other
    assert bson.encode({"_id": 1}) in other


def test_a_broken_message_is_a_protocol_error() -> None:
    header = struct.Struct("<iiii")
    for raw in (
        header.pack(2**30, 1, 0, 2013),
        header.pack(24, 1, 0, 2012) + b"\0" * 8,
        header.pack(21 + 5, 1, 0, 2013) + b"\0\0\0\0\1\5\0\0\0\0",
    ):
        with pytest.raises(ProtocolError):
            asyncio.run(_read(raw))
    assert asyncio.run(_read(b"\x40\0\0")) is None


def _router(*, allow: frozenset[str] = frozenset()) -> Router:
    return Router(
        Cluster(
            upstream="nowhere:1",
            set_name="rs0",
            allow=allow,
            log=StreamLog(),
            sends_post_batch_token=True,
            log_seconds=None,
        )
    )


def test_a_transaction_is_no_retryable_write() -> None:
    number = bson.Int64(1)
    retried = {"insert": "a", "txnNumber": number, "$db": "d"}
    assert _code(_router().decide(_message(retried))) == 301
    inside = {**retried, "autocommit": False}
    decision = _router().decide(_message(inside))
    assert isinstance(decision, Forward)
    assert decision.raw == _message(inside).raw


def _code(decision: object) -> object:
    assert isinstance(decision, Answer)
    return decision.document["code"]


@pytest.mark.parametrize("name", sorted(facts.UNSUPPORTED_COMMANDS))
def test_each_unsupported_command_can_be_allowed(name: str) -> None:
    message = _message({name: 1, "$db": "admin"})
    assert _code(_router().decide(message)) == 303
    assert isinstance(_router(allow=frozenset({name})).decide(message), Forward)


@pytest.mark.parametrize(("code", "expected"), [(280, 136), (286, 136), (43, 43), (11600, 11600)])
def test_an_upstream_that_lost_its_oplog_says_136(code: int, expected: int) -> None:
    replies = Replies()
    log = StreamLog()
    stream = Stream(scope=WHOLE_CLUSTER, log=log, codec=TokenCodec(log.cluster_id), sends_post_batch_token=True)
    replies.streams[5] = stream
    reply = {"ok": 0.0, "code": code, "errmsg": "x", "operationTime": Timestamp(9, 1)}
    told = bson.decode(b"".join(replies.stream(stream, 5)(bson.encode(reply), 0)))
    assert told["code"] == expected
    assert told["operationTime"] == Timestamp(9, 1)
    assert bool(replies.streams) == (code == 11600)


def test_hello_of_a_secondary_names_no_primary() -> None:
    hello: dict[str, Any] = {"hosts": ["a:1", "b:2"], "primary": "b:2", "isWritablePrimary": False}
    shape_hello(hello, "g:1", "rs0", failing=False)
    assert hello == {
        "hosts": ["g:1"],
        "me": "g:1",
        "setName": "rs0",
        "isWritablePrimary": False,
    }


def test_databases_without_local_add_up() -> None:
    rows = [{"name": name, "sizeOnDisk": 2**20} for name in ("a", "local", "config")]
    reply: dict[str, Any] = {"databases": rows, "totalSize": 3 * 2**20, "totalSizeMb": 3}
    shape_databases(reply)
    assert reply == {"databases": rows[:1], "totalSize": 2**20, "totalSizeMb": 1}


def test_every_fact_has_its_test_and_its_row() -> None:
    tests = "".join(each.read_text() for each in PROJECT.joinpath("tests/integration").glob("test_gateway_*.py"))
    page = PROJECT.joinpath("docs/gateway.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \|(.* `test_.*)\|$", page, re.MULTILINE))
    assert set(rows) == {fact.name for fact in facts.FACTS}
    for fact in facts.FACTS:
        assert f"async def {fact.test}(" in tests
        assert f"`{fact.test}`" in rows[fact.name]
        assert f"| {', '.join(fact.basis)} |" in rows[fact.name]
