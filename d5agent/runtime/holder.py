"""Who holds the log: a record in the store that its holder renews, so that a second agent sees it and stops.

It keeps agents apart and names them to each other. The record is replaced only as it was seen, so that of two one takes
the log; and an agent that has not renewed it for long sends no write before it has (adapters/write_gate.py). What makes
a second writer harmless whatever happens is the commit, which is write-once.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Final

from d5agent.errors import AgentError, CorruptDataError, LogHeldError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from d5agent.ports import Clock, ObjectStore
    from d5agent.service import Journal

KEY: Final = "state/holder.json"
BEAT_SECONDS: Final = 10.0
_BEATS_TO_DIE: Final = 3
_MARGIN_BEATS: Final = 0.5  # of the time in which nobody can have taken the log: clocks do not run alike
_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The record. `beat` grows while the holder lives; `is_released` once it has ended well.

    `tenure`: a random id of this stretch of holding the log; `place`: where the holder's state directory is. Both are
    empty in the record of an earlier version.
    """

    agent_id: str
    host: str
    pid: int
    since: str
    run_id: str = ""
    beat: int = 0
    is_released: bool = False
    tenure: str = ""
    place: str = ""

    @property
    def owner(self) -> str:
        """How the mirrors name it: what it leaves in the store is told by that from another's."""
        return f"{self.agent_id} {self.tenure}"

    def is_same(self, other: Holder) -> bool:
        """Whether both are the same stretch of holding the log."""
        return (self.agent_id, self.pid, self.since, self.tenure) == (
            other.agent_id,
            other.pid,
            other.since,
            other.tenure,
        )


_FIELDS: Final = frozenset(found.name for found in fields(Holder))


@dataclass(frozen=True, slots=True)
class _Seen:
    """The record as it stands in the store."""

    body: bytes | None
    holder: Holder | None


@dataclass(slots=True, kw_only=True)
class Lease:
    """Holds the log for this agent. `run_id` tells the run that the record names.

    `tenures`: those that this disk belongs to. `on_taking` is told, before the log is taken, the tenure that this disk
    belonged to and goes on from.
    """

    store: ObjectStore
    clock: Clock
    journal: Journal
    me: Holder
    run_id: Callable[[], str] = lambda: ""
    tenures: Sequence[str] = ()
    on_taking: Callable[[str], None] = lambda _: None
    beat_seconds: float = BEAT_SECONDS
    follows_another: bool = False
    """Whether the log was held from another disk before: what that left in the store is the newest."""

    _fresh_until: float = float("-inf")
    _renewing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_fresh(self) -> bool:
        """Whether the log is surely ours: renewed so lately that nobody can have outlived us."""
        return self.clock.monotonic() < self._fresh_until

    async def acquire(self) -> None:
        """Take the log. A holder that shows no life for three beats is replaced; LogHeldError: it lives.

        Only an earlier process on this very disk is not waited for: the directory's lock tells that it has ended. A
        copy of a disk has its agent's id and its tenure, but is in another place.
        """
        seen = await self._read()
        other = seen.holder
        is_certain = other is None or other.is_released or self._is_here(other)
        if other is not None and not is_certain:
            seen = await self._outlive(other, seen)
            other = seen.holder or other
        if other is not None:
            is_ours = self._is_ours(other)
            self.follows_another = not is_ours
            if other.agent_id == self.me.agent_id and not (is_ours and is_certain):
                self.me = replace(self.me, agent_id=str(uuid.uuid4()))  # commits tell agents apart by it
            if is_ours:
                self.on_taking(other.tenure)
        await self._write(seen)

    def _is_ours(self, other: Holder) -> bool:
        """Whether this disk belongs to that tenure; a record of an earlier version has none but the agent's id."""
        return other.tenure in self.tenures if other.tenure else other.agent_id == self.me.agent_id

    def _is_here(self, other: Holder) -> bool:
        return self._is_ours(other) and bool(other.place) and other.place == self.me.place

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
        """Show life once. LogHeldError: another agent has taken the log."""
        async with self._renewing:
            await self._renew()

    async def confirm(self) -> None:
        """Make sure that the log is ours still; LogHeldError: it is not."""
        async with self._renewing:
            if not self.is_fresh:  # of many that ask, one renews
                await self._renew()

    async def release(self) -> None:
        """Give the log up, so that the next agent need not wait."""
        async with self._renewing:
            seen = await self._read()
            if seen.holder is not None and seen.holder.is_same(self.me):
                self.me = replace(self.me, is_released=True)
                await self._write(seen)
            self._fresh_until = float("-inf")

    async def _renew(self) -> None:
        seen = await self._read()
        if seen.holder is not None and not seen.holder.is_same(self.me):
            self._fresh_until = float("-inf")
            raise held_by(seen.holder)
        self.me = replace(self.me, beat=self.me.beat + 1, run_id=self.run_id())
        await self._write(seen)

    async def _outlive(self, other: Holder, seen: _Seen) -> _Seen:
        patience = self.beat_seconds * _BEATS_TO_DIE
        self.journal.warning("log_has_a_holder", host=other.host, since=other.since, waiting_seconds=patience)
        began = self.clock.monotonic()
        while self.clock.monotonic() - began < patience:
            await self.clock.sleep(min(_LOOK_SECONDS, self.beat_seconds))
            now = await self._read()
            if now.holder is None or now.holder.is_released:
                return now
            if now.holder != other:
                raise held_by(now.holder)
        self.journal.warning("log_taken_over", host=other.host, since=other.since, run_id=other.run_id)
        return seen

    async def _read(self) -> _Seen:
        body = await self.store.get(KEY)
        if body is None:
            return _Seen(None, None)
        try:
            record = json.loads(body)
            return _Seen(body, Holder(**{name: value for name, value in record.items() if name in _FIELDS}))
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptDataError(
                "the record of who holds the log cannot be read",
                hint="make sure that no other agent runs on this bucket, then delete the object",
                key=KEY,
            ) from error

    async def _write(self, seen: _Seen) -> None:
        """Replace the record as it was seen. LogHeldError: another agent was faster."""
        began = self.clock.monotonic()
        body = json.dumps({"version": 1, **asdict(self.me)}).encode() + b"\n"
        if seen.body is None:
            is_written = await self.store.put_once(KEY, body)
        else:
            is_written = await self.store.put(KEY, body, replacing=seen.body)
        if not is_written:
            now = await self._read()
            if now.body != body:
                self._fresh_until = float("-inf")
                raise held_by(now.holder or self.me)
        # From before it was sent: a reader's patience begins when it is stored, or later.
        self._fresh_until = began + (_BEATS_TO_DIE - _MARGIN_BEATS) * self.beat_seconds


def held_by(holder: Holder) -> LogHeldError:
    """Return the error of an agent that finds the log held."""
    return LogHeldError(
        "another agent holds this log",
        hint="stop that agent, or give this one another [store] prefix",
        host=holder.host,
        pid=holder.pid,
        run_id=holder.run_id,
        since=holder.since,
    )
