"""What all fault tests over fakes share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """A death leaves a traceback; thousands of them hide the one that matters."""
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.ReturnLoggerFactory()
    )
    yield
    structlog.reset_defaults()


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """A folder in memory where the machine has one: states are saved thousands of times, each with an fsync."""
    memory = Path("/dev/shm")  # noqa: S108 -- a folder of our own in it
    with tempfile.TemporaryDirectory(prefix="d5-t-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
