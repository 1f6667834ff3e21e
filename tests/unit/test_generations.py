"""Verification in generations: what was equal is not compared again, what differed is; a restart forgets neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from d5agent.steps.compare.generations import COMPARED, Generations
from d5agent.steps.compare.target_watch import TargetWatch
from d5agent.steps.log.reader import LogReader
from tests.fakes.cluster import drop, insert, rename, update
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeReader

if TYPE_CHECKING:
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import Namespace

OTHER = type(ORDERS)("shop", "other")


def generations(stage: Stage) -> Generations:
    return Generations(
        reader=LogReader(store=stage.store),
        states=stage.states,
        source=FakeReader(stage.cluster),
        target=stage.target,
        repair_into=stage.target,
        clock=stage.clock,
        waiting_bytes=10_000,
        run_id="run",
        watch=TargetWatch(changes=stage.changes, clock=stage.clock, journal=stage.coordinator.journal),
    )


async def end_of(stage: Stage) -> Link:
    last = await LogReader(store=stage.store).last()
    assert last is not None
    return last


def copy(stage: Stage, namespace: Namespace = ORDERS) -> None:
    """Make the target's collection what the source's is."""
    for id_, document in stage.cluster.database.contents().get(namespace, {}).items():
        stage.target.database.put(namespace, id_, document)


async def inserted(stage: Stage, *numbers: int) -> Link:
    await stage.capture(*[insert(ORDERS, {"_id": number, "n": 0}) for number in numbers])
    return await end_of(stage)


async def test_a_generation_compares_what_came_since_the_last_one() -> None:
    stage, seen = Stage(), []
    first = await inserted(stage, 1, 2, 3)
    copy(stage)
    subject = generations(stage)
    await subject.compare(first)
    seen.append(subject.report.compared)
    await subject.compare(first)  # nothing has come
    seen.append(subject.report.compared)
    await subject.compare(await inserted(stage, 4))
    seen.append(subject.report.compared)
    assert seen == [3, 3, 4]
    assert (subject.number, subject.carried) == (2, 1)
    copy(stage)
    report = await subject.conclude(set(), applied=first.commit.sequence)
    assert (report.compared, report.different, report.repairs) == (4, 0, 0)


async def test_a_generation_repairs_nothing_and_what_differs_is_compared_again() -> None:
    stage = Stage()
    link = await inserted(stage, 1, 2)
    copy(stage)
    stage.target.database.put(ORDERS, raw_id(2), raw_document({"_id": 2, "n": "wrong"}))
    before = stage.target.database.contents()
    subject = generations(stage)
    await subject.compare(link)
    assert subject.carried == 1
    assert stage.target.database.contents() == before
    copy(stage)
    await subject.compare(link)  # no new commit, and the one that differed
    assert subject.carried == 0


async def test_what_still_differs_at_the_end_is_repaired_whatever_starts_lie_between() -> None:
    stage = Stage()
    link = await inserted(stage, 1, 2)
    copy(stage)
    stage.target.database.put(ORDERS, raw_id(2), raw_document({"_id": 2, "n": "wrong"}))
    await generations(stage).compare(link)
    again = generations(stage)
    await again.load(applied=link.commit.sequence)
    assert (again.carried, again.report.compared) == (1, 2)
    report = await again.conclude(set(), applied=link.commit.sequence)
    assert (report.compared, report.repairs, report.is_equal) == (2, 1, True)
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_a_later_start_compares_what_came_since_and_no_more() -> None:
    stage = Stage()
    link = await inserted(stage, 1, 2, 3)
    copy(stage)
    await generations(stage).compare(link)
    await inserted(stage, 4)  # never copied
    again = generations(stage)
    await again.load(applied=link.commit.sequence)
    report = await again.conclude(set(), applied=link.commit.sequence)
    assert (report.compared, report.repairs, report.is_equal) == (4, 1, True)


@pytest.mark.parametrize("changed", [{"run_id": "another"}, {"version": 99}, {"sequence": 1_000_000}])
async def test_what_another_run_another_version_or_a_later_checkpoint_compared_counts_for_nothing(
    changed: dict[str, object],
) -> None:
    stage = Stage()
    link = await inserted(stage, 1, 2, 3)
    copy(stage)
    await generations(stage).compare(link)
    value = await stage.states.load(COMPARED)
    assert value is not None
    await stage.states.save(COMPARED, {**value, **changed})
    again = generations(stage)
    await again.load(applied=link.commit.sequence)
    assert again.report.compared == 0
    assert (await again.conclude(set(), applied=link.commit.sequence)).compared == 3


async def test_a_renamed_collection_is_compared_whole_once_and_what_differs_is_carried() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1, "n": 0}), insert(ORDERS, {"_id": 2, "n": 0}))
    await stage.capture(rename(ORDERS, OTHER), update(OTHER, {"_id": 1, "n": 1}))
    stage.target.database.put(OTHER, raw_id(1), raw_document({"_id": 1, "n": 0}))  # the rename brought the old one
    subject = generations(stage)
    await subject.compare(await end_of(stage))
    assert (subject.carried, subject.carries_whole) == (2, False)
    report = await subject.conclude({ORDERS, OTHER}, applied=0)
    assert report.is_equal
    assert stage.target.database.contents()[OTHER] == stage.foreign_contents()[OTHER]


async def test_a_collection_that_was_dropped_after_the_generation_leaves_nothing_that_differs() -> None:
    stage = Stage()
    link = await inserted(stage, 1, 2)
    subject = generations(stage)
    await subject.compare(link)
    assert subject.carried == 2
    await stage.capture(drop(ORDERS))
    report = await subject.conclude({ORDERS}, applied=link.commit.sequence)
    assert (report.different, report.repairs) == (0, 0)


async def test_a_document_that_the_target_lost_after_its_generation_is_found() -> None:
    stage = Stage()
    link = await inserted(stage, *range(20))
    copy(stage)
    subject = generations(stage)
    await subject.compare(link)
    for number in range(20):  # a TTL index
        stage.target.database.remove(ORDERS, raw_id(number))
    report = await subject.conclude(set(), applied=link.commit.sequence)
    assert (report.compared, report.repairs, report.is_equal) == (20, 20, True)
    assert stage.target.database.contents() == stage.foreign_contents()
