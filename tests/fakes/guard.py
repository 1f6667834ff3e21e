"""What keeps others from writing to a target in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from d5agent.errors import OperatorError
from d5agent.ports import WriteBlock
from tests.fakes.servers import target_server
from tests.fakes.target import FakeTarget, FakeTargetChanges

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from contextlib import AbstractAsyncContextManager

    from d5agent.core.replay.ttl import TtlIndex
    from d5agent.core.servers import ServerFacts
    from d5agent.errors import AgentError
    from d5agent.ports import TargetGuard
    from tests.fakes.servers import FakeServer


@asynccontextmanager
async def opened(guard: TargetGuard) -> AsyncGenerator[TargetGuard]:
    """Give a guard to whoever opens the target for it."""
    yield guard


@dataclass(slots=True, kw_only=True)
class FakeGuard:
    """Guards a FakeTarget. `obstacle`: why the agent's user may not set the mode; `may_see`: whether it may see it.

    `error`: what it answers to whoever sets the mode. `changes`: the target's change stream, if it is another than that
    of a target that lets it be read.
    `server`: who it says that it is.
    """

    target: FakeTarget
    obstacle: str = ""
    may_see: bool = True
    error: AgentError | None = None
    changes: FakeTargetChanges | None = None
    server: FakeServer = field(default_factory=target_server)

    def opened(self) -> AbstractAsyncContextManager[TargetGuard]:
        """Return it as what opens a target gives it."""
        return opened(self)

    async def facts(self) -> ServerFacts:
        return await self.server.facts()

    async def write_block(self) -> WriteBlock:
        await asyncio.sleep(0)
        is_on = self.target.database.is_blocked if self.may_see else None
        obstacle = self.obstacle or ("" if self.may_see else "the user may not see the mode")
        return WriteBlock(is_on=is_on, obstacle=obstacle, hint="grant it" if obstacle else "")

    async def block_writes(self, *, is_on: bool) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if self.obstacle:
            raise OperatorError("a privilege is missing on the target", hint="grant it", server_says=self.obstacle)
        self.target.database.is_blocked = is_on

    async def position(self) -> bytes:
        return await (self.changes or FakeTargetChanges(self.target)).position()

    async def ttl_indexes(self) -> Sequence[TtlIndex]:
        await asyncio.sleep(0)
        return [index for indexes in self.target.database.ttl.values() for index in indexes]

    async def set_ttl(self, index: TtlIndex, seconds: float) -> None:
        await asyncio.sleep(0)
        there = self.target.database.ttl.get(index.namespace)
        if there is not None:
            changed = tuple(replace(i, seconds=seconds) if i.name == index.name else i for i in there)
            self.target.database.ttl[index.namespace] = changed
