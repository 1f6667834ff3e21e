"""The phase state file: the one state of the daemon, changed by one at a time, saved before what follows from it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from d5agent.core.run.phase_codec import PHASE, decode_phase, encode_phase
from d5agent.core.run.services import PhaseState
from d5agent.errors import OperatorError, TransientError
from d5agent.runtime.events import named

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.ports import Clock, StateStore

_MIRROR_SECONDS: Final = 10


@dataclass(slots=True, kw_only=True)
class PhaseFile:
    """Holds the state; `update` and `show` change and save it."""

    states: StateStore
    clock: Clock
    state: PhaseState = field(default_factory=PhaseState)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _is_mirrored: bool = True

    async def load(self) -> None:
        """Take what is on disk. OperatorError: it is damaged, or of a newer version; nothing is changed then."""
        value = await self.states.load(PHASE)
        if value is not None:
            self.state = decode_phase(value)

    async def update(self, change: Callable[[PhaseState], PhaseState]) -> None:
        """Change the state and save it; it is on disk when this returns. OperatorError: it is as it was."""
        async with self._lock:
            state = change(self.state)
            if state != self.state:
                await self._store(state)
                self.state = state

    async def show(self, change: Callable[[PhaseState], PhaseState]) -> None:
        """Change the state even if it cannot be saved; it is saved once that can be done again.

        A full disk or a bucket's policy must not take the daemon down, which is whom an operator asks what is wrong.
        What a restart then finds is the state before, and it runs the service again: no harm (promise P3).
        """
        async with self._lock:
            state = change(self.state)
            if state != self.state:
                await self._store_if_possible(state)
                self.state = state

    async def keep_mirror(self) -> None:
        """Save again, every ten seconds, what was not saved or not mirrored."""
        while True:
            await self.clock.sleep(_MIRROR_SECONDS)
            if not self._is_mirrored:
                async with self._lock:
                    await self._store_if_possible(self.state)

    async def _store(self, state: PhaseState) -> None:
        try:
            await self.states.save(PHASE, encode_phase(state))
            self._is_mirrored = True
        except TransientError as error:
            # On disk it is; the mirror is for a lost host, and follows when the store answers again.
            self._is_mirrored = False
            structlog.get_logger().warning("state_not_mirrored", error=str(error))

    async def _store_if_possible(self, state: PhaseState) -> None:
        try:
            await self._store(state)
        except OperatorError as error:
            self._is_mirrored = False
            structlog.get_logger().error("state_not_saved", error=error.message, hint=error.hint, **named(error.facts))
