"""What AWS Secrets Manager answers to GetSecretValue, over real HTTP, as documented; the client is botocore's own."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@dataclass(slots=True, kw_only=True)
class FakeSecretsApi:
    """The account's secrets: by name, what GetSecretValue returns beside the name; None: it exists and has no value.

    `refusal`: the error code that every question is answered with. `asked`: the names that were asked for.
    """

    secrets: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    refusal: str = ""
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @asynccontextmanager
    async def served(self) -> AsyncGenerator[FakeSecretsApi]:
        """Answer while the block runs."""
        application = web.Application()
        application.router.add_post("/", self._answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
        name = json.loads(await request.read())["SecretId"]
        self.asked.append(name)
        if self.refusal:
            return _error(self.refusal)
        value = self.secrets.get(name)
        if value is None:  # the same for a secret that does not exist
            return _error("ResourceNotFoundException")
        return web.json_response({"Name": name, **value})


def _error(code: str) -> web.Response:
    return web.json_response({"__type": code, "Message": "as documented"}, status=400)
