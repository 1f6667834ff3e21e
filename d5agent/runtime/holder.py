"""Who holds the log: a record in the store that its holder renews, so that a second agent sees it and stops.

It keeps honest agents apart and names them to each other. What makes a second writer harmless whatever happens is the
commit, which is write-once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

from d5agent.errors import AgentError, CorruptDataError, LogHeldError

if TYPE_CHECKING:
    from d5agent.ports import Clock, Journal, ObjectStore

KEY: Final = "state/holder.json"
BEAT_SECONDS: Final = 10.0
_BEATS_TO_DIE: Final = 3
_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The record. `beat` grows while the holder lives; `is_released` once it has ended well."""

    agent_id: str
    host: str
    pid: int
    since: str
    beat: int = 0
    is_released: bool = False


@dataclass(slots=True, kw_only=True)
class Lease:
    """Holds the log for this agent."""

    store: ObjectStore
    clock: Clock
    journal: Journal
    me: Holder
    beat_seconds: float = BEAT_SECONDS

    async def acquire(self) -> None:
        """Take the log. A holder that shows no life for three beats is replaced; LogHeldError: it lives."""
        other = await self._read()
        if other is not None and other.agent_id != self.me.agent_id and not other.is_released:
            await self._outlive(other)
        await self._write()

    async def keep(self) -> None:
        """Renew the record for ever; LogHeldError: another agent has taken the log.

        A store that does not answer or refuses ends nothing: capture says so where it matters, commits are write-once.
        """
        while True:
            await self.clock.sleep(self.beat_seconds)
            try:
                await self.renew()
            except (LogHeldError, CorruptDataError):
                raise
            except AgentError as error:
                self.journal.warning("holder_not_renewed", error=str(error), hint=error.hint)

    async def renew(self) -> None:
        """Show life once."""
        current = await self._read()
        if current is not None and current.agent_id != self.me.agent_id:
            raise held_by(current)
        self.me = replace(self.me, beat=self.me.beat + 1)
        await self._write()

    async def release(self) -> None:
        """Give the log up, so that the next agent need not wait."""
        current = await self._read()
        if current is not None and current.agent_id == self.me.agent_id:
            self.me = replace(self.me, is_released=True)
            await self._write()

    async def _outlive(self, other: Holder) -> None:
        patience = self.beat_seconds * _BEATS_TO_DIE
        self.journal.warning("log_has_a_holder", host=other.host, since=other.since, waiting_seconds=patience)
        began = self.clock.monotonic()
        while self.clock.monotonic() - began < patience:
            await self.clock.sleep(min(_LOOK_SECONDS, self.beat_seconds))
            current = await self._read()
            if current is None or current.is_released:
                return
            if current != other:
                raise held_by(current)
        self.journal.warning("log_taken_over", host=other.host, since=other.since)

    async def _read(self) -> Holder | None:
        body = await self.store.get(KEY)
        if body is None:
            return None
        try:
            fields = json.loads(body)
            return Holder(**{name: value for name, value in fields.items() if name != "version"})
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptDataError(
                "the record of who holds the log cannot be read",
                hint="make sure that no other agent runs on this bucket, then delete the object",
                key=KEY,
            ) from error

    async def _write(self) -> None:
        await self.store.put(KEY, json.dumps({"version": 1, **asdict(self.me)}).encode() + b"\n")


def held_by(holder: Holder) -> LogHeldError:
    """Return the error of an agent that finds the log held."""
    return LogHeldError(
        "another agent holds this log",
        hint="stop that agent, or give this one another [store] prefix",
        host=holder.host,
        pid=holder.pid,
        since=holder.since,
    )
