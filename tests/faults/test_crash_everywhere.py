"""The agent dies before and after every call to the outside world: nothing is lost, nothing invented."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from typing_extensions import override

from d5agent.core.log.naming import SEGMENTS
from d5agent.core.log.operation import parse_event
from d5agent.errors import CorruptDataError
from d5agent.steps.log.reader import LogReader
from d5agent.steps.log.writer import LogWriter
from d5agent.steps.replay.replayer import Replayer
from tests.fakes.barrier_order import require_barriers_in_order
from tests.fakes.mortal import Life
from tests.faults.deaths import crash_everywhere, die_at, halves_of, worlds_left
from tests.faults.world import CAPTURE, CLEAN, FORCE, RESTORE, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

    from d5agent.core.log.chain import Commit
    from d5agent.core.log.operation import Namespace, Operation, Position
    from d5agent.core.log.segment import Segment, SegmentRef
    from d5agent.steps.replay.windows import ReplayStep
    from tests.fakes.target import FakeTarget

WHOLE = (*CAPTURE, *RESTORE, *CLEAN)
TRIPLES = 40
_VARIES = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}")
KEPT_STATES = {"phase", "holder"}


async def check_log(world: World) -> None:
    """The log holds each event once, in the stream's order: the chain is whole, and barriers are in their places."""
    reader = LogReader(store=world.store)
    await reader.check()
    stored: dict[Namespace, list[bytes]] = {}
    everything: list[Operation] = []
    before = b""
    async for link in reader.links():
        operations = [operation async for operation in reader.operations(link.commit)]
        tokens = [operation.token for operation in operations]
        assert not tokens or min(tokens) > before
        before = max([before, *tokens])
        everything += operations
        for operation in operations:
            stored.setdefault(operation.namespace, []).append(operation.token)
    events = [parse_event(world.cluster.event(number)) for number in range(len(world.cluster))]
    require_barriers_in_order(_of_others(everything), _of_others(events))
    happened: dict[Namespace, list[bytes]] = {}
    for event in events:
        happened.setdefault(event.namespace, []).append(event.token)
    ours = [namespace for namespace in happened if namespace.database == "d5agent"]
    for namespace in ours:  # a mark may be younger than the log's end
        happened.pop(namespace)
        stored.pop(namespace, None)
    assert stored == happened


def _of_others(operations: Iterable[Operation]) -> list[Operation]:
    return [operation for operation in operations if not operation.is_ours]


async def check_restored(world: World) -> None:
    """Both sides are equal, and everybody may write to the target again."""
    assert world.target.database.contents() == world.contents()
    assert not world.target.database.is_blocked


async def check_clean(world: World) -> None:
    """Both sides are equal, nothing of the log is left, dumps and reports are, and the power-off was asked for."""
    await check_restored(world)
    await check_cleared(world)
    assert sum(key.endswith("manifest.json") for key in world.store.objects) == 2
    assert {"certificate.json", "certificate.html"} <= {key.rsplit("/", 1)[1] for key in world.store.objects}
    assert world.power.requests > 0
    assert final_report(world)["power_off"]["requested_at"]
    assert final_report(world)["forced_at"] is None


async def check_cleared(world: World) -> None:
    """Nothing of the log is left, nor of its state, nor a half-made upload; and that is reported."""
    assert not [key for key in world.store.objects if key.startswith(SEGMENTS)]
    states = {key for key in world.store.objects if key.startswith("state/")}
    assert {*world.states.texts} | {key.removeprefix("state/").removesuffix(".json") for key in states} <= KEPT_STATES
    assert world.store.half_way == []
    assert not world.source.is_enabled
    assert final_report(world)["log"]["commits"] > 0
    assert final_report(world)["removed"]["objects"] > 0


async def check_archived(world: World) -> None:
    """The same, and the log is whole where it went."""
    await check_clean(world)
    run_id = final_report(world)["run_id"]
    archive = World()
    for key, body in world.store.objects.items():
        archive.store.objects[key.removeprefix(f"archive/{run_id}/")] = body
    archive.cluster = world.cluster
    await check_log(archive)


async def check_forced(world: World) -> None:
    """Nothing is left though nothing was restored; no machine is switched off, and it is told whose word that was."""
    await check_cleared(world)
    assert final_report(world)["forced_at"]
    assert world.power.requests == 0


def final_report(world: World) -> dict[str, Any]:
    """Return the one final report."""
    (body,) = [body for key, body in world.store.objects.items() if key.endswith("/final.json")]
    report: dict[str, Any] = json.loads(body)
    return report


async def check_log_and_target(world: World) -> None:
    """The log is whole, and the target is what the source is."""
    await check_log(world)
    await check_restored(world)


async def test_a_capture_that_dies_anywhere_loses_and_invents_nothing() -> None:
    assert await crash_everywhere(CAPTURE, check_log) > 100


async def test_a_restore_that_dies_anywhere_ends_with_both_sides_equal() -> None:
    captured = await halves_of(CAPTURE)
    assert await crash_everywhere((*CAPTURE, *RESTORE), check_log_and_target, first=captured) > 400


async def test_a_clean_up_that_dies_anywhere_ends_clean_and_deletes_nothing_too_early() -> None:
    restored = await halves_of((*CAPTURE, *RESTORE))
    assert await crash_everywhere(WHOLE, check_clean, first=restored) > 80


async def test_a_clean_up_that_archives_and_dies_anywhere_leaves_the_log_whole_in_the_archive() -> None:
    restored = await halves_of((*CAPTURE, *RESTORE))
    assert await crash_everywhere(WHOLE, check_archived, first=restored, keep_log_days=30) > 200


async def test_a_forced_clean_up_that_dies_anywhere_ends_clean_and_switches_nothing_off() -> None:
    captured = await halves_of(CAPTURE)
    assert await crash_everywhere((*CAPTURE, *FORCE), check_forced, first=captured) > 40


async def test_dying_three_times_at_random_moments_does_no_harm() -> None:
    dice, count = random.Random(20261102), await halves_of(WHOLE)
    for _ in range(TRIPLES):
        deaths = [dice.randrange(count) for _ in range(3)]
        await check_clean(await die_at(WHOLE, *deaths))


async def test_a_copied_world_is_what_a_death_leaves() -> None:
    step = 37
    for number, left in enumerate(await worlds_left(WHOLE, step=step)):
        world = World()
        assert not await world.live(Life(number * step), WHOLE)
        assert _comparable(left.store.objects) == _comparable(world.store.objects)
        assert _comparable(left.states.texts) == _comparable(world.states.texts)
        assert _documents(left.target) == _documents(world.target)
        assert left.contents() == world.contents()
        assert len(left.cluster) == len(world.cluster)
        assert left.power == world.power
        assert (left.source.is_enabled, left._act) == (world.source.is_enabled, world._act)


def _documents(target: FakeTarget) -> list[tuple[Namespace, str]]:
    """Return a target's documents without what differs between two runs: the agent's own mark has an id of its own."""
    found = target.database.contents()
    return [(name, _VARIES.sub("-", repr(sorted(documents.items())))) for name, documents in sorted(found.items())]


def _comparable(stored: Mapping[str, str | bytes]) -> dict[str, str]:
    """Return keys and bodies without what differs between two runs of one script: the run's name, and hashes of it."""
    return {
        _VARIES.sub("-", key): _VARIES.sub("-", body if isinstance(body, str) else repr(body))
        for key, body in stored.items()
    }


class CommitsFirst(LogWriter):
    """The mistake that the order in LogWriter prevents: the position is moved before its segments are stored."""

    late: ClassVar[list[tuple[str, bytes]]] = []

    @override
    async def store_segment(self, segment: Segment) -> SegmentRef:
        key = await self._free_key(segment)
        self.late.append((key, segment.body))
        return segment.ref(key)

    @override
    async def publish(
        self, stored: Iterable[Awaitable[SegmentRef]], position: Position, *, renames_within: bool = False
    ) -> Commit:
        commit = await super().publish(stored, position, renames_within=renames_within)
        while self.late:
            await self.store.put_once(*self.late.pop())
        return commit

    async def _free_key(self, segment: Segment) -> str:
        ordinal = 1
        while segment.key(ordinal=ordinal) in dict(self.late) or await self.store.get(segment.key(ordinal=ordinal)):
            ordinal += 1
        return segment.key(ordinal=ordinal)


class SavesFirst(Replayer):
    """The mistake that the order in Replayer prevents: the checkpoint is saved before its window is written."""

    @override
    async def _apply(self, portion: ReplayStep) -> None:
        self._reach(portion)
        await self._save(self.checkpoint.to_json(), mirrors=True)
        await super()._apply(portion)


async def test_the_crash_test_finds_a_commit_that_comes_before_its_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d5agent.plugins.replication.LogWriter", CommitsFirst)
    await check_log(await die_at(CAPTURE))  # as long as nobody dies, the mistake does not show
    with pytest.raises(CorruptDataError, match="an object of the log is missing"):
        await crash_everywhere(CAPTURE, check_log)


async def test_the_crash_test_finds_a_checkpoint_that_comes_before_its_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d5agent.plugins.restore.Replayer", SavesFirst)
    # Verification would repair the damage, and hide it: here it only looks.
    monkeypatch.setattr("d5agent.steps.compare.repairer.Repairer.write", _do_nothing)
    await check_log_and_target(await die_at((*CAPTURE, *RESTORE)))
    with pytest.raises(AssertionError):
        await crash_everywhere((*CAPTURE, *RESTORE), check_log_and_target, first=await halves_of(CAPTURE))


async def _do_nothing(*_: object) -> None:
    """Write nothing."""
