"""What tests of the whole agent share: its configuration, the gateway before a real mongod, the daemon as a process."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymongo import AsyncMongoClient

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.s3 import S3Store
from d5agent.drill.agent import Agent, Ended
from d5agent.drill.child import start_process
from d5agent.drill.gateway import Gateway
from d5agent.drill.stage import Stage
from d5agent.drill.tools import find_tool
from d5agent.steps.log.reader import LogReader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from d5agent.core.log.operation import Operation
    from d5agent.drill.child import Start
    from d5agent.drill.s3_server import S3Server
    from d5agent.drill.servers import Mongod

Client = AsyncMongoClient[dict[str, Any]]
ENABLE = {"modifyChangeStreams": 1, "database": "", "collection": "", "enable": True}
PATIENCE_SECONDS = 120.0
"""How long a test waits for what must come: long, since a slow machine is no fault."""
OURS = frozenset({"admin", "local", "config", "d5agent"})


@dataclass(slots=True, kw_only=True)
class AgentRig:
    """One agent with everything around it. `config` holds the sections that are written; tests change them."""

    folder: Path
    gateway: Gateway
    source: Mongod
    target: Mongod
    s3: S3Server
    bucket: str
    config: dict[str, dict[str, Any]]
    start: Start = start_process
    agents: list[Agent] = field(default_factory=list)

    @property
    def source_uri(self) -> str:
        return f"mongodb://{self.gateway.address}/?replicaSet=rs0&retryWrites=false"

    @property
    def state(self) -> Path:
        return Path(self.config["state"]["directory"])

    @property
    def power_record(self) -> Path:
        return self.folder / "powered-off"

    def agent(self, name: str = "d5agent.toml") -> Agent:
        """Write the configuration as it is now, and return an agent that reads it."""
        path = self.folder / name
        path.write_text(toml(self.config), encoding="utf-8")
        stage = Stage(
            folder=self.state.parent,
            source=self.source,
            target=self.target,
            s3=self.s3,
            gateway_address=self.gateway.address,
            application_password="",
            config=path,
            power_record=self.power_record,
        )
        agent = Agent(stage, start=self.start)
        self.agents.append(agent)
        return agent

    async def captured_agent(self) -> Agent:
        """Return an agent whose replication is ready, on a stream that somebody else has switched on."""
        await self.enable()
        return await self.ready_agent()

    async def ready_agent(self) -> Agent:
        """Return a new agent whose replication is ready."""
        agent = self.agent()
        await agent.start()
        await agent.call("start", "replication")
        await agent.until(lambda status: bool(status["ready_at"]), what="ready", seconds=PATIENCE_SECONDS)
        return agent

    async def restored(self, agent: Agent) -> dict[str, Any]:
        """Restore, and return the status once it is verified."""
        await agent.call("start", "restore")
        return await agent.until(
            lambda status: status["services"]["restore"]["state"] == "done", what="restored", seconds=PATIENCE_SECONDS
        )

    async def enable(self) -> None:
        """Switch the cluster-wide change stream on."""
        async with Client(self.source_uri) as client:
            await client.admin.command(ENABLE)

    @asynccontextmanager
    async def store(self) -> AsyncGenerator[S3Store]:
        """Open the bucket."""
        async with self.s3.client() as client:
            yield S3Store(client, bucket=self.bucket, prefix="", clock=SystemClock())

    async def keys(self) -> list[str]:
        """Return what is in the bucket."""
        async with self.store() as store:
            return [found.key async for page in store.list_objects("") for found in page]

    async def operations(self) -> list[Operation]:
        """Return what the log holds, but for our own marks."""
        async with self.store() as store:
            reader = LogReader(store=store)
            return [o async for _, o in reader.operations_of(reader.links()) if o is not None and not o.is_ours]

    async def until_captured(self, count: int) -> list[Operation]:
        """Wait until the log holds so many operations, and return them."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while len(found := await self.operations()) < count:
            assert asyncio.get_running_loop().time() < deadline, f"{len(found)} of {count} operations captured"
            await asyncio.sleep(0.05)
        return found

    async def hashes(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return dbHash of each database of both servers, asked for behind the gateway."""
        both = []
        for server in (self.source, self.target):
            async with Client(server.uri) as client:
                names = sorted(set(await client.list_database_names()) - OURS)
                both.append({name: (await client[name].command("dbHash"))["md5"] for name in names})
        return both[0], both[1]


@asynccontextmanager
async def agent_rig(source: Mongod, target: Mongod, s3: S3Server, bucket: str) -> AsyncGenerator[AgentRig]:
    """Build a rig; what it started is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="d5-t-"))  # short: a Unix socket's path must fit
    gateway = Gateway(f"127.0.0.1:{source.port}", allow=frozenset({"atlasVersion"}), state_path=folder / "gateway.json")
    await gateway.start()
    config: dict[str, dict[str, Any]] = {
        "source": {"uri": f"mongodb://{gateway.address}/?replicaSet=rs0"},
        "target": {"uri": target.uri},
        "store": {"bucket": bucket, "endpoint_url": s3.endpoint_url, "region": s3.region},
        "state": {"directory": str(folder / "state")},
        "capture": {"max_segment_seconds": 0.2},
        "backup": {"mongodump": str(find_tool("mongodump")), "check_version": False},
        "power": {"command": [sys.executable, "-c", f"open({str(folder / 'powered-off')!r}, 'x')"]},
    }
    rig = AgentRig(folder=folder, gateway=gateway, source=source, target=target, s3=s3, bucket=bucket, config=config)
    try:
        yield rig
    finally:
        for agent in rig.agents:
            await agent.kill()
        await gateway.stop()
        shutil.rmtree(folder, ignore_errors=True)


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """Return sections as TOML; strings, numbers, booleans and lists are written as in JSON."""
    return "\n".join(
        line
        for section, keys in sections.items()
        for line in (f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()))
    )


def said(ended: Ended) -> str:
    """Return what a verb wrote, on one line."""
    return " ".join((ended.out + ended.err).split())
