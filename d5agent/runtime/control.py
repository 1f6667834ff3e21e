"""The daemon's side of the control socket: it serves requests, for the user that runs the daemon only."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.run.cutover import require_word
from d5agent.core.run.phase import start, started_with
from d5agent.core.run.services import Phase, Service, Status, parse_request
from d5agent.core.run.status import status_of
from d5agent.core.run.words import Words
from d5agent.errors import EXIT_DONE, EXIT_OPERATOR, AgentError, OperatorError, RefusedError, UnconfirmedError
from d5agent.runtime.control_client import LINE_LIMIT, VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from d5agent.core.run.services import ServiceState
    from d5agent.runtime.daemon import Daemon

_ENDED: Final = frozenset({Status.DONE, Status.FAILED, Status.STOPPED})


@asynccontextmanager
async def control_server(path: Path, daemon: Daemon) -> AsyncGenerator[None]:
    """Serve the socket while the block runs. A stale socket is replaced; any other file is left alone, and refused."""
    _remove_stale(path)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(_Session(daemon).serve, path, limit=LINE_LIMIT)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        _remove_stale(path)


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed daemon left; the state directory's lock says that none lives."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OperatorError("the control socket's path is taken by a file", hint="move it aside", path=path)
    path.unlink()


class _Session:
    """Answers requests."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        try:
            line = await reader.readline()
            async for answer in self._answers(line):
                writer.write(json.dumps(answer, default=str).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # whoever asked is gone, or sent more than a request may be
        finally:
            writer.close()

    async def _answers(self, line: bytes) -> AsyncGenerator[dict[str, Any]]:
        verbs = {
            "status": self._status,
            "start": self._start,
            "stop": self._stop,
            "cutover": self._cutover,
            "pause": self._pause,
            "resume": self._pause,
        }
        try:
            request = json.loads(line)
            if request["version"] != VERSION or request["verb"] not in verbs:
                raise OperatorError("the daemon is of another version", hint="type: systemctl restart d5agent")
            async for answer in verbs[request["verb"]](request):
                yield answer
        except UnconfirmedError as error:
            yield {"exit": error.exit_code, "error": str(error), "hint": error.hint, "question": error.question}
        except AgentError as error:
            yield {"exit": error.exit_code, "error": str(error), "hint": error.hint}
        except (KeyError, TypeError, ValueError):
            yield {"exit": EXIT_OPERATOR, "error": "not a request", "hint": "type: d5agent --help"}

    async def _status(self, _: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        mode = "live" if self._daemon.is_live else "drained"
        yield status_of(self._daemon.state, self._daemon.progress, is_up=True, mode=mode)

    async def _stop(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        await self._daemon.stop(parse_request(request["name"]))
        yield {"exit": EXIT_DONE}

    async def _pause(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        if request["name"] != Service.RESTORE:
            raise OperatorError(f"{request['name']} cannot be paused", hint="type: d5agent pause restore")
        await self._daemon.pause(is_paused=request["verb"] == "pause")
        yield {"exit": EXIT_DONE}

    async def _cutover(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        if not self._daemon.is_live:
            raise RefusedError(
                "cutover refused: the mode is drained, where the fence is drawn by itself",
                hint="type: d5agent start restore; or, to restore while applications write on: d5agent start restore"
                " --mode live, then d5agent cutover",
            )
        if request.get("call_off"):
            await self._daemon.call_off()
            yield {"exit": EXIT_DONE}
            return
        self._require_word(request)
        services = (Service.MONITOR_REPLICATION, Service.RESTORE)
        async for answer in self._started(Service.MONITOR_REPLICATION, services, is_followed=request.get("follow")):
            yield answer

    async def _start(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        wanted, forced_run, mode = parse_request(request["name"]), request.get("force"), request.get("mode")
        if forced_run is not None:
            if wanted is not Phase.CLEAN:
                raise RefusedError(f"{wanted} cannot be forced", hint="only: d5agent start clean --force RUN_ID")
            wanted = Service.CLEAN  # its phase would wait for the restore, and power off
        words, state = Words.from_request(request), self._daemon.state
        if words.again is not None:
            state = replace(state, verified=None)
        services = started_with(wanted, state, is_live=mode == "live" if mode else self._daemon.is_live)
        if wanted is Service.MONITOR_REPLICATION and self._daemon.is_live:  # which is the cutover
            self._require_word(request)
        how: dict[str, Any] = {"forced_run": forced_run, "mode": mode, "words": words}
        async for answer in self._started(wanted, services, is_followed=request.get("follow"), **how):
            yield answer

    def _require_word(self, request: dict[str, Any]) -> None:
        """Ask for a word only where the cutover may begin: nobody's business stands still for one that is refused."""
        start(self._daemon.state, Service.MONITOR_REPLICATION, now="", new_run_id="", is_live=True)
        require_word(
            is_made=self._daemon.refuses_writes,
            is_confirmed=request.get("confirmed") is True,
            can_cutover=self._daemon.progress.restore.can_cutover is True,
        )

    async def _started(
        self,
        wanted: Service | Phase,
        services: tuple[Service, ...],
        *,
        is_followed: object,
        **how: Any,  # noqa: ANN401 -- what Daemon.start takes, which checks it
    ) -> AsyncGenerator[dict[str, Any]]:
        """Start something, as `Daemon.start` does, and, if asked to, follow services to their end."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for service in services:
            self._daemon.followers.add(service, queue)
        try:
            await self._daemon.start(wanted, **how)
            yield {"accepted": str(wanted)}
            if not is_followed:
                yield {"exit": EXIT_DONE}
                return
            async for answer in self._follow(services, queue):
                yield answer
        finally:
            for service in services:
                self._daemon.followers.remove(service, queue)

    async def _follow(
        self, services: tuple[Service, ...], queue: asyncio.Queue[dict[str, Any]]
    ) -> AsyncGenerator[dict[str, Any]]:
        said = ""
        while True:
            while not queue.empty():
                yield queue.get_nowait()
            now = self._standing(services)
            if now != said:
                said = now
                yield {"status": now}
            rows = [self._daemon.state.services[service] for service in services]
            failed = [row for row in rows if row.status is Status.FAILED]
            if failed:
                yield {"exit": EXIT_OPERATOR, "error": failed[0].error, "hint": failed[0].hint}
                return
            if all(row.status in _ENDED for row in rows):
                yield {"exit": EXIT_DONE}
                return
            if rows[0].status is Status.STOPPED and services[0] is Service.MONITOR_REPLICATION:
                yield {"exit": EXIT_OPERATOR, "error": "the cutover was stopped", "hint": rows[0].reason}
                return
            await self._daemon.wait_a_moment()

    def _standing(self, services: tuple[Service, ...]) -> str:
        return ", ".join(_standing(service, self._daemon.state.services[service]) for service in services)


def _standing(service: Service, row: ServiceState) -> str:
    """Return how a service stands, in words: what it waits for, or what went wrong and is tried again."""
    if row.error:
        return f"{service} {row.status}: {row.error}" + (f" ({row.reason})" if row.reason else "")
    return f"{service} {row.status}" + (f" for {row.reason}" if row.reason else "")
