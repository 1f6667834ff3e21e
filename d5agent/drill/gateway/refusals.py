"""Which requests DocumentDB refuses, and in which words. Looks at the top level of a request only."""

from dataclasses import dataclass
from typing import Any, Final

from d5agent.drill.gateway import facts
from d5agent.drill.gateway.bsonwalk import elements, find
from d5agent.drill.gateway.wire import Message, decode, statements

_READ: Final = frozenset({b"$db", b"txnNumber", b"autocommit", b"readConcern"})
_SHAPING: Final = frozenset({"create", "collMod"})
_COLLATION: Final = b"\x03collation\0"
_STATEMENTS: Final = frozenset({b"deletes", b"updates", b"indexes", b"ops"})
_CAUSAL: Final = frozenset({"afterClusterTime", "atClusterTime"})


class RefusedError(Exception):
    """A request that is answered with an error of DocumentDB's instead of being passed on."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What of a request decides its fate."""

    command: str
    database: str
    message: Message
    in_transaction: bool
    retryable: bool
    read_concern: dict[str, Any]


def not_supported(feature: str) -> RefusedError:
    return RefusedError(facts.NOT_SUPPORTED, f"Feature not supported: {feature}")


def read_request(message: Message) -> Request:
    """Pick the few top-level fields that matter out of the raw request."""
    raw = message.raw
    command = ""
    found: dict[bytes, tuple[int, int]] = {}
    for _, name, _, value, end in elements(raw, message.body):
        command = command or name.decode()
        if name in _READ:
            found[name] = value, end
    in_transaction = b"autocommit" in found and raw[found[b"autocommit"][0]] == 0
    database = _string(raw, *found[b"$db"]) if b"$db" in found else ""
    concern = decode(raw, found[b"readConcern"][0]) if b"readConcern" in found else {}
    return Request(
        command=command,
        database=database,
        message=message,
        in_transaction=in_transaction,
        retryable=b"txnNumber" in found and not in_transaction,
        read_concern=concern,
    )


def _string(raw: bytes, value: int, end: int) -> str:
    return raw[value + 4 : end - 1].decode()


def refuse_unsupported(request: Request, allow: frozenset[str]) -> None:
    """Raise RefusedError for what DocumentDB would not do."""
    if request.command in allow:
        return
    if request.command in facts.UNSUPPORTED_COMMANDS:
        raise not_supported(request.command)
    if request.database == "local":
        raise not_supported("local database")
    if request.retryable:
        raise RefusedError(facts.RETRYABLE_WRITES, "Retryable writes are not supported")
    _refuse_causal(request)
    _refuse_collation(request.message)
    if request.command in _SHAPING:
        _refuse_shapes(request.message.decode())


def _refuse_causal(request: Request) -> None:
    concern = request.read_concern
    snapshot = concern.get("level") == "snapshot" and not request.in_transaction
    if snapshot or not _CAUSAL.isdisjoint(concern):
        raise not_supported("'causal consistency'")


def _refuse_collation(message: Message) -> None:
    """Raise for a collation in a command, in one of its statements or in an index; a document may have such a field."""
    raw = message.raw
    if _COLLATION not in raw:
        return
    if any(find(raw, at, b"collation") for at in (message.body, *statements(message, _STATEMENTS))):
        raise not_supported("collation")


def _refuse_shapes(command: dict[str, Any]) -> None:
    if command.get("capped"):
        raise not_supported("capped:true")
    if "viewOn" in command:
        raise not_supported("viewOn")
