"""Real servers for the tests of this folder: started once a session, on ports from the kernel.

The session's fixtures are plain functions: a server is bound to no event loop, and each test has
a loop of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient

from d5agent.drill.s3_proxy import S3Proxy
from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod, ReplicaSet
from tests.integration.agent_rig import AgentRig, agent_rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

_SYSTEM_DATABASES = {"admin", "config", "local"}
_LAST_LINES = 40
_bucket_numbers = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each agent's log below a test that failed: its folder is gone afterwards."""
    report = yield
    rig = getattr(item, "funcargs", {}).get("rig")
    if report.when == "call" and report.failed and isinstance(rig, AgentRig):
        for agent in rig.agents:
            lines = agent.log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if agent.log.exists() else []
            report.sections.append((f"the last lines of {agent.log.name}", "\n".join(lines)))
    return report


def _mongod(factory: pytest.TempPathFactory, name: str) -> Iterator[Mongod]:
    folder = factory.mktemp(name)
    server = Mongod(folder)
    try:
        asyncio.run(server.start())
        yield server
    finally:
        asyncio.run(server.kill())
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def source_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """The server whose changes are captured."""
    yield from _mongod(tmp_path_factory, "source")


@pytest.fixture(scope="session")
def target_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """The server that is restored into."""
    yield from _mongod(tmp_path_factory, "target")


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    """A replica set of three members; a test starts again what it has killed."""
    folder = tmp_path_factory.mktemp("three")
    servers = ReplicaSet(folder, members=3)
    try:
        asyncio.run(servers.start())
        yield servers
    finally:
        asyncio.run(servers.kill())
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(folder)
    try:
        asyncio.run(server.start())
        yield server
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """The name of an empty bucket of the test's own."""
    name = f"test-{next(_bucket_numbers)}"
    asyncio.run(s3_server.create_bucket(name))
    return name


@pytest.fixture
def clean_databases(source_server: Mongod, target_server: Mongod) -> None:
    """Both servers without any user's database, as the test finds them."""
    for server in (source_server, target_server):
        client: MongoClient[dict[str, Any]]
        with MongoClient(server.uri) as client:
            for name in client.list_database_names():
                if name not in _SYSTEM_DATABASES:
                    client.drop_database(name)


@pytest.fixture
async def rig(
    source_server: Mongod,
    target_server: Mongod,
    s3_server: S3Server,
    bucket: str,
    clean_databases: None,  # noqa: ARG001 -- asked for, so that both servers are empty
) -> AsyncIterator[AgentRig]:
    """An agent with everything around it; nothing is started or enabled yet."""
    async with agent_rig(source_server, target_server, s3_server, bucket) as built:
        yield built


@pytest.fixture
async def s3_proxy(s3_server: S3Server) -> AsyncIterator[S3Proxy]:
    """What stands before the S3 server, for whoever goes through it."""
    started = S3Proxy(s3_server.endpoint_url)
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


@pytest.fixture
def proxy(rig: AgentRig, s3_proxy: S3Proxy) -> S3Proxy:
    """The same, with the rig's agent going through it."""
    rig.config["store"]["endpoint_url"] = s3_proxy.endpoint_url
    return s3_proxy
