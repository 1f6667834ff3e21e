"""Real MongoDB servers on this machine: a replica set of one member, or of three."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from d5agent.drill.child import Child, accepts_connections, free_port, wait_until
from d5agent.drill.tools import find_tool
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from pathlib import Path

_START_SECONDS = 45.0
_STOP_SECONDS = 10.0
_ALREADY_INITIALIZED = 23
_TTL_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A root user, made when the server first starts."""

    username: str
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How each member is started."""

    name: str = "rs0"
    credentials: Credentials | None = None
    test_commands: bool = False
    cache_gigabytes: float = 0.25
    oplog_megabytes: int = 990
    ttl_seconds: int = _TTL_SECONDS
    """How often it deletes what has expired."""


class Member:
    """One mongod process, its folder and its port; both outlast the process."""

    def __init__(self, folder: Path, options: ServerOptions, key_file: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._options = options
        self._key_file = key_file
        self._child: Child | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What the server writes about itself."""
        return self.folder / "mongod.log"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid if self._child else None

    async def start(self) -> None:
        """Start the process, unless it runs, and wait until it listens."""
        if self.pid is None:
            self._child = self._spawn()
        await wait_until(
            self._listens,
            seconds=_START_SECONDS,
            what=f"mongod {self.address} listens",
            log=self.log,
        )

    async def kill(self) -> None:
        """SIGKILL."""
        if self._child is not None:
            await self._child.kill()

    async def stop(self) -> None:
        """SIGTERM, ten seconds, SIGKILL."""
        if self._child is not None:
            await self._child.stop(grace_seconds=_STOP_SECONDS)

    def client(self, credentials: Credentials | None) -> AsyncMongoClient[dict[str, Any]]:
        """Return a client that talks to this member only."""
        return AsyncMongoClient(
            f"mongodb://{_userinfo(credentials)}{self.address}/?directConnection=true",
            serverSelectionTimeoutMS=5_000,
        )

    def _spawn(self) -> Child:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "data").mkdir(exist_ok=True)
        child = Child(self._argv(), log=self.log)
        child.start()
        return child

    def _argv(self) -> list[str]:
        options = self._options
        argv = [
            *(str(find_tool("mongod")), "--quiet", "--nounixsocket"),
            *("--bind_ip", "127.0.0.1", "--port", str(self.port)),
            *("--dbpath", str(self.folder / "data")),
            *("--replSet", options.name, "--oplogSize", str(options.oplog_megabytes)),
            *("--wiredTigerCacheSizeGB", str(options.cache_gigabytes)),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            # So that operationTime stays where it is while nothing is written, as a source's may (docs/gateway.md).
            *("--setParameter", "writePeriodicNoops=false"),
            # A member that is told to stop waits 15 s for its peers; nobody here needs that.
            *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"),
        ]
        if options.credentials is not None:
            argv += ["--keyFile", str(self._key_file)]
        if options.ttl_seconds != _TTL_SECONDS:
            argv += ["--setParameter", f"ttlMonitorSleepSecs={options.ttl_seconds}"]
        if options.test_commands:
            argv += ["--setParameter", "enableTestCommands=1"]
        return argv

    async def _listens(self) -> bool:
        if self._child is not None:
            self._child.require_alive()
        return await accepts_connections(self.port)


class ReplicaSet:
    """Members in folders below `folder`; killed or stopped, it starts again on the same data."""

    def __init__(self, folder: Path, *, members: int = 1, options: ServerOptions | None = None) -> None:
        self.folder = folder
        self.options = options or ServerOptions()
        self._key_file = folder / "key"
        self.members = [Member(folder / f"member{number}", self.options, self._key_file) for number in range(members)]
        self._is_initiated = False

    @property
    def uri(self) -> str:
        """The connection string, with the credentials in it."""
        hosts = ",".join(member.address for member in self.members)
        query = f"replicaSet={self.options.name}"
        if self.options.credentials is not None:
            query += "&authSource=admin"
        return f"mongodb://{_userinfo(self.options.credentials)}{hosts}/?{query}"

    async def start(self) -> None:
        """Start every member that does not run; return when there is a primary."""
        self._write_key()
        for member in self.members:
            await member.start()
        if not self._is_initiated:
            await self._initiate()
            await self._wait_for_primary()
            await self._create_root()
            self._is_initiated = True
        else:
            await self._wait_for_primary()

    async def kill(self) -> None:
        """SIGKILL every member."""
        for member in self.members:
            await member.kill()

    async def stop(self) -> None:
        """Stop every member, in order."""
        for member in reversed(self.members):
            await member.stop()

    async def find_primary(self) -> Member | None:
        """Return the member that is primary now."""
        for member in self.members:
            if member.pid is not None and await self._is_primary(member):
                return member
        return None

    async def step_down(self, *, seconds: int = 10) -> Member:
        """Make the primary step down for so long; return the new one (it needs three members)."""
        old = await self.find_primary()
        if old is None:
            raise OperatorError("no primary to step down", hint=f"read {self.members[0].log}")
        client = old.client(self.options.credentials)
        try:
            await client.admin.command({"replSetStepDown": seconds, "force": True})
        except AutoReconnect:
            pass  # Old servers close every connection as they step down.
        finally:
            await client.close()
        return await self._wait_for_primary(other_than=old)

    async def _wait_for_primary(self, *, other_than: Member | None = None) -> Member:
        found: Member | None = None

        async def has_primary() -> bool:
            nonlocal found
            found = await self.find_primary()
            return found is not None and found is not other_than

        await wait_until(
            has_primary,
            seconds=_START_SECONDS,
            what=f"{self.options.name} has a primary",
            log=self.members[0].log,
        )
        assert found is not None  # noqa: S101 - the wait has seen to it
        return found

    async def _is_primary(self, member: Member) -> bool:
        client = member.client(None)  # hello needs no login
        try:
            return bool((await client.admin.command("hello")).get("isWritablePrimary"))
        except PyMongoError:
            return False
        finally:
            await client.close()

    async def _initiate(self) -> None:
        config = {
            "_id": self.options.name,
            "members": [{"_id": n, "host": m.address} for n, m in enumerate(self.members)],
            # Chained, a new member may ask another new one, finds its oplog too young, and shuns it for a minute, even
            # when it has become the primary meanwhile: no write is acknowledged by the majority until then.
            "settings": {"electionTimeoutMillis": 2_000, "heartbeatIntervalMillis": 250, "chainingAllowed": False},
        }
        client = self.members[0].client(None)
        try:
            await client.admin.command({"replSetInitiate": config})
        except OperationFailure as error:
            # The start before this one was killed between initiating and returning.
            if error.code != _ALREADY_INITIALIZED:
                raise
        finally:
            await client.close()

    async def _create_root(self) -> None:
        credentials = self.options.credentials
        if credentials is None:
            return
        primary = await self._wait_for_primary()
        client = primary.client(None)  # the first user may be made without a login, from here only
        try:
            await client.admin.command(
                {
                    "createUser": credentials.username,
                    "pwd": credentials.password,
                    "roles": [{"role": "root", "db": "admin"}],
                    "writeConcern": {"w": "majority"},
                }
            )
        finally:
            await client.close()

    def _write_key(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._key_file.exists():
            self._key_file.touch(mode=0o600)
            self._key_file.write_text(base64.b64encode(secrets.token_bytes(96)).decode())


class Mongod(ReplicaSet):
    """A replica set of one member: change streams and transactions work, and it starts fast."""

    def __init__(self, folder: Path, *, options: ServerOptions | None = None) -> None:
        super().__init__(folder, members=1, options=options)

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self.members[0].port

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self.members[0].pid

    @property
    def log(self) -> Path:
        """What the server writes about itself."""
        return self.members[0].log


def _userinfo(credentials: Credentials | None) -> str:
    if credentials is None:
        return ""
    return f"{quote_plus(credentials.username)}:{quote_plus(credentials.password)}@"
