"""What a server's errors mean to an operator."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.errors import OperationFailure

from d5agent.adapters.mongo import require_set, translated
from d5agent.errors import OperatorError, TransientError


def test_a_full_disk_is_called_one_and_says_what_to_type() -> None:
    error = translated(OperationFailure("x", 14031, {"errmsg": "no space left"}), "target")
    assert isinstance(error, OperatorError)
    assert "the target's disk is full" in str(error)
    assert "d5agent start restore" in error.hint


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (175, {"errmsg": "collection renamed from 'shop.a' to 'shop.b'"}),
        (175, {"errmsg": "collection dropped"}),
        (237, {"errmsg": "cursor killed"}),
        (11601, {"errmsg": "operation was interrupted"}),
        (251, {"errmsg": "no such transaction", "errorLabels": ["TransientTransactionError"]}),
    ],
)
def test_what_was_ended_early_is_done_again(code: int, details: dict[str, object]) -> None:
    error = translated(OperationFailure("x", code, details), "source")
    assert isinstance(error, TransientError)
    assert "the source ended a command before its end" in str(error)
    assert error.facts == {"code": code, "server_says": details["errmsg"]}
    assert "done again" in error.hint


@pytest.mark.parametrize("code", [24, 46, 117, 215, 12586, 12587])
def test_what_another_command_is_in_the_way_of_is_done_again(code: int) -> None:
    error = translated(OperationFailure("The database is currently being dropped", code), "target")
    assert isinstance(error, TransientError)
    assert error.facts["code"] == code


def test_a_command_that_is_refused_is_not() -> None:
    assert isinstance(translated(OperationFailure("x", 251, {"errmsg": "no"}), "source"), OperatorError)


async def set_of(uri: str, **hello: object) -> None:
    async def say_hello() -> dict[str, Any]:
        return hello

    await require_set(say_hello, uri, "target")


@pytest.mark.parametrize(
    ("uri", "hello", "words"),
    [
        ("mongodb://h/", {"isWritablePrimary": True}, "the target is not a replica set"),
        ("mongodb://h/?replicaSet=rs0", {}, ""),
        ("mongodb://h/?replicaSet=rs0", {"setName": "rs1"}, "the target is the replica set rs1"),
        ("mongodb://h/?replicaSet=rs0", {"setName": "rs0", "hosts": ["a", "b"]}, ""),
        ("mongodb://h/", {"setName": "rs1", "hosts": ["a", "b"]}, ""),
        ("mongodb://h/?directConnection=true", {"setName": "rs0", "hosts": ["a"]}, ""),
        ("mongodb://h/?directConnection=true", {"setName": "rs0", "hosts": ["a", "b"]}, "one of the 2 members"),
        ("mongodb://h/?directConnection=true", {"setName": "x", "hosts": ["a"], "passives": ["b"]}, "of the 2 members"),
    ],
)
async def test_set_that_is_not_the_uris_is_named(uri: str, hello: dict[str, Any], words: str) -> None:
    if not words:
        await set_of(uri, **hello)
        return
    with pytest.raises(OperatorError, match=words) as refused:
        await set_of(uri, **hello)
    assert "[target] uri" in refused.value.hint
