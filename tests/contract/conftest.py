"""Real servers for the contracts: one MongoDB, one S3, started once a session."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from typing import TYPE_CHECKING

import pytest

from d5agent.drill.s3_server import S3Server
from d5agent.drill.servers import Mongod

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A real MongoDB server."""
    folder = tmp_path_factory.mktemp("mongod")
    server = Mongod(folder)
    try:
        asyncio.run(server.start())
        yield server
    finally:
        asyncio.run(server.kill())
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
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an instance's role gives."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3Server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3Server.secret_key)


@pytest.fixture
def fresh_name() -> str:
    """A name that no other test uses, for a bucket or a database."""
    return f"contract-{next(_numbers)}"
