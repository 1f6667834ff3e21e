"""Closes the target to others while restore is at work, and gives it back: write-block mode, or held TTL indexes.

What is set is saved before it is set, and what is given back is saved as such before it is. So whoever comes next knows
what is the agent's to give back, also after a crash (ADR 36).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.replay.ttl import TtlIndex, numbered, seconds_before
from d5agent.core.run.hold import HOLD, Block, Hold, Stage
from d5agent.errors import AgentError, LogHeldError, OperatorError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from d5agent.core.servers import ServerFacts
    from d5agent.ports import Clock, StateStore, TargetGuard, WriteBlock
    from d5agent.service import Journal


_NAMED: Final = 10  # TTL indexes that a plan names


@dataclass(slots=True, kw_only=True)
class TargetHold:
    """The hold on one target. One object serves all services of an agent, and is used by one at a time.

    Whoever has no guard of the target gives none: the target is opened then, if anything is to be done there.
    """

    open_guard: Callable[[], AbstractAsyncContextManager[TargetGuard]]
    states: StateStore
    clock: Clock
    _hold: Hold | None = None
    _is_loaded: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def current(self) -> Hold | None:
        """Return what the state says; None: nothing was ever held."""
        if not self._is_loaded:
            value = await self.states.load(HOLD)
            self._hold = None if value is None else Hold.from_json(value)
            self._is_loaded = True
        return self._hold

    async def take(
        self, run_id: str, journal: Journal, *, guard: TargetGuard | None = None, kept: Sequence[TtlIndex] = ()
    ) -> Hold:
        """Close the target to others before restore's first write, as far as that is possible; say so if it is not.

        `kept`: TTL indexes that restore may build again, held, where they are not there now.
        OperatorError: it is closed to the agent, or another target is still closed to others.
        """
        async with self._lock, self._opened(guard) as opened:
            known, target = await self.current(), await opened.facts()
            if known is not None and not known.is_of(target):
                _require_nothing_set(known, target)
                known = replace(known.ended(), was_open=True, opened_at=b"")
            found = await opened.write_block()
            if found.is_on and found.obstacle:
                raise OperatorError(
                    "the target is in write-block mode, and the agent's user may not bypass it",
                    hint=f"{found.hint}, or end that mode on MongoDB; then type: d5agent start restore",
                    reason=found.obstacle,
                )
            hold = replace(self._begun(known, run_id, found), target=target)
            if hold.block is Block.OURS:
                await self._block(hold, opened, journal)
            else:
                self._tell_open(hold, found, journal)
                await self._hold_ttl(hold, opened, journal, kept)
            return self._hold or hold

    async def certificate(self, *, guard: TargetGuard | None = None) -> dict[str, Any] | None:
        """Return what the certificate says of the hold; whether it still stands is asked now."""
        hold = await self.current()
        if hold is None:
            return None
        async with self._opened(guard) as opened:
            return hold.certificate(is_on=(await opened.write_block()).is_on)

    async def give_back(
        self, journal: Journal, *, guard: TargetGuard | None = None, is_due: Callable[[Hold], bool] = lambda _: True
    ) -> None:
        """Give back what the agent has set, and nothing else.

        May be called at any time, and again after it failed. `is_due`: asked when nobody else is at it, since a new
        start of restore may have taken the target meanwhile. OperatorError: the settings name another target now.
        """
        async with self._lock:
            hold = await self.current()
            if hold is None or hold.stage is Stage.ENDED or not is_due(hold):
                return
            hold = await self._saved(hold.ending())
            if hold.ttl or hold.block is not Block.NONE:
                async with self._opened(guard) as opened:
                    if hold.is_of(target := await opened.facts()):
                        await self._give_back(hold, opened, journal)
                    else:
                        _require_nothing_set(hold, target)
                        # The target that it was about was open to others from now on, and nobody looked.
                        await self._saved(replace(hold, opened_at=hold.opened_at or b""))
            await self._saved((self._hold or hold).ended())

    async def note_looked(self) -> None:
        """Note that what others wrote since the target was given back was looked at."""
        async with self._lock:
            hold = await self.current()
            if hold is not None:
                await self._saved(replace(hold, opened_at=None))

    async def forget(self) -> None:
        """Remove the state, unless something is still to be given back."""
        async with self._lock:
            hold = await self.current()
            if hold is not None and hold.stage is Stage.ENDED:
                await self.states.delete(HOLD)
                self._hold = None

    @asynccontextmanager
    async def _opened(self, guard: TargetGuard | None) -> AsyncGenerator[TargetGuard]:
        if guard is not None:
            yield guard
            return
        async with self.open_guard() as opened:
            yield opened

    def _begun(self, known: Hold | None, run_id: str, found: WriteBlock) -> Hold:
        """Return what is to be held. What an earlier start has set, and has not given back, stays the agent's."""
        is_held = known is not None and known.stage is not Stage.ENDED
        was_ours = known is not None and is_held and known.block is Block.OURS
        if was_ours or not (found.obstacle or found.is_on):
            block = Block.OURS
        else:
            block = Block.ANOTHERS if found.is_on else Block.NONE
        was_closed = known is not None and known.stage is Stage.HELD and known.block is not Block.NONE
        opened_at = known.opened_at if known is not None and known.run_id == run_id else None
        if was_closed and not found.is_on and opened_at is None:
            opened_at = (
                b""  # somebody else has ended the mode meanwhile; or nothing was written yet, and no look is due
            )
        goes_on = known is not None and is_held and known.run_id == run_id and known.block is block
        return Hold(
            run_id=run_id,
            since=known.since if goes_on and known is not None else self.clock.now().isoformat(timespec="seconds"),
            block=block,
            obstacle=found.obstacle,
            ttl=known.ttl if known is not None and is_held else (),
            was_open=known is not None and known.run_id == run_id and known.was_open,
            opened_at=opened_at,
        )

    async def _block(self, hold: Hold, guard: TargetGuard, journal: Journal) -> None:
        await self._saved(hold)
        await guard.block_writes(is_on=True)
        journal.info(
            "target_writes_blocked", since=hold.since, given_back="at restore's end, or by d5agent stop restore"
        )

    def _tell_open(self, hold: Hold, found: WriteBlock, journal: Journal) -> None:
        if hold.block is Block.NONE:
            journal.warning("target_open_to_writes", why=found.obstacle, hint=found.hint)
        else:
            journal.warning("target_writes_blocked_by_another", note="d5agent leaves that mode as it is")

    async def _hold_ttl(self, hold: Hold, guard: TargetGuard, journal: Journal, kept: Sequence[TtlIndex]) -> None:
        """Keep the target's TTL indexes from deleting; write-block mode does so, but it is not the agent's here."""
        there = await guard.ttl_indexes()
        wanted = [index for index in there if index.deletes]
        held = [index for index in hold.ttl if not any(index.is_same(other) for other in wanted)]
        known = {(*index.place, index.seconds) for index in (*held, *wanted)}
        lost = [index for index in kept if (*index.place, index.seconds) not in known]
        new = numbered([*wanted, *lost], hold.ttl, there)
        await self._saved(replace(hold, ttl=(*held, *new)))
        for index in new[: len(wanted)]:
            await guard.set_ttl(index, index.held_as)
        if wanted:
            journal.info("target_ttl_held", indexes=[f"{index.namespace} {index.name}" for index in wanted])

    async def _give_back(self, hold: Hold, guard: TargetGuard, journal: Journal) -> None:
        there = await guard.ttl_indexes() if hold.ttl else ()
        for index in hold.ttl:
            if not any(_is_of(index, other) for other in there):
                journal.info("target_ttl_gone", namespace=str(index.namespace), index=index.name)
        for index in there:
            seconds = seconds_before(index, hold.ttl)
            if seconds is not None:
                await guard.set_ttl(index, seconds)
                journal.info("target_ttl_given_back", namespace=str(index.namespace), index=index.name, seconds=seconds)
        if hold.block is not Block.NONE and hold.opened_at is None:
            await self._saved(replace(hold, opened_at=await _position(guard)))
        if hold.block is Block.OURS:
            await guard.block_writes(is_on=False)
            journal.info("target_writes_allowed", why="d5agent had set the write-block mode")

    async def _saved(self, hold: Hold) -> Hold:
        if hold != self._hold or not self._is_loaded:
            await self.states.save(HOLD, hold.to_json())
            self._hold, self._is_loaded = hold, True
        return hold


async def foreseen(guard: TargetGuard) -> list[str]:
    """Return what a plan says: how restore would keep others from writing to the target."""
    found = await guard.write_block()
    ttl = [f"{index.namespace} {index.name}".rstrip() for index in await guard.ttl_indexes() if index.deletes]
    if not found.obstacle:
        said = "others cannot write to the target while restore is at work: write-block mode"
        by = "write-block mode keeps"
    else:
        said = f"others can write to the target while restore is at work: {found.obstacle}; {found.hint}"
        by = "an expireAfterSeconds of 68 years keeps"
    if not ttl:
        return [said]
    more = f" and {len(ttl) - _NAMED:,} more" if len(ttl) > _NAMED else ""
    return [
        said,
        f"{by} {len(ttl):,} TTL indexes of the target from deleting until it ends: {', '.join(ttl[:_NAMED])}{more}",
    ]


async def _position(guard: TargetGuard) -> bytes:
    """Return where the target's change stream is; empty: it cannot be read, and all is given back anyway."""
    try:
        return await guard.position()
    except LogHeldError:
        raise
    except AgentError:
        return b""


def _require_nothing_set(hold: Hold, target: ServerFacts) -> None:
    """Raise OperatorError if something is still to be given back to the hold's target, which is not this one."""
    if hold.is_set and hold.target is not None:
        raise OperatorError(
            "another target is still closed to others by d5agent",
            hint="put the earlier [target] uri back and type: d5agent stop restore, which opens that one again; then"
            " set the new one and type: d5agent start restore. If the earlier target is gone for good, stop d5agent,"
            f" move {HOLD}.json aside, here and under state/ in the bucket, and start d5agent",
            before=hold.target.hosts,
            now=target.hosts,
        )


def _is_of(held: TtlIndex, there: TtlIndex) -> bool:
    """Whether an index is a held one, or what restore or somebody else has made in its place."""
    is_number = (there.name, there.field, there.seconds) == (held.name, held.field, held.held_as)
    return held.is_same(there) or held.place == there.place or (bool(held.name) and is_number)
