"""The Target on MongoDB: every call is acknowledged by a majority, journaled, and safe to repeat."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pymongo import WriteConcern
from pymongo.errors import OperationFailure

from d5agent.adapters.mongo import APP_NAME, RAW, Client, translating
from d5agent.adapters.retry import retrying
from d5agent.adapters.write_commands import (
    batches_of,
    command_of,
    exchange_commands,
    failure_of,
    find_command,
    found_document,
    is_capped_refusal,
    is_large,
    kinds_of,
)
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.log.raw import has_repeated_name
from d5agent.core.replay.pace import Tickets
from d5agent.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from pymongo.asynchronous.client_session import AsyncClientSession

    from d5agent.core.log.operation import Namespace
    from d5agent.core.replay.replay import Barrier, Failure, Write, WriteBatch
    from d5agent.ports import Clock

_Result = TypeVar("_Result")
_SIDE: Final = "target"
_ANSWER_SECONDS: Final = 120  # a majority may take 30 s; a middlebox that forgets a flow answers never
_DURABLE: Final = WriteConcern("majority", j=True, wtimeout=30_000)
_NAMESPACE_NOT_FOUND: Final = 26
_NAMESPACE_EXISTS: Final = 48
_UNAUTHORIZED: Final = 13
# All that costs the server something and is not looked at is left out.
_SERVER_STATUS: Final = {"serverStatus": 1, "repl": 0, "metrics": 0, "locks": 0, "tcmalloc": 0, "storageEngine": 0}
# Each retryable update or delete costs the server as much again, for a record of its own in the session's table. The
# inserts of a command share one record, and so does all of a transaction.
_DEAR_ONE_BY_ONE: Final = frozenset({"update", "delete"})
_TRANSACTION_WRITES: Final = 20
_REPEATED_IN_CAPPED: Final = {"errmsg": "two fields of one name cannot be written safely into a capped collection"}
_OWN_TRANSACTIONS: Final[list[dict[str, Any]]] = [
    {"$currentOp": {"allUsers": False, "idleSessions": True}},
    # Not retryable writes, which have a number too: they end by themselves.
    {"$match": {"transaction.parameters.autocommit": False, "appName": APP_NAME}},
]


class MongoTarget:
    """Writes documents as raw bytes. A call that has no answer after `answer_seconds` is made again."""

    def __init__(
        self, client: Client, *, clock: Clock, gate: WriteGate | None = None, answer_seconds: float = _ANSWER_SECONDS
    ) -> None:
        self._client = client
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._gate = gate or WriteGate()
        # A daemon before us may have been killed, or a service of ours stopped, within a transaction.
        self._may_be_blocked = True
        self._unblocking = asyncio.Lock()
        self._sparse: set[Namespace] = set()

    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        """Make each document what the batch says.

        What began with an insert is tried as one, which is cheapest, a replacement where the `_id` is taken. So is
        everything in a collection that lacks most of what is updated: transactions side by side that look for
        documents which are not there wade through each other's, at twenty times the cost of an insert.
        """
        await self._unblock()
        failures = await self._write(batch.namespace, batch.writes, may_insert=True)
        taken = [failure.write for failure in failures if failure.index == "_id_"]
        if batch.namespace in self._sparse:
            updates = [write for write in batch.writes if not write.is_new and write.document is not None]
            if _are_most(sum(not write.is_new for write in taken), updates):
                self._sparse.discard(batch.namespace)
        others = [failure for failure in failures if failure.index != "_id_"]
        if taken:
            others += await self._write(batch.namespace, taken, may_insert=False)
        return others

    async def exchange(self, namespace: Namespace, write: Write, *, expected: bytes | None) -> str:
        """Read and write one document in one transaction: whoever writes it meanwhile makes it begin again.

        A new document is inserted: an insert replaces nothing, and makes its collection, which a transaction before
        MongoDB 4.4 cannot.
        """
        await self._unblock()
        if expected is None and kinds_of([write._replace(is_new=True)], may_insert=True)["insert"]:
            failures = await self._send("insert", namespace, [write])
            return failures[0].reason if failures else ""

        async def once() -> str:
            with translating(_SIDE):
                return await self._exchange(namespace, write, expected, session)

        async with self._client.start_session(causal_consistency=False) as session:
            return await self._in_transaction(once)

    async def _exchange(
        self, namespace: Namespace, write: Write, expected: bytes | None, session: AsyncClientSession
    ) -> str:
        number = {"txnNumber": _next_number(session), "autocommit": False}
        begin = {**find_command(namespace, write.id), **number, "startTransaction": True}
        begin["readConcern"] = {"level": "snapshot"}
        database, admin = self._client[namespace.database], self._client.admin
        found = found_document(await database.command(begin, session=session, codec_options=RAW))
        reason = "" if found in {expected, write.document} else "it was changed in the target"
        if found == expected != write.document:
            for command in exchange_commands(namespace, write):
                answer = await database.command({**command, **number}, session=session, codec_options=RAW)
                if "writeErrors" in answer:  # which has ended the transaction
                    return failure_of(namespace, write, answer["writeErrors"][0]).reason
        end = {"commitTransaction": 1, **number, "writeConcern": _DURABLE.document}
        _require_acknowledged(await admin.command(end, session=session, codec_options=RAW))
        return reason

    async def apply(self, barrier: Barrier) -> None:
        """Apply a drop, a rename (onto whatever has the new name) or a dropDatabase."""

        async def once() -> None:
            with translating(_SIDE):
                await self._apply(barrier)

        await self._unblock()
        await self._asked(once)

    async def create_collection(self, namespace: Namespace) -> None:
        """Make an empty collection, unless it is there."""

        async def once() -> None:
            with translating(_SIDE):
                try:
                    await self._client[namespace.database].command({"create": namespace.collection})
                except OperationFailure as error:
                    if error.code != _NAMESPACE_EXISTS:
                        raise

        await self._asked(once)

    async def _asked(self, once: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return what a call answers; made again where it fails for a passing reason, or is not answered at all."""

        async def answered() -> _Result:
            try:
                async with asyncio.timeout(self._answer_seconds):
                    return await once()
            except TimeoutError as error:
                raise TransientError(
                    "the target does not answer", hint="it is asked again", seconds=self._answer_seconds
                ) from error

        return await self._gate.retrying(answered, clock=self._clock)

    async def tickets(self) -> Tickets | None:
        """Return the server's tickets for writes, from serverStatus: `queues.execution` from 8.0 on.

        None: the user may not ask, or the server has none.
        """

        async def once() -> Mapping[str, Any]:
            with translating(_SIDE):
                try:
                    return await self._client.admin.command(_SERVER_STATUS, codec_options=RAW)
                except OperationFailure as error:
                    if error.code == _UNAUTHORIZED:
                        return {}
                    raise

        status = await retrying(once, clock=self._clock)
        queues = status.get("queues", {}).get("execution") or status.get("wiredTiger", {}).get("concurrentTransactions")
        write = (queues or {}).get("write")
        return None if write is None else Tickets(free=int(write["available"]), total=int(write["totalTickets"]))

    async def _unblock(self) -> None:
        """End transactions of ours that nobody will commit: for a minute they would keep their documents from us.

        (`$currentOp` and `killSessions`, MongoDB manual: a user's own, without any privilege.)
        """

        async def once() -> None:
            with translating(_SIDE):
                found = await self._client.admin.aggregate(_OWN_TRANSACTIONS)
                left = [{"id": session["lsid"]["id"]} async for session in found]
                if left:
                    await self._client.admin.command({"killSessions": left})

        async with self._unblocking:
            if self._may_be_blocked:
                await self._asked(once)
                self._may_be_blocked = False

    async def _apply(self, barrier: Barrier) -> None:
        """Send a plain command: the driver's methods refuse names that servers have."""
        namespace = barrier.namespace
        if barrier.kind == "dropDatabase":
            command: dict[str, Any] = {"dropDatabase": 1}
        elif barrier.rename_to is None:
            command = {"drop": namespace.collection}
        else:
            command = {"renameCollection": str(namespace), "to": str(barrier.rename_to), "dropTarget": True}
        database = self._client["admin" if barrier.rename_to is not None else namespace.database]
        try:
            await database.command({**command, "writeConcern": _DURABLE.document})
        except OperationFailure as error:
            # Done already, before a crash; or never there, since DocumentDB tells of no empty collection.
            if error.code != _NAMESPACE_NOT_FOUND:
                raise

    async def _write(self, namespace: Namespace, writes: Sequence[Write], *, may_insert: bool) -> list[Failure]:
        """Send deletes, inserts and replacements as plain commands: the driver's bulk writes decode each document."""
        failures = []
        for kind, some in kinds_of(writes, may_insert=may_insert).items():
            if kind == "rewrite":
                for write in some:
                    failures += await self._rewrite(namespace, write)
                continue
            for batch in batches_of(some):
                is_insert = kind == "update" and may_insert and namespace in self._sparse
                failures += await self._send("insert" if is_insert else kind, namespace, batch)
        return failures

    async def _send(self, kind: str, namespace: Namespace, writes: Sequence[Write]) -> list[Failure]:
        command = command_of(kind, namespace, writes)
        # One session for all attempts. An attempt that we gave up, and that the server performs later, would put an old
        # state over a newer one; with a number that is not the session's newest it is refused, or done already.
        async with self._client.start_session(causal_consistency=False) as session:
            is_dear = kind in _DEAR_ONE_BY_ONE and len(writes) >= _TRANSACTION_WRITES
            send = partial(self._send_at_once, namespace, command, session)
            answer = await self._in_transaction(send) if is_dear else None
            if answer is None:
                number = {} if is_large(writes) else {"txnNumber": _next_number(session)}
                answer = await self._sent_one_by_one(namespace, command | number, session)
        if _are_most(len(answer.get("upserted", ())), writes):
            self._sparse.add(namespace)
        errors: list[Mapping[str, Any]] = answer.get("writeErrors", [])
        return [failure_of(namespace, writes[error["index"]], error) for error in errors]

    async def _rewrite(self, namespace: Namespace, write: Write) -> list[Failure]:
        """Delete a document and write it anew, in one transaction.

        What computes a document must not find the old one: it would compute how they differ, and where the new one has
        two fields of one name that ends the server (mongod 6.0.5). A capped collection takes no transaction: there it
        is computed over the old one, and refused where it has such fields.
        """
        absent = write._replace(document=None)
        commands = [command_of("delete", namespace, [absent]), command_of("rewrite", namespace, [write])]

        async def once() -> Mapping[str, Any]:
            with translating(_SIDE):
                return await self._perform(namespace, commands, session)

        async with self._client.start_session(causal_consistency=False) as session:
            answer = await self._in_transaction(once)
            if is_capped_refusal(answer):
                if has_repeated_name(write.document or b""):
                    return [failure_of(namespace, write, _REPEATED_IN_CAPPED)]
                number = {} if is_large([write]) else {"txnNumber": _next_number(session)}
                answer = await self._sent_one_by_one(namespace, commands[1] | number, session)
        return [failure_of(namespace, write, error) for error in answer.get("writeErrors", [])]

    async def _in_transaction(self, transact: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return what a transaction answers; whoever leaves before its end leaves it open."""
        is_over = False
        try:
            answer = await self._asked(transact)
            is_over = True
        finally:
            self._may_be_blocked |= not is_over
        return answer

    async def _sent_one_by_one(
        self, namespace: Namespace, command: dict[str, Any], session: AsyncClientSession
    ) -> Mapping[str, Any]:
        """Perform each statement for itself; return the answer, which names those that are refused."""
        command |= {"ordered": False, "writeConcern": _DURABLE.document}
        return await self._asked(partial(self._send_once, namespace, command, session))

    async def _send_at_once(
        self, namespace: Namespace, command: dict[str, Any], session: AsyncClientSession
    ) -> Mapping[str, Any] | None:
        """Perform all statements in one transaction; None: one of them, or the transaction, was refused.

        Nothing is written then, or all of it, if only the answer is missing: to do it again one by one does no harm.
        """
        with translating(_SIDE):
            try:
                answer = await self._perform(namespace, [command], session)
            except OperationFailure:
                return None
        return None if "writeErrors" in answer else answer

    async def _perform(
        self, namespace: Namespace, commands: Sequence[dict[str, Any]], session: AsyncClientSession
    ) -> Mapping[str, Any]:
        """Perform commands in a transaction, up to one that is refused, which ends it; return the last one's answer."""
        number = {"txnNumber": _next_number(session), "autocommit": False}
        database = self._client[namespace.database]
        answer: Mapping[str, Any] = {}
        for at, command in enumerate(commands):
            begin = {} if at else {"startTransaction": True}
            answer = await database.command({**command, **number, **begin}, session=session, codec_options=RAW)
            if "writeErrors" in answer:
                return answer
        commit = {"commitTransaction": 1, **number, "writeConcern": _DURABLE.document}
        committed = await self._client.admin.command(commit, session=session, codec_options=RAW)
        _require_acknowledged(committed)
        return answer

    async def _send_once(
        self, namespace: Namespace, command: dict[str, Any], session: AsyncClientSession
    ) -> Mapping[str, Any]:
        with translating(_SIDE):
            database = self._client[namespace.database]
            answer: Mapping[str, Any] = await database.command(command, session=session, codec_options=RAW)
        _require_acknowledged(answer)
        return answer


def _are_most(count: int, writes: Sequence[Write]) -> bool:
    return 2 * count > len(writes)


def _next_number(session: AsyncClientSession) -> object:
    """Return a new transaction number of a session ("Retryable Writes", "Transactions", MongoDB manual)."""
    session._start_retryable_write()  # noqa: SLF001 -- the driver does it for its own methods, which decode documents
    return session._transaction_id  # noqa: SLF001 -- the same


def _require_acknowledged(answer: Mapping[str, Any]) -> None:
    unacknowledged = answer.get("writeConcernError")
    if unacknowledged:
        reason = unacknowledged.get("errmsg", "?")
        raise TransientError("writes are not acknowledged by a majority", reason=reason)
