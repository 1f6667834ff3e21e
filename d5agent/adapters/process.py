"""The one child-process runner: argv list, own process group, output read as it comes, TERM, grace, KILL."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from d5agent.errors import OperatorError
from d5agent.steps.parallel import leaf_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

_GRACE_SECONDS: Final = 10
_CHUNK: Final = 256 * 1024
_LAST_LINES: Final = 5
_CREDENTIALS: Final = re.compile(r"//[^/@\s]+@")  # of a URI that a tool repeats in its complaint


class Child:
    """A running child: its standard output as chunks, its standard error as lines."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._errors_read = asyncio.Event()
        self._last_lines: list[str] = []

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield standard output; when it ends, OperatorError unless the child ended well."""
        stdout = self._process.stdout
        while stdout is not None and (chunk := await stdout.read(_CHUNK)):
            yield chunk
        code = await self._process.wait()
        await self._errors_read.wait()
        if code != 0:
            raise OperatorError(
                f"{self._name} failed",
                hint="its last words say why",
                status=code,
                stderr=" | ".join(self._last_lines)[-1000:],
            )

    async def read_errors(self, on_line: Callable[[str], None]) -> None:
        """Read standard error to its end, line by line."""
        stderr = self._process.stderr
        while stderr is not None and (line := await stderr.readline()):
            text = _CREDENTIALS.sub("//***@", line.decode(errors="replace").rstrip())
            self._last_lines = [*self._last_lines[1 - _LAST_LINES :], text]
            on_line(text)
        self._errors_read.set()

    async def end(self) -> None:
        """End the child and all of its group: TERM, some grace, KILL."""
        if self._process.returncode is None:
            try:
                self._signal(signal.SIGTERM)
                async with asyncio.timeout(_GRACE_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                pass
            finally:
                # Here even when a second cancellation came while it had its grace: no orphan is left.
                self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@asynccontextmanager
async def running(argv: Sequence[str], *, on_line: Callable[[str], None]) -> AsyncGenerator[Child]:
    """Run a child while the block runs. OperatorError: there is no such program, or it may not be run."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise OperatorError(
            f"{argv[0]} cannot be run", hint="install it, or name its path in the configuration", reason=error.strerror
        ) from error
    child = Child(process, argv[0])
    try:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(child.read_errors(on_line), name="stderr")
            yield child
            await reader
    except BaseExceptionGroup as group_error:
        raise leaf_of(group_error) from None
    finally:
        await child.end()


async def run(argv: Sequence[str], *, on_line: Callable[[str], None] = lambda _: None) -> str:
    """Run a child to its end and return what it wrote to standard output; OperatorError unless it ended well."""
    async with running(argv, on_line=on_line) as child:
        return b"".join([chunk async for chunk in child.chunks()]).decode(errors="replace")
