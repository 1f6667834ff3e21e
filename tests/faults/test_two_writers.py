"""An agent stands still at any moment, another takes the log over, the first wakes up: it does no harm, and ends."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import override

from d5agent.adapters.state import MirroredStateStore
from d5agent.adapters.write_gate import WriteGate
from d5agent.core.log.naming import LOG, SEGMENTS
from d5agent.core.log.operation import OWN_DATABASE, Namespace
from d5agent.core.run.services import Service
from d5agent.errors import AgentError, LogHeldError
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.disk import Disk
from d5agent.runtime.holder import KEY, Holder, Lease
from d5agent.runtime.serve import _keep, take_up
from d5agent.steps.parallel import leaf_of
from tests.fakes.cluster import insert
from tests.fakes.machine import FakeJournal
from tests.fakes.mortal import Life
from tests.fakes.pausing import Gate, PausingClock, fenced, pausing
from tests.fakes.stage import until
from tests.faults.test_crash_everywhere import check_clean, check_log, check_restored
from tests.faults.world import CAPTURE, CLEAN, ORDERS, RESTORE, Act, World

if TYPE_CHECKING:
    from pathlib import Path

    from d5agent.plugins.replication import Replication

_WRITES = ("put_once", "put", "delete", "upload", "write", "apply", "create_collection", "close_stream")
_PATIENCE = 4000
_BEAT_SECONDS = 2.0
SOME = 60


@dataclass(slots=True, kw_only=True)
class ListeningDaemon(Daemon):
    """A daemon that keeps the error that it was ended for."""

    error: AgentError | None = None

    @override
    def end(self, error: AgentError | None = None) -> None:
        self.error = self.error or error
        Daemon.end(self, error)


@dataclass(slots=True, kw_only=True)
class Agent:
    """One agent of two, as `serve` puts it together.

    `before_asking`: it is stopped before it asks whether it may write, else right after, which it cannot know.
    """

    world: World
    name: str
    folder: Path
    gate: Gate
    before_asking: bool = False
    has_played: bool = False
    lease: Lease = field(init=False)
    disk: Disk = field(init=False)
    daemon: ListeningDaemon = field(init=False)
    _states: MirroredStateStore = field(init=False)
    _store: Any = field(init=False)

    def __post_init__(self) -> None:
        world = self.world
        clock: Any = PausingClock(world.clock, self.gate)
        fence = WriteGate()
        self._store = self._wrapped(world.store, fence)
        self._open_disk()
        self._states = MirroredStateStore(self.folder, self._store)
        states: Any = self._states
        view = World(clock=clock, store=self._store, states=states, target=self._wrapped(world.target, fence))
        view.power, view.cluster, view.source = world.power, world.cluster, self._wrapped(world.source, fence)
        plugins = dict(view.daemon(Life(None)).plugins)
        made = plugins[Service.REPLICATION]
        plugins[Service.REPLICATION] = lambda: replace(
            cast("Replication", made()), agent_id=self.disk.agent_id, host=f"host of {self.name}"
        )
        self.daemon = ListeningDaemon(plugins=plugins, states=self._states, clock=clock, drain_seconds=5)
        since = clock.now().isoformat(timespec="seconds")
        self.lease = Lease(
            store=pausing(world.store, self.gate),
            clock=clock,
            journal=FakeJournal(),
            me=Holder(
                agent_id=self.disk.agent_id,
                host=f"host of {self.name}",
                pid=1,
                since=since,
                tenure=str(uuid.uuid4()),
                place=self.disk.place("boot"),
            ),
            run_id=lambda: self.daemon.state.run_id,
            tenures=self.disk.tenures,
            on_taking=lambda before: self.disk.keep(self.disk.agent_id, before, self.lease.me.tenure),
            beat_seconds=_BEAT_SECONDS,
        )
        fence.held = self.lease

    def _open_disk(self) -> None:
        """Take the folder as it is: a new one, or a copy of another agent's."""
        if self.folder.exists():
            self.disk = Disk.open(self.folder)
        else:
            self.folder.mkdir()
            self.disk = Disk(directory=self.folder, agent_id=self.name)

    def _wrapped(self, port: Any, fence: WriteGate) -> Any:  # noqa: ANN401 -- whichever port
        if self.before_asking:
            return pausing(fenced(port, fence, *_WRITES), self.gate)
        return fenced(pausing(port, self.gate), fence, *_WRITES)

    async def live(self, script: tuple[Act, ...]) -> AgentError | None:
        """Serve, play the script, and stay until told to end; return what ended it, if not that."""
        try:
            await self.lease.acquire()
            await take_up(self.daemon, self.lease, self._states, self._store)
            self.disk.keep(self.lease.me.agent_id, self.lease.me.tenure)
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(_keep(self.lease, self.daemon))
                playing = group.create_task(self._play(script))
                await self.daemon.serve(group)
                keeping.cancel()
                playing.cancel()
            await self.lease.release()
        except (AgentError, BaseExceptionGroup) as raised:
            error = leaf_of(raised)
            if not isinstance(error, AgentError):
                raise
            return self.daemon.error or error
        return self.daemon.error

    async def _play(self, script: tuple[Act, ...]) -> None:
        """Act as the operator, as long as this agent does not stand still."""
        world = self.world
        while world._act < len(script):
            for _ in range(_PATIENCE):
                try:
                    is_done = await script[world._act](world, self.daemon)
                except AgentError:
                    return  # told to whoever typed it
                if self.gate.is_closed:
                    return
                if is_done:
                    break
                await world.clock.sleep(0.1)
            else:
                raise AssertionError(f"act {world._act} did not come true")
            world._act += 1
        self.has_played = True


async def race(
    folder: Path, script: tuple[Act, ...], moment: int, *, before_asking: bool = False, wakes_at: int | None = None
) -> tuple[World, list[str]]:
    """Let the first agent stand still at a moment, and the second take over and play the script to its end.

    The first wakes up then, or at a moment of the second's. Returns these moments, too.
    """
    world = World()
    folder = folder / f"{moment}-{wakes_at}"
    folder.mkdir()
    first = Agent(world=world, name="first", folder=folder / "first", gate=Gate(moment), before_asking=before_asking)
    gate = Gate(wakes=None if wakes_at is None else (wakes_at, first.gate))
    async with asyncio.TaskGroup() as group:
        one = group.create_task(first.live(script))
        await until(world.clock, lambda: first.gate.is_closed)
        second = Agent(world=world, name="second", folder=folder / "second", gate=gate)
        two = group.create_task(second.live(script))
        await until(world.clock, lambda: second.has_played or two.done())
        first.gate.wake()
        await until(world.clock, one.done)
        _check_lost(one.result(), f"moment {moment}, {first.gate.trail[moment]}")
        if script == CAPTURE:
            world.cluster.apply(insert(ORDERS, {"_id": "later"}))
            await _until_captured(world)
        await world.clock.sleep(2 * _BEAT_SECONDS)  # what the first has left behind would show
        assert not two.done(), f"moment {moment}, {first.gate.trail[moment]}: {two.result()!r}"
        _check_mirror(world, second, folder / "second")
        second.daemon.end()
    assert two.result() is None
    return world, gate.trail


def _check_lost(error: AgentError | None, when: str) -> None:
    """It ended for an operator, and says who holds the log."""
    assert isinstance(error, LogHeldError), f"{when}: {error!r}"
    assert error.exit_code == 78
    assert error.facts["host"] == "host of second"
    assert {"run_id", "since"} <= set(error.facts)


async def _until_captured(world: World) -> None:
    for _ in range(_PATIENCE):
        if await world.captured() == world.foreign_events:
            return
        await world.clock.sleep(0.1)
    raise AssertionError("not all was captured")


def _check_mirror(world: World, holder: Agent, folder: Path) -> None:
    """All that the bucket tells of the state is what the holder's disk tells."""
    assert json.loads(world.store.objects[KEY])["agent_id"] == holder.name
    for path in set(folder.glob("*.json")) - {folder / "agent.json"}:
        mirror = json.loads(world.store.objects[f"state/{path.name}"])
        assert mirror.pop("mirrored_by") == holder.lease.me.owner
        if path.stem != "data_resume_token":  # follows within a minute
            assert mirror == json.loads(path.read_text(encoding="utf-8"))


async def trail_of(folder: Path, script: tuple[Act, ...], *, before_asking: bool = False) -> list[str]:
    """Return the moments to stand still in."""
    world = World()
    agent = Agent(
        world=world, name="only", folder=folder / f"only-{len(script)}", gate=Gate(), before_asking=before_asking
    )
    async with asyncio.TaskGroup() as group:
        living = group.create_task(agent.live(script))
        await until(world.clock, lambda: agent.has_played)
        trail = list(agent.gate.trail)
        agent.daemon.end()
    assert living.result() is None
    return trail


async def test_a_writer_that_stands_still_anywhere_does_no_harm_when_it_wakes_up(tmp_path: Path) -> None:
    moments = range(len(await trail_of(tmp_path, CAPTURE)))
    assert len(moments) > 100
    for moment in moments:
        world, _ = await race(tmp_path, CAPTURE, moment)
        await check_log(world)


async def test_a_writer_that_wakes_up_while_it_is_followed_costs_its_follower_nothing(tmp_path: Path) -> None:
    trail = await trail_of(tmp_path, CAPTURE)
    commits = [number for number, what in enumerate(trail) if what.startswith(f"put_once {LOG}")]
    for moment in (commits[2], commits[-1]):
        _, follower = await race(tmp_path, CAPTURE, moment)
        has_taken_it = follower.index(f"after put {KEY}")
        has_committed = next(number for number, what in enumerate(follower) if what.startswith(f"after put_once {LOG}"))
        for wakes_at in range(has_taken_it, has_committed + 1):
            world, _ = await race(tmp_path, CAPTURE, moment, wakes_at=wakes_at)
            await check_log(world)


def forget_mark(world: World) -> None:
    """Forget the agent's own mark in the target: whoever stood still before writing it writes it later."""
    world.target.database.collections.pop(Namespace(OWN_DATABASE, "marks"), None)


async def test_a_restore_that_stands_still_does_no_harm_when_it_wakes_up(tmp_path: Path) -> None:
    script = (*CAPTURE, *RESTORE)
    captured = len(await trail_of(tmp_path, CAPTURE, before_asking=True))
    moments = range(captured, len(await trail_of(tmp_path, script, before_asking=True)))
    for moment in sorted(random.Random(20261103).sample(moments, SOME)):
        world, _ = await race(tmp_path, script, moment, before_asking=True)
        await check_log(world)
        forget_mark(world)
        await check_restored(world)


async def test_an_agent_that_slept_through_the_whole_failback_does_no_harm_when_it_wakes_up(tmp_path: Path) -> None:
    script = (*CAPTURE, *RESTORE, *CLEAN)
    trail = await trail_of(tmp_path, script, before_asking=True)
    # With it the moment at which the log is gone, and how many objects that were is not noted yet.
    gone = max(moment for moment, what in enumerate(trail) if what.startswith(f"after delete ['{SEGMENTS}"))
    for moment in sorted({gone, *random.Random(20261104).sample(range(len(trail)), SOME)}):
        world, _ = await race(tmp_path, script, moment, before_asking=True)
        forget_mark(world)
        await check_clean(world)
