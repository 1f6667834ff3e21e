"""Who a server is: its hosts, its set, its cluster's id, its version, and which of its collections have a collation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pymongo.errors import OperationFailure

from d5agent.adapters.mongo import Client, application_databases, hello, translating
from d5agent.adapters.retry import retrying
from d5agent.core.log.operation import Namespace
from d5agent.core.servers import ServerFacts, hosts_of
from d5agent.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from d5agent.ports import Clock

_Result = TypeVar("_Result")
_ANSWER_SECONDS: Final = 60
_DEFAULT_PORT: Final = "27017"


class MongoServer:
    """Asks one server. `asked`: the hosts of its URI; `has_id`: whether it may have a cluster's id."""

    def __init__(self, client: Client, *, side: str, asked: Sequence[str], has_id: bool, clock: Clock) -> None:
        self._client = client
        self._side = side
        self._hosts = [host if ":" in host.rpartition("]")[2] else f"{host}:{_DEFAULT_PORT}" for host in asked]
        self._has_id = has_id
        self._clock = clock

    async def facts(self) -> ServerFacts:
        """Return who it is (`hello`, `buildInfo`, `replSetGetConfig`)."""

        async def once() -> ServerFacts:
            told = await hello(self._client, self._side)
            named = [told.get("me"), told.get("primary"), *told.get("hosts", ()), *told.get("passives", ())]
            with translating(self._side):
                build = await self._client.admin.command("buildInfo")
            return ServerFacts(
                hosts=hosts_of(self._hosts, (str(host) for host in named if host)),
                set_name=str(told.get("setName", "")),
                cluster_id=await self._cluster_id() if self._has_id else "",
                version=str(build.get("version", "")),
            )

        return await self._asked(once)

    async def collations(self) -> dict[Namespace, str]:
        """Return the locales of the collections whose default collation is not simple."""

        async def once() -> dict[Namespace, str]:
            found: dict[Namespace, str] = {}
            for database in await application_databases(self._client, self._side):
                command: dict[str, Any] = {"filter": {"type": "collection", "options.collation": {"$exists": True}}}
                with translating(self._side):
                    cursor = await self._client[database].list_collections(**command)
                    async for row in cursor:
                        locale = str(row["options"]["collation"].get("locale", ""))
                        found[Namespace(database, row["name"])] = locale
            return {name: locale for name, locale in found.items() if locale != "simple"}

        return await self._asked(once)

    async def _cluster_id(self) -> str:
        """Return the id that its set was initiated with; empty without the right to ask (clusterMonitor)."""
        with translating(self._side):
            try:
                answer = await self._client.admin.command("replSetGetConfig")
            except OperationFailure:
                return ""
        return str(answer["config"].get("settings", {}).get("replicaSetId", ""))

    async def _asked(self, once: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return what a question is answered with; it is asked again where it fails for a passing reason."""

        async def answered() -> _Result:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    return await once()
            except TimeoutError as error:
                raise TransientError(
                    f"the {self._side} does not answer", hint="it is asked again", seconds=_ANSWER_SECONDS
                ) from error

        return await retrying(answered, clock=self._clock)
