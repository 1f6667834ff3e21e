"""What a plan says of a log, two databases and the target's unique indexes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from d5agent.core.log.operation import Namespace
from d5agent.core.plan.plan import Plan
from d5agent.steps.log.reader import LogReader
from d5agent.steps.plan.planner import Planner
from d5agent.steps.replay.rates import keep_rate, known_rate
from tests.fakes.cluster import Op, delete, drop, drop_database, insert, rename, replace, update
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.indexes import UniqueIndex, identity
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.store import FakeObjectStore
from tests.fakes.target import FakeReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from d5agent.core.log.operation import ClusterTime
    from d5agent.core.log.raw import DocumentId

OTHERS = Namespace("shop", "others")
MIB = 1024 * 1024


async def planned(
    stage: Stage,
    *,
    with_divergence: bool = False,
    memory_bytes: int = MIB,
    source: WrittenMeanwhile | None = None,
    now: Callable[[], Awaitable[ClusterTime]] | None = None,
) -> dict[str, Any]:
    """The plan, as JSON: it must be JSON, and nothing may have been written."""
    before = dict(stage.store.objects), stage.target.database.contents(), stage.cluster.database.contents()
    stage.target.before_each = _must_not_write
    plan = await Planner(
        reader=LogReader(store=stage.store),
        source=source or FakeReader(stage.cluster),
        target=stage.target,
        clock=stage.clock,
        now=now or stage.source.now,
        memory_bytes=memory_bytes,
        window_bytes=100_000,
        waiting_bytes=10_000,
        plan=Plan(run_id="run"),
    ).make(with_divergence=with_divergence)
    after = dict(stage.store.objects), stage.target.database.contents(), stage.cluster.database.contents()
    assert before[1] == after[1]
    assert source is not None or before == after
    value: dict[str, Any] = json.loads(json.dumps(plan.to_json()))
    return value


def _must_not_write() -> None:
    raise AssertionError("a plan wrote into the target")


def have(stage: Stage, *sides: str, namespace: Namespace = ORDERS, **fields: object) -> None:
    """Let a document be there before anything happens."""
    for side in sides:
        database = stage.cluster.database if side == "source" else stage.target.database
        database.put(namespace, raw_id(fields["_id"]), raw_document(fields))


def both(stage: Stage, **fields: Any) -> None:  # noqa: ANN401 -- a document's fields
    have(stage, "source", "target", **fields)


def unique(stage: Stage, *fields: str, **options: Any) -> None:  # noqa: ANN401 -- an index's options
    stage.target.database.unique[ORDERS] = frozenset({UniqueIndex(fields, **options)})


async def test_each_document_is_counted_once_by_what_happens_to_it() -> None:
    stage = Stage()
    for number in range(4):
        both(stage, _id=number, n=0)
    have(stage, "target", _id=7, n=1)
    await stage.capture(
        *[update(ORDERS, {"_id": 0, "n": n}) for n in (1, 2, 3)],
        delete(ORDERS, 1),
        update(ORDERS, {"_id": 2, "n": 1}),
        update(ORDERS, {"_id": 2, "n": 0}),
        insert(ORDERS, {"_id": 8}),
        insert(ORDERS, {"_id": 9}),
        delete(ORDERS, 9),
    )
    plan = await planned(stage)
    row = plan["namespaces"]["shop.orders"]
    kinds = {name: row[name] for name in ("inserts", "updates", "deletes", "others")}
    assert kinds == {"inserts": 2, "updates": 5, "deletes": 2, "others": 0}
    effects = {name: row[name] for name in ("documents", "insert", "overwrite", "delete", "equal")}
    assert effects == {"documents": 5, "insert": 1, "overwrite": 1, "delete": 1, "equal": 2}
    assert plan["operations"] == 9
    assert plan["bytes"] == row["bytes"] == sum(len(operation.raw) for operation in await stage.operations())
    assert (plan["go"], plan["obstacles"], plan["notes"]) == (True, [], [])
    assert plan["sequence"] == (await stage.commits())[-1].sequence
    assert "divergence" not in plan
    assert "undelivered" not in plan


async def test_what_would_be_overwritten_is_named_with_its_fields() -> None:
    stage = Stage()
    both(stage, _id=1, n=0)
    have(stage, "target", _id=2, mine=True)
    await stage.capture(update(ORDERS, {"_id": 1, "n": 1}), insert(ORDERS, {"_id": 2, "n": 5}))
    plan = await planned(stage)
    assert plan["overwrites_total"] == 2
    first, second = sorted(plan["overwrites"], key=lambda row: row["id"])
    assert first == {"namespace": "shop.orders", "id": "1", "fields": ["n"], "is_new": False}
    assert (second["id"], second["is_new"]) == ("2", True)  # inserted during the outage, and yet in the target
    assert plan["overwrites_unexpected"] == 1


async def test_many_overwrites_are_all_counted_and_the_first_named() -> None:
    stage = Stage()
    for number in range(1_005):
        both(stage, _id=number, n=0)
    await stage.capture(*[update(ORDERS, {"_id": number, "n": 1}) for number in range(1_005)])
    plan = await planned(stage)
    assert (plan["overwrites_total"], len(plan["overwrites"])) == (1_005, 1_000)


async def test_drops_and_renames_are_named_with_their_position_in_order() -> None:
    stage = Stage()
    have(stage, "target", _id=1, namespace=OTHERS)
    await stage.capture(
        insert(OTHERS, {"_id": 1}),
        drop(OTHERS),
        insert(ORDERS, {"_id": 1}),
        rename(ORDERS, OTHERS),
        insert(Namespace("gone", "x"), {"_id": 1}),
        drop_database("gone"),
    )
    plan = await planned(stage)
    # A dropDatabase comes after the drops of its collections.
    said = [(event["kind"], event["namespace"], event["to"]) for event in plan["events"]]
    assert said[:2] == [("drop", "shop.others", None), ("rename", "shop.orders", "shop.others")]
    assert said[-1] == ("dropDatabase", "gone", None)
    commits = {commit.sequence: commit for commit in await stage.commits()}
    for event in plan["events"]:
        (ref,) = (ref for ref in commits[event["sequence"]].segments if ref.key == event["key"])
        found = [o async for o in LogReader(store=stage.store).segment(ref) if o.kind == event["kind"]]
        assert event["cluster_time"] in [list(operation.cluster_time) for operation in found]
    assert plan["events_total"] == len(said)
    assert plan["go"]


async def test_a_collection_whose_name_moved_is_counted_by_comparing_it_whole() -> None:
    stage = Stage()
    for number in range(3):
        both(stage, _id=number)
    have(stage, "target", _id=9, namespace=OTHERS)
    await stage.capture(update(ORDERS, {"_id": 0, "n": 1}), rename(ORDERS, OTHERS))
    plan = await planned(stage)
    row, other = plan["namespaces"]["shop.orders"], plan["namespaces"]["shop.others"]
    assert (row["documents"], row["delete"], row["equal"]) == (3, 3, 0)
    assert (other["insert"], other["delete"], other["overwrite"]) == (3, 1, 0)
    assert any("compared whole" in note for note in plan["notes"])
    assert any("builds them again ([restore] keep_indexes)" in note for note in plan["notes"])


async def test_a_database_that_is_dropped_is_compared_whole_whatever_the_log_says_of_its_collections() -> None:
    stage = Stage()
    have(stage, "target", _id=5, namespace=OTHERS)
    await stage.capture(insert(ORDERS, {"_id": 1}), Op(kind="dropDatabase", namespace=Namespace("shop")))
    names = {event["namespace"] for event in (await planned(stage))["events"]}
    assert {"shop", "shop.orders"} <= names
    plan = await planned(stage)
    assert plan["namespaces"]["shop.others"]["delete"] == 1


async def test_an_operation_of_an_unknown_type_is_found_and_named_and_all_else_is_told() -> None:
    stage = Stage()
    shuffle = Op(kind="shuffle", namespace=ORDERS)
    await stage.capture(insert(ORDERS, {"_id": 1}), shuffle, insert(ORDERS, {"_id": 2}))
    plan = await planned(stage)
    (unknown,) = plan["unknown"]
    assert (unknown["kind"], unknown["namespace"]) == ("shuffle", "shop.orders")
    assert unknown["key"] in stage.store.objects
    assert (plan["unknown_total"], plan["go"]) == (1, False)
    assert "'shuffle' cannot be replayed" in plan["obstacles"][0]
    assert plan["namespaces"]["shop.orders"]["insert"] == 2


async def test_an_empty_log_is_a_plan_of_nothing() -> None:
    plan = await planned(Stage())
    assert (plan["operations"], plan["namespaces"], plan["go"], plan["sequence"]) == (0, {}, True, None)
    assert plan["estimate"]["seconds"] == 0


async def test_a_value_that_an_untouched_document_holds_is_a_conflict() -> None:
    stage = Stage()
    unique(stage, "u")
    have(stage, "target", _id="holder", u=5)
    have(stage, "target", _id="other", u=6)
    await stage.capture(insert(ORDERS, {"_id": "new", "u": 5.0}), insert(ORDERS, {"_id": "fine", "u": 7}))
    plan = await planned(stage)
    assert plan["conflicts"] == [
        {
            "namespace": "shop.orders",
            "index": "u_1",
            "value": '{"u": 5.0}',
            "id": "new",
            "holder": "holder",
            "holder_is": "in the target, and not touched",
        }
    ]
    assert (plan["go"], plan["conflicts_total"]) == (False, 1)
    assert "foreseen: 1" in plan["obstacles"][0]


async def test_values_that_are_handed_round_are_no_conflict() -> None:
    stage = Stage()
    unique(stage, "u")
    for number in range(6):
        both(stage, _id=number, u=number)
    await stage.capture(
        *[update(ORDERS, {"_id": number, "u": (number + 1) % 5}) for number in range(5)], delete(ORDERS, 5)
    )
    assert (await planned(stage))["conflicts"] == []


async def test_a_value_that_two_written_documents_share_is_a_conflict() -> None:
    stage = Stage()
    unique(stage, "u", "v")
    await stage.capture(*[insert(ORDERS, {"_id": number, "u": number // 2, "v": 0}) for number in range(3)])
    plan = await planned(stage)
    (conflict,) = plan["conflicts"]
    assert {conflict["id"], conflict["holder"]} == {"0", "1"}
    assert conflict["holder_is"] == "written by restore too"
    assert conflict["value"] == '{"u": 0, "v": 0}'


async def test_sparse_partial_and_multikey_indexes_are_as_the_server_has_them() -> None:
    stage = Stage()
    unique(stage, "u", is_sparse=True, partial="p")
    have(stage, "target", _id="absent", p=1)
    have(stage, "target", _id="left out", u=1)
    have(stage, "target", _id="many", u=[2, 3], p=1)
    await stage.capture(
        insert(ORDERS, {"_id": "a", "p": 1}),
        insert(ORDERS, {"_id": "b", "u": 1, "p": 1}),
        insert(ORDERS, {"_id": "c", "u": [3, 4, 4], "p": 1}),
        insert(ORDERS, {"_id": "d", "u": 4}),
    )
    plan = await planned(stage)
    assert [(row["id"], row["holder"]) for row in plan["conflicts"]] == [("c", "many")]


async def test_a_log_larger_than_memory_is_read_in_parts_with_the_same_result() -> None:
    stage = Stage()
    unique(stage, "u")
    for number in range(150):
        both(stage, _id=number, u=number)
    have(stage, "target", _id="holder", u=1_000)
    have(stage, "target", _id="lost", u=5_000)
    ops = [update(ORDERS, {"_id": number, "u": (number + 1) % 150}) for number in range(150)]
    twins = [insert(ORDERS, {"_id": f"twin {n}", "u": 2_000}) for n in range(2)]
    await stage.capture(*ops, *ops, insert(ORDERS, {"_id": "new", "u": 1_000}), *twins)
    whole = await planned(stage, with_divergence=True)
    parts = await planned(stage, with_divergence=True, memory_bytes=2_000)  # 62 documents at a time
    held = ("new", "holder")
    # Which part the twins fall into is left to the hash: their value may be one too many to remember.
    found = {(row["id"], row["holder"]) for row in parts["conflicts"]}
    assert {held} <= found <= {held, ("twin 1", "twin 0")}
    assert [(row["id"], row["holder"]) for row in whole["conflicts"]] == [held, ("twin 1", "twin 0")]
    assert any("too many" in note for note in parts["notes"])
    for plan in (whole, parts):
        # The holder is one that DMS had not delivered, too.
        assert sorted(row["id"] for row in plan["divergence"]) == ["holder", "lost"]
    assert whole["namespaces"] == parts["namespaces"]
    assert whole["namespaces"]["shop.orders"]["documents"] == 153


async def test_a_shared_value_is_found_in_a_log_with_renames_and_documents_without_the_field() -> None:
    stage = Stage()
    unique(stage, "u", is_sparse=True)
    await stage.capture(
        insert(OTHERS, {"_id": 1}),
        rename(OTHERS, Namespace("shop", "renamed")),
        *[insert(ORDERS, {"_id": number, "u": 5}) for number in range(2)],
    )
    assert [(row["id"], row["holder"]) for row in (await planned(stage))["conflicts"]] == [("1", "0")]
    stage = Stage()
    unique(stage, "u", is_sparse=True)
    await stage.capture(insert(ORDERS, {"_id": 1}))
    assert (await planned(stage))["conflicts"] == []


async def test_holders_that_another_part_knows_of_are_remembered_up_to_a_thousand() -> None:
    stage = Stage()
    unique(stage, "u")
    stage.target.database.collections[ORDERS] = {
        identity(raw_id(f"holder {u}")): raw_document({"_id": f"holder {u}", "u": u}) for u in range(2_000)
    }
    values = [list(range(at, at + 200)) for at in range(0, 2_000, 200)]
    await stage.capture(*[insert(ORDERS, {"_id": number, "u": some}) for number, some in enumerate(values)])
    plan = await planned(stage, memory_bytes=96)  # 3 documents at a time: of three holders in four it is not known yet
    assert 1_000 <= plan["conflicts_total"] < 2_000
    assert any("too many" in note for note in plan["notes"])


async def test_too_many_keys_are_said_and_no_memory_is_taken_for_them() -> None:
    stage = Stage()
    unique(stage, "u")
    await stage.capture(*[insert(ORDERS, {"_id": number, "u": number}) for number in range(40)])
    plan = await planned(stage, memory_bytes=1_000)  # 20 keys
    assert any("too many" in note for note in plan["notes"])
    assert plan["namespaces"]["shop.orders"]["insert"] == 40


async def test_many_documents_are_looked_at_in_portions_and_each_once() -> None:
    stage = Stage()
    unique(stage, "u")
    # The second operation on a document may come in another portion than its first.
    ops = [insert(ORDERS, {"_id": number, "u": number % 1_001}) for number in range(1_004)]
    await stage.capture(*ops, *[update(ORDERS, {"_id": number, "u": number % 1_001}) for number in range(10)])
    plan = await planned(stage, memory_bytes=MIB)
    row = plan["namespaces"]["shop.orders"]
    assert (row["documents"], row["insert"], row["updates"]) == (1_004, 1_004, 10)
    pairs = {frozenset((int(row["id"]), int(row["holder"]))) for row in plan["conflicts"]}
    assert pairs == {frozenset((number, number + 1_001)) for number in range(3)}


async def test_indexes_that_differ_are_named() -> None:
    stage = Stage()
    unique(stage, "u")
    await stage.capture(insert(ORDERS, {"_id": 1}))
    stage.cluster.database.unique[ORDERS] = frozenset({UniqueIndex(("v",))})
    missing, own = sorted((await planned(stage))["indexes"], key=lambda line: "target only" in line)
    assert "shop.orders: index v_1 is missing in the target" in missing
    assert "shop.orders: index u_1 is in the target only" in own


@pytest.mark.parametrize("count", [1, 1_500])
async def test_all_that_diverges_is_named_and_nothing_that_the_log_touches(count: int) -> None:
    stage = Stage()
    for number in range(1_200):
        both(stage, _id=number, n=0)
    for number in range(2_000, 2_000 + count):
        have(stage, "source", _id=number, n=0, namespace=OTHERS)
    have(stage, "target", _id="extra", n=1)
    stage.target.database.put(ORDERS, raw_id(1_199), raw_document({"_id": 1_199, "n": 5}))
    await stage.capture(*[update(ORDERS, {"_id": number, "n": 1}) for number in range(1_199)])
    plan = await planned(stage, with_divergence=True)
    assert plan["divergence_total"] == len(plan["divergence"]) == count + 2
    found = {(row["namespace"], row["id"]): (row["kind"], row["fields"]) for row in plan["divergence"]}
    assert found["shop.orders", "extra"] == ("extra", [])
    assert found["shop.orders", "1199"] == ("different", ["n"])
    assert found["shop.others", "2000"] == ("missing", [])
    assert plan["go"]


async def test_without_a_log_all_that_differs_diverges() -> None:
    stage = Stage()
    have(stage, "source", _id=1)
    plan = await planned(stage, with_divergence=True)
    assert [row["id"] for row in plan["divergence"]] == ["1"]
    assert plan["notes"] == []


def diverged_and_touched(stage: Stage) -> None:
    """Let MongoDB have written one document, and deleted another, without DMS delivering it."""
    both(stage, _id="written", a=1, b=1)
    both(stage, _id="deleted", a=1, b=1)
    stage.target.database.put(ORDERS, raw_id("written"), raw_document({"_id": "written", "a": 999, "b": 1}))
    stage.target.database.remove(ORDERS, raw_id("deleted"))


async def test_undelivered_writes_on_touched_documents_are_named() -> None:
    stage = Stage()
    diverged_and_touched(stage)
    both(stage, _id="plain", a=1, b=1)
    await stage.capture(
        *[update(ORDERS, {"_id": id_, "a": 1, "b": 2}) for id_ in ("written", "deleted", "plain")],
        insert(ORDERS, {"_id": "new"}),
    )
    plan = await planned(stage, with_divergence=True)
    found = {row["id"]: (row["kind"], row["fields"]) for row in plan["undelivered"]}
    assert found == {"written": ("different", ["a"]), "deleted": ("missing", [])}
    assert plan["undelivered_total"] == 2
    assert plan["undelivered_kept_in"] == "dump/run/target/"
    assert plan["divergence"] == []
    assert plan["go"]


async def test_fields_that_any_event_names_are_not_undelivered() -> None:
    stage = Stage()
    for id_ in ("in turn", "removed", "replaced", "reborn"):
        both(stage, _id=id_, a=1, b=1, c=1)
    have(stage, "target", _id="inserted")
    await stage.capture(
        update(ORDERS, {"_id": "in turn", "a": 2, "b": 1, "c": 1}),
        update(ORDERS, {"_id": "in turn", "a": 2, "b": 2, "c": 1}),
        update(ORDERS, {"_id": "removed", "a": 1, "b": 1}),
        update(ORDERS, {"_id": "replaced", "a": 2, "b": 1, "c": 1}),
        replace(ORDERS, {"_id": "replaced", "a": 3}),
        delete(ORDERS, "reborn"),
        insert(ORDERS, {"_id": "reborn", "a": 5}),
        insert(ORDERS, {"_id": "inserted", "a": 5}),
    )
    assert (await planned(stage, with_divergence=True))["undelivered"] == []


async def test_undelivered_writes_are_found_in_a_log_larger_than_memory() -> None:
    stage = Stage()
    for number in range(150):
        both(stage, _id=number, a=1, b=1)
        stage.target.database.put(ORDERS, raw_id(number), raw_document({"_id": number, "a": 999 + number % 2, "b": 1}))
        stage.cluster.database.put(ORDERS, raw_id(number), raw_document({"_id": number, "a": 999, "b": 1}))
    await stage.capture(*[update(ORDERS, {"_id": number, "a": 999, "b": 2}) for number in range(150)])
    for memory_bytes in (MIB, 2_000):
        plan = await planned(stage, with_divergence=True, memory_bytes=memory_bytes)
        assert sorted(int(row["id"]) for row in plan["undelivered"]) == list(range(1, 150, 2))


async def test_what_is_written_while_it_compares_is_not_taken_for_undelivered() -> None:
    stage = Stage()
    both(stage, _id=1, a=1, b=1)
    await stage.capture(update(ORDERS, {"_id": 1, "a": 1, "b": 2}))

    updated: list[bool] = []

    class UpdatedMeanwhile(WrittenMeanwhile):
        @override
        async def fetch(
            self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
        ) -> Mapping[DocumentId, bytes]:
            if not updated:
                updated.append(True)
                await self.stage.capture(update(ORDERS, {"_id": 1, "a": 2, "b": 2}))
            return await super().fetch(namespace, ids, most_bytes=most_bytes)

        @override
        async def collections(self) -> Sequence[Namespace]:
            return await FakeReader.collections(self)

    plan = await planned(stage, with_divergence=True, source=UpdatedMeanwhile(stage, is_captured=True))
    assert (plan["undelivered"], plan["undelivered_total"]) == ([], 0)


async def test_a_write_at_a_time_that_stands_still_is_not_taken_for_divergence() -> None:
    stage = Stage()
    both(stage, _id=1)
    await stage.capture(update(ORDERS, {"_id": 1, "n": 1}))
    still = (await stage.commits())[-1].position.cluster_time

    class CapturedLater(WrittenMeanwhile):
        @override
        async def collections(self) -> Sequence[Namespace]:
            self.stage.cluster.database.put(ORDERS, raw_id("late"), raw_document({"_id": "late"}))
            return await FakeReader.collections(self)

    async def now() -> ClusterTime:
        await asyncio.sleep(0)
        return still

    async def capture_later() -> None:
        await stage.clock.sleep(1)
        stage.cluster.database.remove(ORDERS, raw_id("late"))
        await stage.capture(insert(ORDERS, {"_id": "late"}))

    async with asyncio.TaskGroup() as group:
        group.create_task(capture_later())
        plan = await planned(stage, with_divergence=True, source=CapturedLater(stage, is_captured=False), now=now)
    assert plan["divergence"] == []


async def test_without_divergence_nothing_is_named() -> None:
    stage = Stage()
    both(stage, _id=1)
    assert (await planned(stage, with_divergence=True))["divergence"] == []


class WrittenMeanwhile(FakeReader):
    """A source where an application writes while it is compared; replication may capture that, or be down."""

    def __init__(self, stage: Stage, *, is_captured: bool) -> None:
        super().__init__(stage.cluster)
        self.stage = stage
        self.is_captured = is_captured

    @override
    async def collections(self) -> Sequence[Namespace]:
        found = await super().collections()
        if raw_id("late") not in self.database.contents().get(ORDERS, {}):
            op = insert(ORDERS, {"_id": "late"})
            if self.is_captured:
                await self.stage.capture(op)
            else:
                self.stage.cluster.apply(op)
                await self.stage.clock.sleep(100)
        return found


@pytest.mark.parametrize("is_captured", [True, False])
async def test_what_is_written_while_it_compares_is_not_taken_for_divergence(*, is_captured: bool) -> None:
    stage = Stage()
    stage.cluster.moves_while_idle = True
    have(stage, "source", "target", _id=1)
    have(stage, "source", _id="undelivered")
    await stage.capture(update(ORDERS, {"_id": 1, "n": 1}))
    source = WrittenMeanwhile(stage, is_captured=is_captured)
    plan = await planned(stage, with_divergence=True, source=source)
    ids = sorted(row["id"] for row in plan["divergence"])
    is_noted = any("plan again" in note for note in plan["notes"])
    assert (ids, is_noted) == ((["undelivered"], False) if is_captured else (["late", "undelivered"], True))
    assert plan["divergence_total"] == len(ids)


async def test_the_newest_restore_of_the_bucket_tells_how_fast_writing_is() -> None:
    store = FakeObjectStore(page_size=1)
    assert await known_rate(store) is None
    await keep_rate(store, run_id="b", at="2026-11-01T08:00:00+00:00", documents=40_000, seconds=4.0)
    await keep_rate(store, run_id="a", at="2026-11-02T08:00:00+00:00", documents=90_000, seconds=3.0)
    await keep_rate(store, run_id="c", at="2026-11-03T08:00:00+00:00", documents=10, seconds=3.0)  # says nothing
    found = await known_rate(store)
    assert found is not None
    assert (found.documents_per_second, found.at) == (30_000, "2026-11-02T08:00:00+00:00")


async def test_a_rate_of_another_version_does_not_count() -> None:
    store = FakeObjectStore()
    await keep_rate(store, run_id="a", at="2026-11-02T08:00:00+00:00", documents=90_000, seconds=3.0)
    (key,) = store.objects
    store.objects[key] = json.dumps({**json.loads(store.objects[key]), "version": 2}).encode()
    assert await known_rate(store) is None
