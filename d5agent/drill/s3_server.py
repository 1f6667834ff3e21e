"""A real S3 server on this machine: LocalStack's, from a virtual environment of its own."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from d5agent.drill.child import Child, free_port, wait_until
from d5agent.drill.tools import find_s3_python, inherited_environment

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from types_aiobotocore_s3.client import S3Client

_START_SECONDS = 60.0
# It holds its objects in memory and temporary files: there is nothing to save at the end.
_STOP_SECONDS = 1.0
_REGION = "us-east-1"


class S3Server:
    """Started, it serves S3 at `endpoint_url`; its objects last as long as the process."""

    access_key = "test"
    secret_key = "test"  # noqa: S105 - the server accepts any
    region = _REGION

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session = get_session()  # it reads the service's description once, for all clients
        self._port = 0
        self._child: Child | None = None

    @property
    def log(self) -> Path:
        """Its log, one line a request."""
        return self._folder / "s3.log"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid if self._child else None

    @property
    def endpoint_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start it and wait until it answers: about a second, four at the very first time."""
        self._port = free_port()
        self._child = self._spawn()
        await wait_until(self._is_ready, seconds=_START_SECONDS, what="the S3 server answers", log=self.log)

    async def stop(self) -> None:
        """End it; its objects are gone then."""
        if self._child is not None:
            await self._child.stop(grace_seconds=_STOP_SECONDS)

    async def kill(self) -> None:
        """SIGKILL; its objects are gone as well."""
        if self._child is not None:
            await self._child.kill()

    async def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        async with self.client() as s3:
            await s3.create_bucket(Bucket=name)

    def client(self) -> AbstractAsyncContextManager[S3Client]:
        """Return an S3 client of this server, to be entered with `async with`."""
        return self._session.create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=AioConfig(s3={"addressing_style": "path"}, max_pool_connections=32),
        )

    def count_requests(self) -> dict[str, int]:
        """Count the requests answered so far by operation, as the server itself logged them."""
        counts: dict[str, int] = {}
        for match in re.finditer(r"AWS s3\.(\w+) => (\d+)", self.log.read_text("utf-8", "replace")):
            counts[match[1]] = counts.get(match[1], 0) + 1
        return counts

    def _spawn(self) -> Child:
        data = self._folder / "s3"
        data.mkdir(parents=True, exist_ok=True)
        child = Child(
            [str(find_s3_python()), str(Path(__file__).with_name("s3_main.py"))],
            log=self.log,
            environment=inherited_environment(
                ACTIVATE_PRO="0",
                DISABLE_EVENTS="1",
                DNS_ADDRESS="0",
                EAGER_SERVICE_LOADING="1",
                FILESYSTEM_ROOT=str(data),
                GATEWAY_LISTEN=f"127.0.0.1:{self._port}",
                LOCALSTACK_VOLUME_DIR=str(data),
                PYTHONWARNINGS="ignore",
                SERVICES="s3",
                SKIP_SSL_CERT_DOWNLOAD="1",
                STRICT_SERVICE_LOADING="1",
                TMPDIR=str(data),
            ),
        )
        child.start()
        return child

    async def _is_ready(self) -> bool:
        if self._child is not None:
            self._child.require_alive()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        try:
            writer.write(b"GET /_localstack/health HTTP/1.0\r\n\r\n")
            return b'"s3": "running"' in await reader.read()
        except OSError:
            return False
        finally:
            writer.close()
