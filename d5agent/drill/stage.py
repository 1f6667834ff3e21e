"""The drill's stage: two MongoDB replica sets, the gateway before one of them, an S3 server, users, configuration."""

from __future__ import annotations

import json
import secrets
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pymongo import AsyncMongoClient

from d5agent.drill.child import Child, wait_until
from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Credentials, Mongod, ServerOptions
from d5agent.drill.tools import find_tool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

BUCKET: Final = "d5agent-drill"
APPLICATION: Final = "application"
AGENT: Final = "d5agent"
_START_SECONDS: Final = 20.0
# What the agent's users need, and nothing more (docs/privileges.md).
SOURCE_ROLES: Final = [
    {"role": "readAnyDatabase", "db": "admin"},
    {"role": "clusterMonitor", "db": "admin"},
    {"role": "clusterManager", "db": "admin"},  # to switch the change stream on, and off
    {"role": "dbOwner", "db": "d5agent"},
]
TARGET_ROLES: Final = [
    {"role": "readWriteAnyDatabase", "db": "admin"},
    {"role": "dbAdminAnyDatabase", "db": "admin"},
    {"role": "clusterMonitor", "db": "admin"},
    {"role": "d5agentWriteBlock", "db": "admin"},  # to keep others from writing while restore is at work
]
WRITE_BLOCK_ROLE: Final = {
    "createRole": "d5agentWriteBlock",
    "privileges": [
        {"resource": {"cluster": True}, "actions": ["setUserWriteBlockMode", "bypassWriteBlockingMode"]},
    ],
    "roles": [],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What runs. `source` is the server behind the gateway; applications and agent know only the gateway."""

    folder: Path
    source: Mongod
    target: Mongod
    s3: S3Server
    gateway_address: str
    application_password: str
    config: Path
    power_record: Path

    @property
    def application_uri(self) -> str:
        """How the microservices reach DocumentDB."""
        return _uri(APPLICATION, self.application_password, self.gateway_address, "rs0") + "&retryWrites=false"

    @property
    def admin_uri(self) -> str:
        """How an administrator reaches DocumentDB."""
        credentials = self.source.options.credentials
        assert credentials is not None  # noqa: S101 -- given below
        return _uri(credentials.username, credentials.password, self.gateway_address, "rs0") + "&retryWrites=false"


@asynccontextmanager
async def open_stage(folder: Path, *, mode: str) -> AsyncGenerator[Stage]:
    """Start everything; stop it when the block ends. `mode`: the restore's."""
    async with AsyncExitStack() as stack:
        source = await _start_mongod(stack, folder / "source", "rs0")
        target = await _start_mongod(stack, folder / "target", "onpremises")
        s3 = S3Server(folder)
        stack.push_async_callback(s3.stop)
        await s3.start()
        await s3.create_bucket(BUCKET)
        address = await _start_gateway(stack, folder, source)
        passwords = {name: secrets.token_urlsafe(18) for name in (APPLICATION, AGENT)}
        everything = [{"role": "readWriteAnyDatabase", "db": "admin"}, {"role": "dbAdminAnyDatabase", "db": "admin"}]
        await _create_user(source.uri, APPLICATION, passwords[APPLICATION], everything)
        await _create_user(source.uri, AGENT, passwords[AGENT], SOURCE_ROLES)
        await _administer(target.uri, WRITE_BLOCK_ROLE)
        await _create_user(target.uri, AGENT, passwords[AGENT], TARGET_ROLES)
        stage = Stage(
            folder=folder,
            source=source,
            target=target,
            s3=s3,
            gateway_address=address,
            application_password=passwords[APPLICATION],
            config=folder / "d5agent.toml",
            power_record=folder / "powered-off",
        )
        _write_config(stage, passwords[AGENT], mode)
        yield stage


async def _start_mongod(stack: AsyncExitStack, folder: Path, name: str) -> Mongod:
    root = Credentials(username="root", password=secrets.token_urlsafe(18))
    server = Mongod(folder, options=ServerOptions(name=name, credentials=root))
    stack.push_async_callback(server.stop)
    await server.start()
    return server


async def _start_gateway(stack: AsyncExitStack, folder: Path, source: Mongod) -> str:
    log = folder / "gateway.log"
    argv = [sys.executable, "-m", "d5agent.drill.gateway", "--upstream", f"127.0.0.1:{source.port}"]
    # mongodump 100.7.0, the one that can be had from a package registry, asks for atlasVersion, which DocumentDB
    # refuses; 100.7.4 and later do not ask. Let through, it dumps as a later version would.
    child = Child([*argv, "--allow", "atlasVersion", "--state", str(folder / "gateway.json")], log=log)
    stack.push_async_callback(child.stop, grace_seconds=2)
    child.start()

    async def serves() -> bool:
        child.require_alive()
        return '"address"' in log.read_text(encoding="utf-8")

    await wait_until(serves, seconds=_START_SECONDS, what="the gateway serves", log=log)
    line = next(line for line in log.read_text(encoding="utf-8").splitlines() if '"address"' in line)
    return str(json.loads(line)["address"])


async def _create_user(uri: str, name: str, password: str, roles: list[dict[str, str]]) -> None:
    await _administer(uri, {"createUser": name, "pwd": password, "roles": roles})


async def _administer(uri: str, command: dict[str, Any]) -> None:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
    async with client:
        await client.admin.command(command)


def _write_config(stage: Stage, password: str, mode: str) -> None:
    values: dict[str, dict[str, Any]] = {
        # Switched on by the agent, which switches it off again at the end; what others switch on it leaves on.
        "source": {"uri": _uri(AGENT, password, stage.gateway_address, "rs0"), "enable_change_streams": True},
        "target": {"uri": _uri(AGENT, password, f"127.0.0.1:{stage.target.port}", "onpremises")},
        "store": {"bucket": BUCKET, "endpoint_url": stage.s3.endpoint_url, "region": stage.s3.region},
        "state": {"directory": str(stage.folder / "state")},
        # Small windows: so little is stored in a drill that a restore would else be one window, and not be killed
        # between two.
        "restore": {"mode": mode, "window_bytes": 128 * 1024},
        # See above: the version rule is right for the real DocumentDB.
        "backup": {"mongodump": str(find_tool("mongodump")), "check_version": False},
        "power": {"command": [sys.executable, "-c", f"open({str(stage.power_record)!r}, 'x')"]},
    }
    stage.config.touch(mode=0o600)
    # Strings, numbers, booleans and lists of strings are written the same in JSON and in TOML.
    lines = [
        line
        for section, keys in values.items()
        for line in (f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()))
    ]
    stage.config.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _uri(user: str, password: str, address: str, name: str) -> str:
    return f"mongodb://{user}:{password}@{address}/?replicaSet={name}&authSource=admin"
