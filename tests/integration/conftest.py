"""What tests of the whole agent share: servers of three members, warm starts, and an agent with all around it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient

from d5agent.drill.s3_proxy import S3Proxy
from d5agent.drill.servers import ReplicaSet
from tests.integration.agent_rig import AgentRig, agent_rig
from tests.integration.warm import WarmStart
from tests.running import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from d5agent.drill.child import Start
    from d5agent.drill.s3_server import S3Server
    from d5agent.drill.servers import Mongod

_SYSTEM_DATABASES = {"admin", "config", "local"}


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    """A replica set of three members; a test starts again what it has killed."""
    folder = tmp_path_factory.mktemp("three")
    with running(ReplicaSet(folder, members=3), folder) as servers:
        yield servers


@pytest.fixture(scope="session")
def agent_start() -> Iterator[WarmStart]:
    """What starts agents: without their imports, unless a file says otherwise."""
    started = WarmStart()
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def bucket(s3_server: S3Server, fresh_name: str) -> str:
    """The name of an empty bucket of the test's own."""
    asyncio.run(s3_server.create_bucket(fresh_name))
    return fresh_name


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
    agent_start: Start,
    clean_databases: None,  # noqa: ARG001 -- asked for, so that both servers are empty
) -> AsyncIterator[AgentRig]:
    """An agent with everything around it; nothing is started or enabled yet."""
    async with agent_rig(source_server, target_server, s3_server, bucket) as built:
        built.start = agent_start
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
