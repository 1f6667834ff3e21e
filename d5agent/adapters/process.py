"""The one child-process runner: argv list, own process group, output read as it comes, TERM, grace, KILL.

A child does not outlive us, even when we are killed: the kernel sends it SIGKILL then (setpriv, of util-linux).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from d5agent.errors import OperatorError
from d5agent.steps.parallel import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

_Result = TypeVar("_Result")
_GRACE_SECONDS: Final = 10
_CHUNK: Final = 256 * 1024
_TIED_TO_US: Final = ("setpriv", "--pdeathsig", "KILL", "--")
_LAST_LINES: Final = 5
_CREDENTIALS: Final = re.compile(r"//[^/@\s]+@")  # of a URI that a tool repeats in its complaint


class Child:
    """A running child: its standard output as chunks, its standard error as lines."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        name: str,
        stall_seconds: float | None,
        secrets: Sequence[str] = (),
    ) -> None:
        self._process = process
        self._name = name
        self._stall_seconds = stall_seconds
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._errors_read = asyncio.Event()
        self._last_lines: list[str] = []

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield standard output; when it ends, OperatorError unless the child ended well.

        OperatorError, too, when nothing comes for `stall_seconds` while we wait for it.
        """
        stdout = self._process.stdout
        while stdout is not None and (chunk := await self._soon(stdout.read(_CHUNK))):
            yield chunk
        code = await self._soon(self._process.wait())
        await self._soon(self._errors_read.wait())
        if code != 0:
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else "failed"
            raise OperatorError(
                f"{self._name} {how}", hint="its last words say why", status=code, stderr=self._last_words()
            )

    async def _soon(self, what: Awaitable[_Result]) -> _Result:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await what
        except TimeoutError:
            raise OperatorError(
                f"{self._name} has sent nothing for {self._stall_seconds:g} s",
                hint="look whether the server answers, then start it again",
                stderr=self._last_words(),
            ) from None

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _CREDENTIALS.sub("//***@", text)

    def _last_words(self) -> str:
        return " | ".join(self._last_lines)[-1000:]

    async def read_errors(self, on_line: Callable[[str], None]) -> None:
        """Read standard error to its end, line by line."""
        stderr = self._process.stderr
        try:
            while stderr is not None and (line := await stderr.readline()):
                text = line.decode(errors="replace").rstrip("\r\n")
                self._last_lines = [*self._last_lines[1 - _LAST_LINES :], self._without_secrets(text)]
                on_line(text)
        finally:
            self._errors_read.set()

    async def end(self) -> None:
        """End the child and all of its group: TERM, some grace, KILL."""
        is_over = self._process.returncode is not None
        if not is_over:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # one that was stopped would not hear it
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                await self._end_of_output()
        except TimeoutError:
            is_over = False  # a grandchild holds its pipes
        finally:
            # Here even when a second cancellation came while it had its grace: no orphan is left.
            if not is_over:
                self._signal(signal.SIGKILL)
        await self._end_of_output()

    async def _end_of_output(self) -> None:
        """Read what nobody reads any more: asyncio tells of a child's end only once its pipes are empty."""
        await _exhaust(self._process.stdout)
        await self._errors_read.wait()
        await _exhaust(self._process.stderr)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@asynccontextmanager
async def running(
    argv: Sequence[str],
    *,
    on_line: Callable[[str], None],
    stall_seconds: float | None = None,
    pass_fds: Sequence[int] = (),
    secrets: Sequence[str] = (),
) -> AsyncGenerator[Child]:
    """Run a child while the block runs. OperatorError: there is no such program, or it may not be run.

    `secrets`: what it was given and may repeat in its complaints; errors show none of them.
    """
    for program in (_TIED_TO_US[0], argv[0]):
        if shutil.which(program) is None:
            raise OperatorError(
                f"{program} cannot be run", hint="install it, or name its path in the configuration", reason="not found"
            )
    process = await asyncio.create_subprocess_exec(
        *_TIED_TO_US,
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        pass_fds=pass_fds,
    )
    child = Child(process, argv[0], stall_seconds, secrets)
    async with beside(child.read_errors(on_line)):
        try:
            yield child
        finally:
            await child.end()


async def _exhaust(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and await stream.read(_CHUNK):
        pass


async def run(
    argv: Sequence[str], *, on_line: Callable[[str], None] = lambda _: None, stall_seconds: float | None = None
) -> str:
    """Run a child to its end and return what it wrote to standard output; OperatorError unless it ended well."""
    async with running(argv, on_line=on_line, stall_seconds=stall_seconds) as child:
        return b"".join([chunk async for chunk in child.chunks()]).decode(errors="replace")
