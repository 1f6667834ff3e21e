"""Who two servers in memory say that they are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from d5agent.core.servers import ServerFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.log.operation import Namespace


@dataclass(slots=True, kw_only=True)
class FakeServer:
    """Tells what it is told to. `locales`: of its collections that have a collation."""

    told: ServerFacts
    locales: dict[Namespace, str] = field(default_factory=dict)

    async def facts(self) -> ServerFacts:
        await asyncio.sleep(0)
        return self.told

    async def collations(self) -> Mapping[Namespace, str]:
        await asyncio.sleep(0)
        return dict(self.locales)


def source_server() -> FakeServer:
    """Return a source that has no cluster id, as DocumentDB."""
    return FakeServer(told=ServerFacts(hosts=("source:27017",), set_name="rs0", version="5.0.0"))


def target_server() -> FakeServer:
    """Return a target. Its set has the same name: that is no evidence."""
    told = ServerFacts(hosts=("target:27017",), set_name="rs0", cluster_id="6b0a", version="6.0.5")
    return FakeServer(told=told)
