"""The DumpTool: MongoDB's own mongodump, its archive read from its standard output."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from pymongo.asynchronous.uri_parser import parse_uri

from d5agent.adapters.mongo import Client, application_databases, hello, translating
from d5agent.adapters.process import Child, run, running
from d5agent.adapters.retry import retrying
from d5agent.adapters.uri import read_uri
from d5agent.core.log.operation import ClusterTime
from d5agent.core.mongodump import INSTALL, DumpProgress, check_version, parse_version
from d5agent.errors import OperatorError
from d5agent.ports import ToolVersion

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

    from d5agent.ports import Clock


class MongoDump:
    """Dumps the databases of one server. The URI goes through a pipe: it is in no argument, no variable and no file."""

    def __init__(  # noqa: PLR0913 -- each is a setting of its own
        self,
        client: Client,
        *,
        side: str,
        uri: str,
        program: str,
        flavor: str,
        databases: Sequence[str],
        stall_seconds: float,
        clock: Clock,
    ) -> None:
        self._client = client
        self._side = side
        self._uri = read_uri(uri, side)
        self._program = program
        self._flavor = flavor
        self._databases = databases
        self._stall_seconds = stall_seconds
        self._clock = clock

    async def version(self) -> ToolVersion:
        """Return the tool's version. OperatorError: it is missing, or fails on this flavor of server."""
        try:
            said = await run([self._program, "--version"], stall_seconds=self._stall_seconds)
        except OperatorError as error:
            raise OperatorError(error.message, hint=INSTALL, **error.facts) from error
        version = parse_version(said)
        return ToolVersion(number=version, advice=check_version(version, flavor=self._flavor))

    async def server_version(self) -> str:
        """Return the server's version, as it tells it."""

        async def once() -> str:
            with translating(self._side):
                return str((await self._client.admin.command("buildInfo"))["version"])

        return await retrying(once, clock=self._clock)

    async def databases(self) -> Sequence[str]:
        """Return the databases from the settings, else all that applications have."""

        async def once() -> list[str]:
            return sorted(await application_databases(self._client, self._side))

        return self._databases or await retrying(once, clock=self._clock)

    async def operation_time(self) -> ClusterTime:
        """Return the server's time (hello.operationTime)."""

        async def once() -> ClusterTime:
            time = (await hello(self._client, self._side)).get("operationTime")
            if time is None:
                raise OperatorError(f"the {self._side} is no replica set", hint="make it one, of one member at least")
            return ClusterTime(time.time, time.inc)

        return await retrying(once, clock=self._clock)

    @asynccontextmanager
    async def dump(self, database: str) -> AsyncGenerator[RunningDump]:
        """Begin a dump; it is ended when the block ends."""
        quoted = (await self._uri_text()).replace("'", "''")
        with _private_file(f"uri: '{quoted}'\n") as descriptor:
            config = f"--config=/proc/self/fd/{descriptor}"
            argv = [self._program, config, f"--db={database}", "--archive", "--gzip"]
            progress = DumpProgress()
            async with running(
                argv,
                on_line=progress.feed,
                stall_seconds=self._stall_seconds,
                pass_fds=[descriptor],
                secrets=self._uri.secrets,
            ) as child:
                yield RunningDump(child, progress)

    async def _uri_text(self) -> str:
        """Return the URI for mongodump; where hosts are in the DNS, so may be the database to log in at."""
        if not self._uri.is_srv:
            return self._uri.text_for_dump({})
        with translating(self._side):
            return self._uri.text_for_dump((await parse_uri(self._uri.text))["options"])


@contextmanager
def _private_file(text: str) -> Generator[int]:
    """Give the reading end of a pipe that holds a text: a file that has no name, and is gone once it is read.

    A pipe takes 64 KiB without a reader; a URI is not that long.
    """
    reading, writing = os.pipe()
    try:
        os.write(writing, text.encode())
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


class RunningDump:
    """A running mongodump."""

    def __init__(self, child: Child, progress: DumpProgress) -> None:
        self._child = child
        self._progress = progress

    def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the archive; at its end, OperatorError with the tool's last words unless it ended well."""
        return self._child.chunks()

    def documents_so_far(self) -> int:
        """Return how many documents it has told of."""
        return self._progress.documents

    def documents(self) -> Mapping[str, int]:
        """Return the documents of each collection, once its chunks are read."""
        return dict(self._progress.done)
