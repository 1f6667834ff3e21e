"""The hold on the target: what is set, what is remembered, what is given back and by whom."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
import structlog.testing
from bson import encode

from d5agent.core.log.operation import Namespace
from d5agent.core.replay.ttl import NEVER, TtlIndex
from d5agent.core.replay.unique_key import UniqueIndex
from d5agent.core.run.hold import HOLD, Block, Hold, is_due
from d5agent.core.run.hold import Stage as HoldStage
from d5agent.core.run.services import Phase, Service, Status, Verified
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError, OperatorError, TransientError
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.hold_watch import HoldWatch
from d5agent.runtime.inspecting_check import check_guard
from d5agent.steps.compare.held_reader import HeldReader
from d5agent.steps.replay.target_hold import foreseen
from tests.fakes.cluster import drop, insert, rename
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.machine import FakeJournal
from tests.fakes.servers import FakeServer
from tests.fakes.stage import ORDERS, Stage

if TYPE_CHECKING:
    from d5agent.steps.replay.target_hold import TargetHold
    from tests.fakes.cluster import Op

NO_RIGHT: Final = "the agent's user may not setUserWriteBlockMode"
INDEX: Final = TtlIndex(namespace=ORDERS, name="at_1", field="at", seconds=60, collection_id="1")
OTHER: Final = replace(INDEX, namespace=Namespace("shop", "other"), seconds=0, collection_id="2")


def with_ttl(stage: Stage, *indexes: TtlIndex) -> None:
    for index in indexes:
        stage.target.database.ttl[index.namespace] = (index,)


def ttl(stage: Stage) -> dict[str, float]:
    return {str(i.namespace): i.seconds for indexes in stage.target.database.ttl.values() for i in indexes}


def is_held(stage: Stage) -> bool:
    """Whether no TTL index deletes anything for decades."""
    return all(seconds > 2_000_000_000 for seconds in ttl(stage).values())


@pytest.fixture
def stage() -> Stage:
    built = Stage()
    with_ttl(built, INDEX, OTHER)
    return built


async def test_a_target_is_blocked_and_opened_again(stage: Stage) -> None:
    journal = FakeJournal()
    held = await stage.hold().take("run", journal)
    assert (held.block, held.is_open) == (Block.OURS, False)
    assert not stage.target.database.write_as_another(ORDERS, {"_id": 1})
    assert ttl(stage) == {"shop.orders": 60, "shop.other": 0}
    await stage.hold().give_back(journal)  # by another daemon, from what the state says
    assert stage.target.database.write_as_another(ORDERS, {"_id": 1})
    assert [entry.event for entry in journal.entries] == ["target_writes_blocked", "target_writes_allowed"]


async def test_without_the_right_ttl_is_held_and_given_back(stage: Stage) -> None:
    stage.guard.obstacle, journal = NO_RIGHT, FakeJournal()
    held = await stage.hold().take("run", journal)
    assert (held.block, held.is_open, held.obstacle) == (Block.NONE, True, NO_RIGHT)
    assert is_held(stage)
    assert journal.facts_of("target_open_to_writes") == [{"why": NO_RIGHT, "hint": "grant it"}]
    assert await stage.hold().take("run", journal) == held  # a restart: what it was before is not forgotten
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"shop.orders": 60, "shop.other": 0}
    events = [entry.event for entry in journal.entries]
    assert events.count("target_ttl_held") == 1
    assert events.count("target_ttl_given_back") == 2


async def test_a_ttl_index_is_given_back_under_its_new_name(stage: Stage) -> None:
    stage.guard.obstacle = NO_RIGHT
    hold, journal, database = stage.hold(), FakeJournal(), stage.target.database
    for index in (INDEX, OTHER):
        await stage.target.create_collection(index.namespace)
    await hold.take("run", journal)
    database.rename(ORDERS, Namespace("shop", "archive"))
    database.rename(OTHER.namespace, Namespace("elsewhere", "other"))  # which makes another collection of it
    await hold.give_back(journal)
    assert ttl(stage) == {"shop.archive": 60, "elsewhere.other": 0}
    assert not journal.facts_of("target_ttl_gone")


async def test_ttl_indexes_that_moved_to_another_database_are_told_apart(stage: Stage) -> None:
    stage.guard.obstacle, journal, database = NO_RIGHT, FakeJournal(), stage.target.database
    for index in (INDEX, OTHER):
        await stage.target.create_collection(index.namespace)
    await stage.hold().take("run", journal)
    database.rename(ORDERS, Namespace("elsewhere", "orders"))
    database.rename(OTHER.namespace, ORDERS)
    database.rename(ORDERS, Namespace("elsewhere", "other"))
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"elsewhere.orders": 60, "elsewhere.other": 0}


async def test_ttl_indexes_that_were_built_again_are_given_back(stage: Stage) -> None:
    stage.guard.obstacle, journal, database = NO_RIGHT, FakeJournal(), stage.target.database
    await stage.hold().take("run", journal)
    for index in (INDEX, OTHER):
        (held,) = database.ttl[index.namespace]
        database.ttl[index.namespace] = (replace(held, collection_id=f"new {index.collection_id}"),)
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"shop.orders": 60, "shop.other": 0}


async def test_a_ttl_index_that_was_renamed_and_built_again_is_given_back_twice(stage: Stage) -> None:
    stage.guard.obstacle, journal, database = NO_RIGHT, FakeJournal(), stage.target.database
    await stage.target.create_collection(ORDERS)
    await stage.hold().take("run", journal)
    (held,) = database.ttl[ORDERS]
    database.rename(ORDERS, Namespace("shop", "archive"))
    database.ttl[ORDERS] = (replace(held, collection_id="new"),)
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"shop.orders": 60, "shop.other": 0, "shop.archive": 60}


async def test_a_ttl_index_that_restore_builds_later_is_given_back(stage: Stage) -> None:
    stage.guard.obstacle, journal, database = NO_RIGHT, FakeJournal(), stage.target.database
    database.ttl.pop(ORDERS)
    await stage.hold().take("run", journal, kept=[replace(INDEX, collection_id="")])
    held = await stage.hold().take("run", journal, kept=[replace(INDEX, collection_id="")])  # another start of restore
    (number,) = [index.held_as for index in held.ttl if index.namespace == ORDERS]
    database.ttl[ORDERS] = (replace(INDEX, collection_id="new", seconds=number),)
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"shop.orders": 60, "shop.other": 0}


async def test_an_expiry_that_somebody_else_has_set_is_no_number_of_the_agents(stage: Stage) -> None:
    stage.guard.obstacle, journal = NO_RIGHT, FakeJournal()
    theirs = replace(INDEX, namespace=Namespace("shop", "theirs"), seconds=NEVER - 1, collection_id="3")
    with_ttl(stage, theirs)
    await stage.hold().take("run", journal)
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"shop.orders": 60, "shop.other": 0, "shop.theirs": NEVER - 1}


CLUSTERED: Final = replace(INDEX, name="", field="_id", seconds=100)


async def test_a_clustered_collection_without_an_expiry_gets_none(stage: Stage) -> None:
    stage.guard.obstacle, journal, database = NO_RIGHT, FakeJournal(), stage.target.database
    other = replace(CLUSTERED, namespace=OTHER.namespace, seconds=NEVER, collection_id="2")
    with_ttl(stage, CLUSTERED, other)
    await stage.hold().take("run", journal)
    database.ttl.pop(ORDERS)
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"shop.other": NEVER}
    assert journal.facts_of("target_ttl_gone") == [{"namespace": "shop.orders", "index": ""}]


async def test_a_clustered_collection_gets_its_expiry_back_by_its_id_and_by_its_name(stage: Stage) -> None:
    stage.guard.obstacle, journal, database = NO_RIGHT, FakeJournal(), stage.target.database
    with_ttl(stage, CLUSTERED, replace(CLUSTERED, namespace=OTHER.namespace, seconds=200, collection_id="2"))
    await stage.target.create_collection(ORDERS)
    await stage.hold().take("run", journal)
    database.rename(ORDERS, Namespace("shop", "archive"))
    database.ttl[OTHER.namespace] = (replace(database.ttl[OTHER.namespace][0], collection_id="new"),)
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"shop.archive": 100, "shop.other": 200}


async def test_what_an_earlier_version_held_is_given_back(stage: Stage) -> None:
    stage.guard.obstacle, journal, database = NO_RIGHT, FakeJournal(), stage.target.database
    await stage.target.create_collection(ORDERS)
    await stage.hold().take("run", journal)
    value = json.loads(stage.states.texts[HOLD])
    for row in value["ttl"]:
        del row["held_as"]
    await stage.states.save(HOLD, value)
    with_ttl(stage, *[replace(index, seconds=NEVER) for index in (INDEX, OTHER)])
    database.rename(ORDERS, Namespace("shop", "archive"))
    with_ttl(stage, replace(INDEX, seconds=NEVER, collection_id="new"))
    await stage.hold().give_back(journal)
    assert ttl(stage) == {"shop.archive": 60, "shop.orders": 60, "shop.other": 0}


ITEMS: Final = Namespace("shop", "items")
OLD: Final = {n: Namespace("shop", f"old {n.collection}") for n in (ORDERS, ITEMS)}


def reloaded(namespace: Namespace, *more: Op) -> list[Op]:
    """Drop a collection, and make it again."""
    return [insert(namespace, {"_id": 1}), drop(namespace), insert(namespace, {"_id": 2}), *more]


async def restored(*ops: Op, ttl: dict[Namespace, TtlIndex], window_bytes: int = 1, obstacle: str = NO_RIGHT) -> Stage:
    """Return a stage with TTL indexes on its target, after a restore that may not block it."""
    stage = Stage()
    for number, (namespace, index) in enumerate(ttl.items()):
        stage.target.database.put(namespace, raw_id("there"), raw_document({"_id": "there"}))
        with_ttl(stage, replace(index, namespace=namespace, collection_id=str(number)))
    await stage.capture(*ops)
    await stage.draw_fence()
    stage.guard.obstacle = obstacle
    await stage.restore(window_bytes=window_bytes).run(stage.coordinator)
    return stage


@pytest.mark.parametrize("window_bytes", [1, 10_000])
async def test_collections_that_are_made_again_and_renamed_are_given_back_each_its_own(window_bytes: int) -> None:
    moved = [op for n, to in OLD.items() for op in reloaded(n, rename(n, to))]
    stage = await restored(*moved, ttl={ORDERS: INDEX, ITEMS: OTHER}, window_bytes=window_bytes)
    assert ttl(stage) == ({"shop.old orders": 60, "shop.old items": 0} if window_bytes == 1 else {})


async def test_an_index_that_takes_anothers_place_is_refused_as_in_write_block_mode() -> None:
    ops = (insert(ORDERS, {"_id": 1}), rename(ORDERS, ITEMS), insert(ORDERS, {"_id": 2}))
    for obstacle in (NO_RIGHT, ""):
        with pytest.raises(OperatorError, match="cannot be built again") as failed:
            await restored(*ops, ttl={ORDERS: INDEX, ITEMS: OTHER}, obstacle=obstacle)
        assert "shop.items: index at_1: an equivalent index" in str(failed.value.facts["refused"])


@pytest.mark.parametrize("seconds", [60.5, 2_147_483_647, NEVER])
async def test_an_index_that_is_built_again_has_the_expiry_that_it_had(seconds: float) -> None:
    stage = await restored(*reloaded(ORDERS), ttl={ORDERS: replace(INDEX, seconds=seconds)})
    assert ttl(stage) == {"shop.orders": seconds}


async def test_a_clustered_collection_is_made_again_with_its_expiry() -> None:
    stage = await restored(*reloaded(ORDERS), ttl={ORDERS: CLUSTERED})
    assert ttl(stage) == {"shop.orders": 100}


@pytest.mark.parametrize("index", [INDEX, CLUSTERED, replace(INDEX, seconds=NEVER)])
async def test_the_certificate_names_no_expiry_that_is_the_holds(index: TtlIndex) -> None:
    other = replace(index, namespace=ITEMS, collection_id="2", seconds=index.seconds + 1)
    stage = Stage()
    for side, seconds in ((stage.database, index.seconds), (stage.target.database, other.seconds)):
        side.ttl[ORDERS], side.ttl[ITEMS] = (index,), (replace(other, seconds=seconds),)
    await stage.capture(insert(ORDERS, {"_id": 1}), insert(ITEMS, {"_id": 1}))
    await stage.draw_fence()
    stage.guard.obstacle = NO_RIGHT
    await stage.restore().run(stage.coordinator)
    told = json.loads(stage.store.objects["reports/run/certificate.json"])["result"]["indexes"]
    (line,) = [each for each in told if each.startswith(str(ITEMS))]
    assert (str(index.seconds) in line, str(other.seconds) in line) == (True, True)
    assert told == [line]


async def test_a_reader_of_a_held_target_reads_what_its_reader_reads(stage: Stage) -> None:
    stage.target.database.put(ORDERS, raw_id(1), raw_document({"_id": 1}))
    held = replace(INDEX, seconds=60.0)
    with_ttl(stage, replace(INDEX, seconds=held.held_as))
    shown = HeldReader(reader=stage.target, held=[held])
    assert await shown.collections() == await stage.target.collections()
    assert await shown.fetch(ORDERS, [raw_id(1)]) == await stage.target.fetch(ORDERS, [raw_id(1)])
    assert await shown.count(ORDERS, exactly=True) == 1
    assert [page async for page in shown.scan(ORDERS)] == [page async for page in stage.target.scan(ORDERS)]
    index = UniqueIndex(name="_id_", fields=("_id",))
    assert await shown.holders(ORDERS, index, []) == []
    assert (await shown.facts(ORDERS)).indexes == {"at_1": '{"at": 1} {"expireAfterSeconds": 60}'}


async def test_what_was_lost_in_write_block_mode_and_is_built_without_it_is_given_back() -> None:
    stage = await restored(insert(ORDERS, {"_id": 1}), drop(ORDERS), ttl={ORDERS: INDEX}, obstacle="")
    stage.forget_proof()
    await stage.capture(insert(ORDERS, {"_id": 2}))
    await stage.draw_fence()
    stage.guard.obstacle = NO_RIGHT
    await stage.restore().run(stage.coordinator)
    assert ttl(stage) == {"shop.orders": 60}


async def test_what_was_held_fits_what_is_built_once_the_right_is_granted() -> None:
    stage = await restored(insert(ORDERS, {"_id": 1}), ttl={ORDERS: INDEX})
    stage.forget_proof()
    stage.guard.obstacle = NO_RIGHT
    await stage.hold().take("run", FakeJournal())
    await stage.capture(rename(ORDERS, OLD[ORDERS]), rename(OLD[ORDERS], ORDERS))
    await stage.draw_fence()
    stage.guard.obstacle = ""
    await stage.restore().run(stage.coordinator)
    assert ttl(stage) == {"shop.orders": 60}


async def test_a_ttl_index_that_somebody_has_changed_or_dropped_is_left(stage: Stage) -> None:
    stage.guard.obstacle = NO_RIGHT
    hold, journal, database = stage.hold(), FakeJournal(), stage.target.database
    await hold.take("run", journal)
    with_ttl(stage, replace(INDEX, seconds=7))
    database.ttl.pop(OTHER.namespace)
    await hold.give_back(journal)
    assert ttl(stage) == {"shop.orders": 7}
    assert journal.facts_of("target_ttl_gone") == [{"namespace": "shop.other", "index": "at_1"}]


async def test_an_expiry_that_somebody_sets_meanwhile_is_held_and_given_back(stage: Stage) -> None:
    stage.guard.obstacle = NO_RIGHT
    hold, journal = stage.hold(), FakeJournal()
    await hold.take("run", journal)
    with_ttl(stage, replace(INDEX, seconds=7))
    await hold.take("run", journal)
    assert is_held(stage)
    await hold.give_back(journal)
    assert ttl(stage) == {"shop.orders": 7, "shop.other": 0}


async def test_a_block_of_somebody_else_is_never_lifted(stage: Stage) -> None:
    stage.target.database.is_blocked = True
    hold, journal = stage.hold(), FakeJournal()
    held = await hold.take("run", journal)
    assert (held.block, held.is_open) == (Block.ANOTHERS, False)
    assert is_held(stage)  # somebody else may lift the block at any moment
    await hold.give_back(journal)
    assert stage.target.database.is_blocked
    assert ttl(stage)["shop.orders"] == 60
    assert journal.facts_of("target_writes_blocked_by_another")


async def test_a_block_that_the_agent_may_not_bypass_stops_restore_before_it_writes(stage: Stage) -> None:
    stage.target.database.is_blocked, stage.guard.obstacle = True, NO_RIGHT
    with pytest.raises(OperatorError, match="in write-block mode") as failed:
        await stage.hold().take("run", FakeJournal())
    assert "d5agent start restore" in failed.value.hint
    assert HOLD not in stage.states.texts
    with pytest.raises(OperatorError, match="in write-block mode"):
        await check_guard(stage.guard)


async def test_a_block_of_ours_stays_ours_when_it_cannot_be_seen_any_more(stage: Stage) -> None:
    await stage.hold().take("run", FakeJournal())
    stage.guard.may_see = False
    assert (await stage.hold().take("run", FakeJournal())).block is Block.OURS
    await stage.hold().give_back(FakeJournal())
    assert not stage.target.database.is_blocked


async def test_a_target_is_not_closed_again_after_its_certificate(stage: Stage) -> None:
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.prove()
    await stage.hold().take("run", FakeJournal())  # a crash after the certificate left it closed
    await stage.restore().run(stage.coordinator)
    assert not stage.target.database.is_blocked
    assert not stage.coordinator.journal.facts_of("target_writes_blocked")


async def test_the_certificate_says_who_could_write(stage: Stage) -> None:
    hold, journal = stage.hold(), FakeJournal()
    assert await hold.certificate() is None
    await hold.take("run", journal)
    said = await hold.certificate()
    assert said is not None
    assert (said["write_block"], said["was_open"], said["ttl_held"]) == ("set by d5agent", False, [])
    stage.target.database.is_blocked = False
    said = await hold.certificate()
    assert said is not None
    assert (said["write_block"], said["was_open"]) == ("lifted by somebody else", True)
    await hold.give_back(journal)
    stage.guard.obstacle = NO_RIGHT
    assert (await hold.take("run", journal)).was_open
    said = await hold.certificate()
    assert said is not None
    assert said["ttl_held"][0] == {"namespace": "shop.orders", "index": "at_1", "seconds": 60}
    assert (said["write_block"], said["was_open"], said["obstacle"]) == ("not set", True, NO_RIGHT)


async def test_giving_back_again_does_nothing(stage: Stage) -> None:
    hold, journal = stage.hold(), FakeJournal()
    await hold.give_back(journal)
    await hold.forget()
    await hold.take("run", journal)
    await hold.forget()
    assert HOLD in stage.states.texts
    await hold.give_back(journal)
    saved = len(stage.states.history)
    await hold.give_back(journal)
    assert len(stage.states.history) == saved
    await hold.forget()
    assert HOLD not in stage.states.texts
    assert await hold.current() is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 2}, "another version"),
        ({"block": "?"}, "damaged"),
        ({"ttl": 1}, "damaged"),
        ({"ttl": [{}]}, "damaged"),
    ],
)
def test_a_state_that_cannot_be_read_is_named(changed: dict[str, object], message: str) -> None:
    hold = Hold(run_id="run", since="now", block=Block.OURS, ttl=(INDEX,))
    assert Hold.from_json(hold.to_json()) == hold
    with pytest.raises(CorruptDataError, match=message):
        Hold.from_json({**hold.to_json(), **changed})


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, True),
        (Status.PENDING, False),
        (Status.RUNNING, False),
        (Status.WAITING, False),
        (Status.FAILED, False),
        (Status.STOPPED, True),
        (Status.DONE, True),
    ],
)
def test_a_hold_is_due_once_restore_neither_works_nor_has_failed(status: Status | None, *, expected: bool) -> None:
    coordinator = Stage().coordinator
    if status is not None:
        coordinator.set_status(Service.RESTORE, status)
    hold = Hold(run_id="run", since="now", block=Block.OURS)
    assert is_due(hold, coordinator.state) is expected
    assert is_due(replace(hold, run_id="an earlier run"), coordinator.state)
    assert is_due(replace(hold, stage=HoldStage.ENDING), coordinator.state)
    assert not is_due(replace(hold, stage=HoldStage.ENDED), coordinator.state)
    assert not is_due(None, coordinator.state)
    proof = Verified(sequence=1, operations=1, compared=1, at="now")
    assert is_due(hold, replace(coordinator.state, verified=proof))


def watched(stage: Stage, hold: TargetHold) -> tuple[Daemon, HoldWatch]:
    daemon = Daemon(plugins={}, states=stage.states, clock=stage.clock, drain_seconds=5)
    daemon.file.state = stage.coordinator.state
    return daemon, HoldWatch(daemon=daemon, hold=hold)


async def test_a_watch_gives_back_what_a_dead_restore_has_left(stage: Stage) -> None:
    await stage.hold().take("run", FakeJournal())
    daemon, watch = watched(stage, stage.hold())
    daemon.file.state = replace(daemon.state, phase=Phase.IDLE)
    with structlog.testing.capture_logs() as logs:
        await watch.look()
        await watch.look()
    assert [entry["event"] for entry in logs] == ["target_writes_allowed"]
    assert HOLD not in stage.states.texts


async def test_a_watch_reports_a_target_that_cannot_be_given_back_once(stage: Stage) -> None:
    await stage.hold().take("run", FakeJournal())
    _, watch = watched(stage, stage.hold())
    stage.guard.error = TransientError("the target is not reached", hint="start it")
    with structlog.testing.capture_logs() as logs:
        await watch.look()
        await watch.look()
    assert [entry["event"] for entry in logs] == ["target_not_given_back"]
    assert stage.target.database.is_blocked
    stage.guard.error = None
    await watch.look()
    assert not stage.target.database.is_blocked


@pytest.mark.parametrize("obstacle", ["", NO_RIGHT])
async def test_a_watch_that_comes_late_leaves_what_a_new_start_has_taken(stage: Stage, obstacle: str) -> None:
    stage.guard.obstacle, hold, journal = obstacle, stage.hold(), FakeJournal()
    held = await hold.take("run", journal)
    await stage.states.save(HOLD, held.ending().to_json())  # it was stopped, and the target was not reached
    hold = stage.hold()
    await hold.current()
    stage.coordinator.set_status(Service.RESTORE, Status.RUNNING)
    _, watch = watched(stage, hold)
    async with asyncio.TaskGroup() as group:
        group.create_task(hold.take("run", journal))
        await asyncio.sleep(0)  # restore is asking the target
        group.create_task(watch.look())
    assert stage.target.database.is_blocked is not bool(obstacle)
    assert not obstacle or is_held(stage)
    held_now = await hold.current()
    assert held_now is not None
    assert held_now.stage is HoldStage.HELD


async def test_a_restore_blocks_until_it_is_certified(stage: Stage) -> None:
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.draw_fence()
    refused = []

    def write_as_another() -> None:
        refused.append(not stage.target.database.write_as_another(ORDERS, {"_id": "another's"}))

    stage.target.before_each = write_as_another
    await stage.restore().run(stage.coordinator)
    assert refused
    assert all(refused)
    assert not stage.target.database.is_blocked
    assert stage.coordinator.progress.restore.target_write_block is Block.OURS
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_a_plan_says_what_keeps_others_from_writing(stage: Stage) -> None:
    can, named = await foreseen(stage.guard)
    assert can == "others cannot write to the target while restore is at work: write-block mode"
    assert named.startswith("write-block mode keeps 2 TTL indexes")
    stage.guard.obstacle = NO_RIGHT
    with_ttl(stage, *[replace(INDEX, namespace=Namespace("more", str(n)), collection_id=str(n)) for n in range(10)])
    cannot, named = await foreseen(stage.guard)
    assert NO_RIGHT in cannot
    assert "an expireAfterSeconds of 68 years keeps 12 TTL indexes" in named
    assert named.endswith("and 2 more")
    stage.target.database.ttl.clear()
    assert len(await foreseen(stage.guard)) == 1


async def test_check_warns_with_what_to_grant(stage: Stage) -> None:
    assert (await check_guard(stage.guard)).found == "can be used"
    stage.target.database.is_blocked = True
    assert "somebody else has set it" in (await check_guard(stage.guard)).found
    stage.target.database.is_blocked, stage.guard.obstacle = False, NO_RIGHT
    warned = await check_guard(stage.guard)
    assert NO_RIGHT in warned.found
    assert warned.hint == "grant it"


@pytest.mark.parametrize(("obstacle", "causes"), [(NO_RIGHT, ["foreign write"]), ("", [])])
async def test_a_foreign_write_is_named_where_others_could_write(
    stage: Stage, obstacle: str, causes: list[str]
) -> None:
    stage.guard.obstacle = obstacle
    await stage.capture(insert(ORDERS, {"_id": 1}), insert(ORDERS, {"_id": 2}), insert(ORDERS, {"_id": 3}))
    await stage.draw_fence()

    def write_as_another() -> None:
        if stage.target.database.find(ORDERS, raw_id(1)) is not None:
            stage.target.database.write_as_another(ORDERS, {"_id": 1, "by": "another"})
            stage.target.before_each = lambda: None

    stage.target.before_each = write_as_another
    await stage.restore().run(stage.coordinator)
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    assert [repaired["cause"] for repaired in certificate["result"]["repaired"]] == causes
    found = stage.coordinator.journal.facts_of("foreign_writes_found")
    assert [facts["documents"] for facts in found] == [1] * len(causes)
    assert stage.target.database.contents() == stage.foreign_contents()


def test_a_hold_of_a_version_that_noted_no_position_is_not_known_if_it_was_open() -> None:
    for was_open, opened_at in ((True, b""), (False, None)):
        value = Hold(run_id="run", since="now", was_open=was_open, opened_at=encode({"_data": "1"})).to_json()
        assert Hold.from_json(value).opened_at == encode({"_data": "1"})
        del value["opened_at"], value["opened_unseen"]
        assert Hold.from_json(value).opened_at == opened_at


def another_target(stage: Stage) -> Stage:
    """Return a world that shares the agent's states, and has another target."""
    told = ServerFacts(hosts=("other:27017",), set_name="rs0", cluster_id="6b0b", version="6.0.5")
    return Stage(states=stage.states, target_server=FakeServer(told=told))


@pytest.mark.parametrize("obstacle", ["", NO_RIGHT])
async def test_another_target_is_not_taken_for_the_one_that_is_closed(stage: Stage, obstacle: str) -> None:
    stage.guard.obstacle, journal = obstacle, FakeJournal()
    await stage.hold().take("run", journal)
    closed, other = ttl(stage), another_target(stage)
    with pytest.raises(OperatorError, match="another target is still closed") as failed:
        await other.hold().take("run", journal)
    assert "d5agent stop restore" in failed.value.hint
    assert failed.value.facts == {"before": ("target:27017",), "now": ("other:27017",)}
    with pytest.raises(OperatorError, match="another target is still closed"):
        await other.hold().give_back(journal)
    assert not other.target.database.is_blocked
    assert (stage.target.database.is_blocked, ttl(stage)) == (not obstacle, closed)
    _, watch = watched(stage, stage.hold())
    await watch.look()  # the earlier URI is back: what was asked for is done
    assert not stage.target.database.is_blocked
    assert ttl(stage) == {"shop.orders": 60, "shop.other": 0}
    held = await other.hold().take("run", journal)
    assert (held.block, held.was_open, held.opened_at) == (Block.OURS, True, b"")  # nobody has looked at it
    assert other.target.database.is_blocked


async def test_another_target_is_taken_where_nothing_is_to_be_given_back(stage: Stage) -> None:
    stage.target.database.is_blocked = True
    stage.target.database.ttl.clear()
    assert (await stage.hold().take("run", FakeJournal())).block is Block.ANOTHERS
    other = another_target(stage)
    assert (await other.hold().take("run", FakeJournal())).block is Block.OURS


async def test_a_target_that_was_open_unseen_is_noted_as_such(stage: Stage) -> None:
    stage.target.database.is_blocked = True
    stage.target.database.ttl.clear()
    assert (await stage.hold().take("run", FakeJournal())).block is Block.ANOTHERS
    await another_target(stage).hold().give_back(FakeJournal())
    assert json.loads(stage.states.texts[HOLD])["opened_unseen"]


async def test_a_hold_of_an_earlier_version_is_this_targets(stage: Stage) -> None:
    await stage.hold().take("run", FakeJournal())
    value = json.loads(stage.states.texts[HOLD])
    del value["target"]
    stage.states.texts[HOLD] = json.dumps(value)
    await another_target(stage).hold().give_back(FakeJournal())
    assert json.loads(stage.states.texts[HOLD])["stage"] == "ended"
