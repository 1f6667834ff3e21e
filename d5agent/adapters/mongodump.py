"""The DumpTool: MongoDB's own mongodump, its archive read from its standard output."""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from d5agent.adapters.mongo import SYSTEM_DATABASES, Client, hello, translating
from d5agent.adapters.process import Child, run, running
from d5agent.adapters.retry import retrying
from d5agent.core.backup import check_version, parse_progress, parse_version
from d5agent.core.operation import OWN_DATABASE, ClusterTime
from d5agent.ports import DumpResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.ports import Clock

_PRIVATE: Final = "mongodump-"


def remove_left_over_files(directory: Path) -> None:
    """Remove the private files of dumps that were killed: they hold a password."""
    for path in directory.glob(f"{_PRIVATE}*.yaml"):
        path.unlink(missing_ok=True)


class MongoDump:
    """Dumps the databases of one server. The URI goes through a private file, never through an argument."""

    def __init__(  # noqa: PLR0913 -- each is a setting of its own
        self,
        client: Client,
        *,
        side: str,
        uri: str,
        program: str,
        flavor: str | None,
        databases: Sequence[str],
        directory: Path,
        clock: Clock,
    ) -> None:
        self._client = client
        self._side = side
        self._uri = uri
        self._program = program
        self._flavor = flavor
        self._databases = databases
        self._directory = directory
        self._clock = clock

    async def version(self) -> str:
        """Return the tool's version. OperatorError: it is missing, or fails on this flavor of server."""
        version = parse_version(await run([self._program, "--version"]))
        if self._flavor is not None:
            check_version(version, flavor=self._flavor)
        return version

    async def databases(self) -> Sequence[str]:
        """Return the databases from the settings, else all that applications have."""

        async def once() -> list[str]:
            with translating(self._side):
                names = await self._client.list_database_names()
            return sorted(name for name in names if name not in SYSTEM_DATABASES | {OWN_DATABASE})

        return self._databases or await retrying(once, clock=self._clock)

    async def operation_time(self) -> ClusterTime:
        """Return the server's time (hello.operationTime)."""
        time = (await hello(self._client, self._side))["operationTime"]
        return ClusterTime(time.time, time.inc)

    @asynccontextmanager
    async def dump(self, database: str) -> AsyncGenerator[RunningDump]:
        """Begin a dump; it is ended, and its private file removed, when the block ends."""
        handle, name = tempfile.mkstemp(prefix=_PRIVATE, suffix=".yaml", dir=self._directory)  # mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                quoted = self._uri.replace("'", "''")
                file.write(f"uri: '{quoted}'\n")
            argv = [self._program, f"--config={name}", f"--db={database}", "--archive", "--gzip"]
            documents: dict[str, int] = {}

            def on_line(line: str) -> None:
                progress = parse_progress(line)
                if progress is not None:
                    documents.update([progress])

            async with running(argv, on_line=on_line) as child:
                yield RunningDump(child, documents)
        finally:
            Path(name).unlink(missing_ok=True)  # noqa: ASYNC240 -- one local file; a thread costs more


class RunningDump:
    """A running mongodump."""

    def __init__(self, child: Child, documents: dict[str, int]) -> None:
        self._child = child
        self._documents = documents

    def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the archive; at its end, OperatorError with the tool's last words unless it ended well."""
        return self._child.chunks()

    def result(self) -> DumpResult:
        """Return what the tool reported."""
        return DumpResult(documents=dict(self._documents))
