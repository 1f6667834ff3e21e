"""What the contracts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.drill.s3_server import S3Server

if TYPE_CHECKING:
    from d5agent.drill.servers import Mongod


@pytest.fixture
def mongod(target_server: Mongod) -> Mongod:
    """A real MongoDB server."""
    return target_server


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an instance's role gives."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3Server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3Server.secret_key)
