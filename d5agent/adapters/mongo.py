"""The connection to a MongoDB-speaking server, and what its errors mean to us."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidName,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from d5agent.adapters.uri import read_uri
from d5agent.core.log import raw
from d5agent.core.log.operation import OWN_DATABASE
from d5agent.errors import AgentError, CredentialsError, OperatorError, TransientError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping

    from pymongo.asynchronous.client_session import AsyncClientSession

    from d5agent.adapters.uri import MongoUri

Client = AsyncMongoClient[RawBSONDocument]
# User data is not decoded: a server stores more than a decoder takes.
# Replies hold pieces of users' data: names that are not UTF-8, and dates that Python has none for, stay as they came.
RAW: Final[CodecOptions[Any]] = CodecOptions(
    document_class=RawBSONDocument,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="backslashreplace",
)
APP_NAME: Final = "d5agent"
SYSTEM_DATABASES: Final = frozenset({"admin", "local", "config"})
_QUOTED: Final = re.compile(r"'[^']*'?|\"[^\"]*\"?")
_SELECTION_MS: Final = 5_000
_CLOSE_SECONDS: Final = 5
_HOST_MS: Final = 2_000
_WITHOUT_SET: Final = {"source": "it has no change stream", "target": "it has no transactions, and no majority"}
_UNAUTHORIZED: Final = 13
_AUTHENTICATION_FAILED: Final = 18
_DISK_FULL: Final = 14031
WRITES_BLOCKED: Final = 371
# "Server Discovery and Monitoring", and DocumentDB's fail-over: another member answers soon.
_PASSING: Final = frozenset({6, 7, 43, 89, 91, 112, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436})
# QueryPlanKilled (a stream's look-up too, when its collection is renamed or dropped meanwhile), CursorKilled,
# Interrupted: the same question, asked again, is answered ("Error Codes", MongoDB manual). So is a whole transaction
# that the server tells to begin anew ("Transactions").
_ENDED_EARLY: Final = frozenset({175, 237, 11601})
_BEGIN_ANEW: Final = "TransientTransactionError"
# LockTimeout, LockBusy, ConflictingOperationInProgress, DatabaseDropPending, and an index build in the way: a command
# of ours that had no answer may still be at work, such as a dropDatabase ("Error Codes", MongoDB manual).
_IN_THE_WAY: Final = frozenset({24, 46, 117, 215, 12586, 12587})


def translated(error: PyMongoError | BSONError, side: str) -> AgentError:
    """Return what a driver's error means to us. `side` is "source" or "target"; no URI is ever shown."""
    if isinstance(error, ServerSelectionTimeoutError | AutoReconnect | ConnectionFailure | ExecutionTimeout):
        return TransientError(
            f"the {side} is not reached",
            hint=f"does it run, is [{side}] uri its address, do firewall and TLS let this machine in? then try again",
            reason=_short(error),
        )
    if isinstance(error, OperationFailure):
        is_blocked = error.code == WRITES_BLOCKED
        return writes_blocked(_short(error)) if is_blocked else _from_server(error, side)
    if isinstance(error, InvalidURI | ConfigurationError | InvalidName):
        return OperatorError(
            f"the {side}'s URI is wrong", hint=f"mend [{side}] uri, or the secret it comes from", reason=_short(error)
        )
    return OperatorError(f"the {side}'s driver failed", hint="report it", reason=type(error).__name__)


def _from_server(error: OperationFailure, side: str) -> AgentError:
    text = str((error.details or {}).get("errmsg", "")) or _short(error)
    if error.code == _AUTHENTICATION_FAILED:
        return CredentialsError(
            f"the {side} refused user or password",
            hint=f"correct the password in [{side}] uri, or in its secret: it is read again by itself "
            "(docs/runbook: change the user)",
            code=error.code,
        )
    if error.code == _UNAUTHORIZED:
        return OperatorError(
            f"a privilege is missing on the {side}",
            hint="grant it: docs/privileges.md lists what the agent's users need",
            code=error.code,
            server_says=text,
        )
    if error.code == _DISK_FULL:
        return OperatorError(
            f"the {side}'s disk is full",
            hint="make room there, then start the service that failed again, such as: d5agent start restore",
            code=error.code,
            server_says=text,
        )
    passing = _passing(error, side)
    if passing is not None:
        what, hint = passing
        return TransientError(what, hint=hint, code=error.code, server_says=text)
    return OperatorError(f"the {side} refused a command", hint="see what it says", code=error.code, server_says=text)


def _passing(error: OperationFailure, side: str) -> tuple[str, str] | None:
    """Return what stands in a command's way for a while, and what comes of it; None: it was refused for good."""
    if error.code in _PASSING:
        return f"the {side} is changing its primary", "it ends by itself"
    if error.code in _ENDED_EARLY or error.has_error_label(_BEGIN_ANEW):
        hint = "its collection was renamed or dropped, or somebody ended it: it is done again"
        return f"the {side} ended a command before its end", hint
    if error.code in _IN_THE_WAY:
        return f"another command is in the way on the {side}", "it ends by itself, then this one is done"
    return None


def writes_blocked(server_says: str) -> OperatorError:
    """Return the error of a target in write-block mode whose agent's user may not bypass it."""
    return OperatorError(
        "the target is in write-block mode, and the agent's user may not bypass it",
        hint="grant the agent's user the role d5agentWriteBlock (docs/privileges.md), or end that mode on MongoDB with "
        "db.adminCommand({setUserWriteBlockMode: 1, global: false}); then type: d5agent start restore",
        code=WRITES_BLOCKED,
        server_says=server_says,
    )


def _short(error: Exception) -> str:
    """Return an error's first sentence: a driver's text goes on with the whole topology, or with the URI.

    What it quotes is left out: of a URI that is no URI it may be a piece of the password.
    """
    return _QUOTED.sub("…", str(error).split(",")[0].split("://")[0])[:200]


@contextmanager
def translating(side: str) -> Iterator[None]:
    """Turn the driver's errors inside the block into ours."""
    try:
        yield
    except (PyMongoError, BSONError) as error:
        raise translated(error, side) from error
    except UnicodeEncodeError as error:
        raise OperatorError(
            f"a name of a database or collection is not UTF-8: no driver can send it to the {side}",
            hint="its operations stay in the log: see docs/failure-modes.md, 'a name that is not UTF-8'",
            name=error.object.encode(errors="surrogateescape"),
        ) from error


async def close_cursor(session: AsyncClientSession, database: str, collection: str, cursor_id: int) -> None:
    """Close a cursor, 0: there is none, and its session. A server that is gone has closed it."""
    with suppress(PyMongoError, TimeoutError):
        if cursor_id:
            command = {"killCursors": collection, "cursors": [cursor_id]}
            async with asyncio.timeout(_CLOSE_SECONDS):
                await session.client[database].command(command, session=session)
    await session.end_session()


@asynccontextmanager
async def open_mongo(uri: str, *, side: str, pool_size: int = 16) -> AsyncGenerator[Client]:
    """Open a client on the primary; nothing is sent yet. OperatorError: the URI is wrong."""
    text = read_uri(uri, side).text
    with translating(side):
        client: Client = AsyncMongoClient(
            text,
            document_class=RawBSONDocument,
            datetime_conversion="DATETIME_AUTO",  # an error may quote an _id that is a date of the year 40000
            unicode_decode_error_handler="replace",  # … or one that is not UTF-8
            appname=APP_NAME,
            retryWrites=False,  # DocumentDB has none; what is repeated here is safe to repeat
            readPreference="primary",
            serverSelectionTimeoutMS=_SELECTION_MS,
            maxPoolSize=pool_size,
        )
    try:
        yield client
    finally:
        await client.close()


async def application_databases(client: Client, side: str) -> list[str]:
    """Return the names of the databases that are neither the server's nor ours."""
    with translating(side):
        answer = await client.admin.command({"listDatabases": 1, "nameOnly": True}, codec_options=RAW)
    reply = bytes(answer.raw)
    rows = raw.documents_of(reply, raw.spans(reply)[b"databases"][1])
    names = (raw.text_named(row, b"name") for row in rows)
    return [name for name in names if name not in SYSTEM_DATABASES | {OWN_DATABASE}]


async def hello(client: Client, side: str) -> dict[str, Any]:
    """Return the server's hello, decoded."""
    with translating(side):
        answer = await client.admin.command("hello")
    return dict(answer)


async def require_set(say_hello: Callable[[], Awaitable[Mapping[str, Any]]], uri: str, side: str) -> None:
    """Raise OperatorError unless a server is a member of the replica set that its URI names.

    OperatorError: it is in no set or in another one, or the URI leads to one member of several. TransientError: it is
    not reached.
    """
    read = read_uri(uri, side)
    try:
        answer = await say_hello()
    except TransientError:
        _check_set(read, await _hello_of_a_host(read, side), side)
        raise
    _check_set(read, answer, side)


def _check_set(uri: MongoUri, answer: Mapping[str, Any], side: str) -> None:
    """Raise for what no waiting heals: the driver finds no server there, and says neither why nor what there is."""
    name, wanted = answer.get("setName"), uri.replica_set
    if answer and not name:
        raise OperatorError(
            f"the {side} is not a replica set: {_WITHOUT_SET[side]}",
            hint=f"correct [{side}] uri; DocumentDB is the set rs0, a MongoDB server needs --replSet (one member does)",
        )
    if name and wanted not in {None, name}:
        raise OperatorError(
            f"the {side} is the replica set {name}, and its URI asks for another one",
            hint=f"write replicaSet={name} in [{side}] uri, or the address of the other set",
        )
    members = [*answer.get("hosts", []), *answer.get("passives", [])]
    if uri.is_direct and len(members) > 1:
        raise OperatorError(
            f"directConnection=true leads to one of the {len(members)} members of the {side}'s set: after a fail-over "
            "the agent would read from a secondary",
            hint=f"in [{side}] uri remove directConnection, and write replicaSet={name} and the members' addresses",
        )


async def _hello_of_a_host(uri: MongoUri, side: str) -> Mapping[str, Any]:
    """Return what the first of the URI's hosts answers that does; nothing: none of them."""
    for text in uri.host_texts:
        client: Client = AsyncMongoClient(text, serverSelectionTimeoutMS=_HOST_MS, appname=APP_NAME)
        try:
            return await hello(client, side)
        except AgentError:
            continue  # the caller has an error already
        finally:
            await client.close()
    return {}
