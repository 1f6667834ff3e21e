"""The TargetGuard on MongoDB: write-block mode (6.0 and newer), and TTL indexes, by plain commands."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bson import Int64
from pymongo.errors import OperationFailure

from d5agent.adapters.mongo import Client, hello, translating
from d5agent.adapters.mongo_reader import MongoReader
from d5agent.adapters.retry import retrying
from d5agent.adapters.server import MongoServer
from d5agent.adapters.target_changes import MongoTargetChanges
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.replay.ttl import NEVER
from d5agent.ports import WriteBlock
from d5agent.steps.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from d5agent.core.replay.ttl import TtlIndex
    from d5agent.core.servers import ServerFacts
    from d5agent.ports import Clock

_SIDE: Final = "target"
_UNAUTHORIZED: Final = 13
_GONE: Final = frozenset({26, 27})  # NamespaceNotFound, IndexNotFound
_FIRST_WIRE_VERSION: Final = 17  # of 6.0, the first release that has the mode
_IS_ON: Final = 2  # in serverStatus' repl.userWriteBlockMode; 1: off
_SET: Final = "setUserWriteBlockMode"
_BYPASS: Final = "bypassWriteBlockingMode"
_STATUS: Final = {"serverStatus": 1, "metrics": 0, "locks": 0, "tcmalloc": 0, "storageEngine": 0, "wiredTiger": 0}
_COLLECTIONS: Final = 8  # asked for at the same time
_GRANT: Final = "grant the agent's user the role d5agentWriteBlock and clusterMonitor on MongoDB (docs/privileges.md)"


class MongoGuard:
    """Closes a MongoDB server to others. `gate`: only who holds the log may. `asked`: the hosts of its URI."""

    def __init__(
        self, client: Client, *, clock: Clock, gate: WriteGate | None = None, asked: Sequence[str] = ()
    ) -> None:
        self._client = client
        self._clock = clock
        self._gate = gate or WriteGate()
        self._reader = MongoReader(client, side=_SIDE, clock=clock)
        self._server = MongoServer(client, side=_SIDE, asked=asked, has_id=True, clock=clock)

    async def facts(self) -> ServerFacts:
        """Return which target it is."""
        return await self._server.facts()

    async def write_block(self) -> WriteBlock:
        """Return the mode. Whoever may not bypass it must not set it, nor who cannot see whether somebody else did."""
        said = await retrying(partial(hello, self._client, _SIDE), clock=self._clock)
        if said.get("maxWireVersion", 0) < _FIRST_WIRE_VERSION:
            return WriteBlock(
                is_on=None,
                obstacle="MongoDB before 6.0 has no write-block mode",
                hint="keep applications from writing to it yourself, such as by their user's roles",
            )
        status = await self._asked({**_STATUS}, allowed=frozenset({_UNAUTHORIZED}))
        mode = None if status is None else status.get("repl", {}).get("userWriteBlockMode")
        is_on = None if mode is None else mode == _IS_ON
        missing = {_SET, _BYPASS} - await self._actions()
        if missing:
            return WriteBlock(
                is_on=is_on, obstacle=f"the agent's user may not {', '.join(sorted(missing))}", hint=_GRANT
            )
        if is_on is None:
            return WriteBlock(is_on=None, obstacle="the agent's user may not see the mode (serverStatus)", hint=_GRANT)
        return WriteBlock(is_on=is_on)

    async def block_writes(self, *, is_on: bool) -> None:
        """Set the mode; it is replicated, and outlives fail-overs and restarts."""
        await self._change("admin", {_SET: 1, "global": is_on})

    async def position(self) -> bytes:
        """Return the token that the target's change stream is at."""
        return await MongoTargetChanges(self._client, clock=self._clock).position()

    async def ttl_indexes(self) -> Sequence[TtlIndex]:
        """Return the TTL indexes, and the expiry of clustered collections."""
        found = await parallel(self._reader.facts, await self._reader.collections(), limit=_COLLECTIONS)
        return [index for facts in found for index in facts.ttl]

    async def set_ttl(self, index: TtlIndex, seconds: float) -> None:
        """Set the expiry. A clustered collection takes no large number, and is switched off instead."""
        value: object = Int64(int(seconds)) if float(seconds).is_integer() else seconds
        command: dict[str, Any] = {"collMod": index.namespace.collection}
        if index.name:
            command["index"] = {"name": index.name, "expireAfterSeconds": value}
        else:
            command["expireAfterSeconds"] = "off" if seconds == NEVER else value
        await self._change(index.namespace.database, command, allowed=_GONE)

    async def _actions(self) -> set[str]:
        """Return what the user may do to the cluster: nothing without access control, where all are blocked alike."""
        answer = await self._asked({"connectionStatus": 1, "showPrivileges": True})
        privileges = [] if answer is None else answer["authInfo"].get("authenticatedUserPrivileges", [])
        on_cluster = [p for p in privileges if p["resource"].get("cluster") or p["resource"].get("anyResource")]
        return {action for privilege in on_cluster for action in privilege["actions"]}

    async def _asked(
        self, command: Mapping[str, Any], *, allowed: frozenset[int] = frozenset()
    ) -> Mapping[str, Any] | None:
        return await retrying(self._once("admin", command, allowed), clock=self._clock)

    async def _change(
        self, database: str, command: Mapping[str, Any], *, allowed: frozenset[int] = frozenset()
    ) -> None:
        await self._gate.retrying(self._once(database, command, allowed), clock=self._clock)

    def _once(
        self, database: str, command: Mapping[str, Any], allowed: frozenset[int]
    ) -> Callable[[], Awaitable[Mapping[str, Any] | None]]:
        async def once() -> Mapping[str, Any] | None:
            with translating(_SIDE):
                try:
                    return await self._client[database].command(dict(command))
                except OperationFailure as error:
                    if error.code in allowed:
                        return None
                    raise

        return once
