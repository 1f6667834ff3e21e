"""What the target lost or gained after it was compared is seen, or everything is compared again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from d5agent.core.compare import changed as core_changed
from d5agent.core.compare.changed import Changed
from d5agent.core.log.operation import UNNAMED, ClusterTime, Namespace, Operation
from d5agent.errors import LogHeldError, OperatorError
from d5agent.steps.compare.generations import COMPARED, Generations
from d5agent.steps.compare.target_watch import TargetWatch
from d5agent.steps.log.reader import LogReader
from tests.fakes.cluster import drop, drop_database, insert, rename
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeReader, FakeTarget

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from d5agent.core.log.chain import Link
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Failure, WriteBatch

OTHER = Namespace("shop", "other")
DENIED = OperatorError("a privilege is missing on the target", hint="grant it")


class CountingReader(FakeReader):
    """Counts how often the source's documents are read."""

    fetched = 0
    scanned = 0

    @override
    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        self.fetched += len(ids)
        return await super().fetch(namespace, ids, most_bytes=most_bytes)

    @override
    async def scan(self, namespace: Namespace) -> AsyncGenerator[Sequence[bytes]]:
        self.scanned += 1
        async for page in super().scan(namespace):
            yield page


class Watched:
    """Generations over a stage; `again` is what another start of the agent has."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.source = CountingReader(stage.cluster)
        self.again()

    def again(self) -> None:
        stage = self.stage
        self.watch = TargetWatch(changes=stage.changes, clock=stage.clock, journal=stage.coordinator.journal)
        self.generations = Generations(
            reader=LogReader(store=stage.store),
            states=stage.states,
            source=self.source,
            target=stage.target,
            repair_into=stage.target,
            clock=stage.clock,
            waiting_bytes=10_000,
            run_id="run",
            watch=self.watch,
        )

    def put(self, *numbers: int, n: object = 0, namespace: Namespace = ORDERS) -> None:
        for number in numbers:
            fields = {"_id": number, "n": n}
            self.stage.target.database.put(namespace, raw_id(number), raw_document(fields))


async def last(stage: Stage) -> Link:
    link = await LogReader(store=stage.store).last()
    assert link is not None
    return link


async def compared(count: int = 5) -> Watched:
    """Return a world whose documents were compared, and equal."""
    stage = Stage()
    await stage.capture(*[insert(ORDERS, {"_id": number, "n": 0}) for number in range(count)])
    world = Watched(stage)
    world.put(*range(count))
    await world.generations.compare(await last(stage))
    assert world.generations.carried == 0
    return world


async def test_what_nobody_wrote_to_is_not_compared_again() -> None:
    world = await compared()
    world.source.fetched = 0
    report = await world.generations.conclude(set(), applied=0)
    assert (report.compared, report.is_equal, world.source.fetched) == (5, True, 0)
    assert not world.stage.target.database.names("d5agent")


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_document_that_somebody_wrote_or_deleted_is_compared_again(*, restarts: bool) -> None:
    world = await compared()
    world.put(1, n="foreign")
    world.stage.target.database.remove(ORDERS, raw_id(2))  # a TTL index
    if restarts:
        world.again()
        await world.generations.load(applied=(await last(world.stage)).commit.sequence)
    report = await world.generations.conclude(set(), applied=0)
    assert (report.is_equal, report.repairs, report.compared) == (True, 2, 5)
    assert world.stage.target.database.contents() == world.stage.foreign_contents()


async def test_a_foreign_write_is_carried_by_the_next_generation() -> None:
    world = await compared()
    world.put(1, n="foreign")
    await world.stage.capture(insert(ORDERS, {"_id": 9, "n": 0}))
    world.put(9)
    await world.generations.compare(await last(world.stage))
    assert world.generations.carried == 1


async def test_what_the_log_does_not_touch_stays_as_it_is() -> None:
    world = await compared()
    world.put(77, n="of MongoDB")
    world.put(1, n="of MongoDB", namespace=Namespace("crm", "people"))
    before = world.stage.target.database.copy()
    report = await world.generations.conclude(set(), applied=0)
    assert (report.is_equal, report.repairs) == (True, 0)
    assert world.stage.target.database.contents() == before.contents()


async def test_any_document_of_a_collection_compared_whole_counts() -> None:
    world = await compared()
    world.put(77, n="left")
    report = await world.generations.conclude({ORDERS}, applied=0)
    assert report.repairs == 1
    assert world.stage.target.database.contents() == world.stage.foreign_contents()


async def test_what_somebody_makes_in_a_database_that_the_log_dropped_is_found() -> None:
    world = await compared()
    await world.stage.capture(drop_database("shop"))
    world.stage.target.database.drop_database("shop")
    whole = {Namespace("shop")}
    await world.generations.compare(await last(world.stage), whole)
    world.put(1, namespace=OTHER)
    await world.stage.capture(insert(Namespace("crm", "people"), {"_id": 1}))
    await world.generations.compare(await last(world.stage), whole)
    report = await world.generations.conclude(whole, applied=0)
    assert report.is_equal
    assert world.stage.target.database.contents() == world.stage.foreign_contents()


@pytest.mark.parametrize("how", ["dropDatabase", "drop", "rename"])
async def test_a_collection_that_somebody_removes_ends_the_restore(how: str) -> None:
    world = await compared()
    database = world.stage.target.database
    if how == "rename":
        database.rename(ORDERS, OTHER)
    elif how == "drop":
        database.drop(ORDERS)
    else:
        database.drop_database("shop")
    with pytest.raises(OperatorError, match="somebody dropped or renamed") as failed:
        await world.generations.conclude(set(), applied=0)
    assert "shop.orders" in str(failed.value.facts["names"])
    assert "d5agent start restore" in failed.value.hint
    world.again()
    await world.generations.load(applied=(await last(world.stage)).commit.sequence)
    report = await world.generations.conclude(set(), applied=0)
    assert (report.compared, report.repairs, report.is_equal) == (5, 5, True)


async def test_a_drop_that_the_log_holds_is_no_surprise() -> None:
    world = await compared()
    await world.stage.capture(rename(ORDERS, OTHER), insert(ORDERS, {"_id": 1}), drop(ORDERS))
    world.stage.target.database.rename(ORDERS, OTHER)
    world.put(1)
    world.stage.target.database.drop(ORDERS)
    await world.generations.compare(await last(world.stage))
    report = await world.generations.conclude({ORDERS, OTHER}, applied=0)
    assert (report.is_equal, report.repairs) == (True, 0)


async def test_a_target_that_cannot_be_watched_is_compared_whole_after_the_fence() -> None:
    stage = Stage()
    await stage.capture(*[insert(ORDERS, {"_id": number, "n": 0}) for number in range(5)])
    world = Watched(stage)
    world.put(*range(5))
    stage.changes.error = DENIED
    await world.generations.compare(await last(stage))
    stage.target.database.drop_database("shop")
    report = await world.generations.conclude(set(), applied=0)
    assert (report.compared, report.repairs, report.is_equal) == (5, 5, True)
    (told,) = stage.coordinator.journal.facts_of("target_not_watched")
    assert told["reason"] == "a privilege is missing on the target"
    assert "read-only window" in str(told["hint"])


async def test_a_watch_that_was_interrupted_begins_again_with_a_whole_comparison() -> None:
    world = await compared()
    world.put(1, n="foreign")
    world.stage.changes.kept_from = 1_000  # its oplog rolled over
    world.source.fetched = 0
    report = await world.generations.conclude(set(), applied=0)
    assert (report.compared, report.repairs, report.is_equal) == (5, 1, True)


async def test_a_watch_that_is_lost_at_the_end_costs_a_whole_pass() -> None:
    world = await compared()
    world.stage.target.database.remove(ORDERS, raw_id(2))
    steps, changes = iter([None, DENIED]), world.stage.changes

    def fail() -> None:
        changes.error = next(steps, DENIED)
        world.stage.target.database.remove(ORDERS, raw_id(3))

    changes.before_mark = fail
    report = await world.generations.conclude(set(), applied=0)
    assert not report.is_equal
    assert report.is_unstable
    assert [difference.id for difference in report.differences] == [raw_id(3)]


async def test_a_document_that_vanishes_while_the_last_comparison_runs_is_no_certificate() -> None:
    world = await compared()
    world.put(1, n="foreign")

    class Vanishing(FakeTarget):
        @override
        async def write(self, batch: WriteBatch) -> Sequence[Failure]:
            failures = await super().write(batch)
            self.database.remove(ORDERS, raw_id(4))
            return failures

    world.generations.repair_into = Vanishing(world.stage.target.database)
    report = await world.generations.conclude(set(), applied=0)
    assert (report.is_equal, report.is_unstable) == (False, True)
    assert [difference.id for difference in report.differences] == [raw_id(4)]


async def test_a_document_lost_after_the_last_pass_is_no_certificate() -> None:
    world = await compared()
    looks = iter([False, True])

    def beside() -> None:
        if next(looks, False):
            world.stage.target.database.remove(ORDERS, raw_id(4))

    world.stage.changes.before_mark = beside
    report = await world.generations.conclude(set(), applied=0)
    assert (report.is_equal, report.is_unstable) == (False, True)


async def test_somebody_who_keeps_writing_is_named_as_the_reason() -> None:
    world = await compared()
    world.stage.changes.before_mark = lambda: world.put(1)
    with pytest.raises(OperatorError, match="somebody keeps writing") as failed:
        await world.generations.conclude(set(), applied=0)
    assert "db.currentOp()" in failed.value.hint


async def test_a_capped_target_is_compared_again_since_its_evictions_may_be_silent() -> None:
    world = await compared()
    database = world.stage.target.database
    database.capped[ORDERS] = 5
    world.put(100)  # evicts the first, and no event tells of it
    report = await world.generations.conclude(set(), applied=0)
    assert (report.is_equal, report.is_unstable) == (False, True)
    assert [difference.id for difference in report.differences] == [raw_id(0)]


@pytest.mark.parametrize("at_the_end", [False, True])
async def test_more_changes_than_are_kept_cost_a_whole_comparison(
    monkeypatch: pytest.MonkeyPatch, *, at_the_end: bool
) -> None:
    world = await compared()
    monkeypatch.setattr(core_changed, "_MOST", 2)
    if at_the_end:
        looks = iter([False, True])

        def beside() -> None:
            if next(looks, False):
                world.put(1, 2, 3)

        world.stage.changes.before_mark = beside
    else:
        world.put(1, 2, 3)
    report = await world.generations.conclude(set(), applied=0)
    assert (report.compared, report.is_equal) == (5, True)
    assert world.source.fetched >= 10


async def test_what_replay_wrote_is_not_taken_for_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await compared()
    monkeypatch.setattr(core_changed, "_MOST", 2)
    await world.stage.capture(*[insert(ORDERS, {"_id": number, "n": 0}) for number in range(10, 20)])
    world.put(*range(10, 20))
    world.put(1, n="foreign")
    world.source.fetched = 0
    await world.generations.compare(await last(world.stage))
    assert (world.generations.carried, world.generations.report.compared) == (1, 15)
    assert world.source.fetched < 15  # what was compared before, and not written since, is not read again


async def test_a_marker_that_never_comes_is_no_watch() -> None:
    world = await compared()
    world.stage.changes.is_silent = True
    clock = world.stage.clock
    world.stage.changes.before_each = lambda: setattr(clock, "_seconds", clock.monotonic() + 61)
    assert await world.watch.look() is None
    assert "does not come out" in world.watch.why_not


async def test_a_lost_lease_is_never_taken_for_a_lost_watch() -> None:
    world = await compared()
    world.stage.changes.error = LogHeldError("another agent writes this log")
    with pytest.raises(LogHeldError):
        await world.watch.look()
    with pytest.raises(LogHeldError):
        await world.watch.begin()


async def test_comparisons_of_a_version_that_did_not_watch_count_for_nothing() -> None:
    world = await compared()
    value = await world.stage.states.load(COMPARED)
    assert value is not None
    del value["watched"]
    await world.stage.states.save(COMPARED, value)
    world.again()
    await world.generations.load(applied=1_000)
    assert world.generations.report.compared == 0


def _event(kind: str, namespace: Namespace, id_: object = None) -> Operation:
    found = None if id_ is None else raw_id(id_)
    return Operation(kind, namespace, ClusterTime(1, 1), b"", found, None, None, b"")


@pytest.mark.parametrize("event", [_event("insert", ORDERS), _event("drop", UNNAMED), _event("insert", UNNAMED, 1)])
def test_an_event_that_says_too_little_makes_everything_changed(event: Operation) -> None:
    changed = Changed()
    changed.add(event)
    assert changed.is_full


def test_a_database_that_moved_concerns_its_collections() -> None:
    changed = Changed()
    for event in (_event("dropDatabase", Namespace("shop")), _event("drop", Namespace("crm", "people"))):
        changed.add(event)
    assert changed.moved_within({ORDERS}) == [Namespace("shop")]
    assert changed.moved_within({Namespace("crm")}) == [Namespace("crm", "people")]
    changed.forget_name(Namespace("shop"))
    assert changed.moved == {Namespace("crm", "people")}
