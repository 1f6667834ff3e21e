"""Indexes and options of the target that a drop or rename takes are recorded first, and built again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from bson import decode, encode
from typing_extensions import override

from d5agent.core.log.operation import Namespace
from d5agent.core.replay.specification import (
    Specification,
    decode_specifications,
    encode_specifications,
    specifications_key,
    ttl_of,
    with_ttl_held,
)
from d5agent.core.replay.ttl import NEVER
from d5agent.core.run.services import Phase, Service, Status
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.steps.replay.checkpoint import CHECKPOINT
from d5agent.steps.replay.keeper import recorded
from tests.fakes.cluster import Op, drop, drop_database, insert, rename
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.indexes import sparse
from tests.fakes.servers import target_server
from tests.fakes.stage import ORDERS, Stage, until
from tests.fakes.store import FakeObjectStore
from tests.fakes.target import FakeTarget

ITEMS = Namespace("shop", "items")
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EMAIL = sparse("email")
(EMAIL_INDEX,) = EMAIL
VALIDATOR = {"validator": "{'n': {'$gt': 0}}"}


async def stage_of(*ops: Op) -> Stage:
    """Return a stage whose target has an index and a validator on two collections, and whose log holds operations."""
    stage = Stage()
    for namespace in (ORDERS, ITEMS):
        stage.target.database.put(namespace, raw_id("old"), raw_document({"_id": "old", "email": "old"}))
        stage.target.database.unique[namespace] = EMAIL
        stage.target.database.options[namespace] = dict(VALIDATOR)
    await stage.capture(*ops)
    await stage.draw_fence()
    return stage


RELOAD = {
    "drop": (insert(ORDERS, {"_id": 1}), drop(ORDERS), insert(ORDERS, {"_id": 2, "email": "a"})),
    "rename": (insert(ORDERS, {"_id": 1}), rename(ORDERS, ITEMS), insert(ORDERS, {"_id": 2})),
    "fresh rename": (
        *(insert(ORDERS, {"_id": 1}), drop(ORDERS), insert(ORDERS, {"_id": 2}), rename(ORDERS, ITEMS)),
        insert(ORDERS, {"_id": 3}),
    ),
    "dropDatabase": (
        *(insert(ORDERS, {"_id": 1}), drop_database("shop")),
        *(insert(ORDERS, {"_id": 2}), insert(ITEMS, {"_id": 3})),
    ),
}


@pytest.mark.parametrize("ops", RELOAD.values(), ids=RELOAD)
@pytest.mark.parametrize("window_bytes", [1, 10_000])
async def test_a_name_that_is_taken_again_gets_its_indexes_back(ops: tuple[Op, ...], window_bytes: int) -> None:
    stage = await stage_of(*ops)
    await stage.restore(window_bytes=window_bytes).run(stage.coordinator)
    database, there = stage.target.database, stage.foreign_contents()
    assert database.contents().keys() - {ITEMS} == there.keys() - {ITEMS}
    for namespace in there:
        assert (database.unique.get(namespace), database.options.get(namespace)) == (EMAIL, VALIDATOR)
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    told = certificate["result"]["specifications"]
    assert told["kept"] is True
    assert told["key"] == specifications_key("run")
    assert str(ORDERS) in told["built_again"]


async def test_without_the_setting_they_are_recorded_and_stay_lost() -> None:
    stage = await stage_of(*RELOAD["drop"])
    await stage.restore(keeps_indexes=False).run(stage.coordinator)
    assert ORDERS not in stage.target.database.unique
    _, found = decode_specifications(stage.store.objects[specifications_key("run")], key="")
    assert set(found) == {ORDERS, ITEMS}
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    assert certificate["result"]["specifications"]["kept"] is False


async def test_a_name_that_stays_away_is_not_made_again() -> None:
    stage = await stage_of(insert(ORDERS, {"_id": 1}), drop(ORDERS))
    await stage.restore().run(stage.coordinator)
    assert ORDERS not in stage.target.database.collections


async def test_an_index_that_cannot_be_built_is_refused_by_name() -> None:
    twice = (insert(ORDERS, {"_id": 1, "email": "a"}), insert(ORDERS, {"_id": 2, "email": "a"}))
    stage = await stage_of(*twice, rename(ORDERS, ITEMS))
    del stage.target.database.unique[ORDERS]
    with pytest.raises(OperatorError, match="cannot be built again") as failed:
        await stage.restore().run(stage.coordinator)
    assert failed.value.facts["refused"] == ["shop.items: index email_1: two documents have one value"]
    assert "keep_indexes = false" in failed.value.hint
    value = await stage.states.load(CHECKPOINT)
    assert value is not None
    assert {"db": "shop", "coll": "items"} in value["lost"]
    await stage.restore(keeps_indexes=False).run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()


async def test_a_restart_builds_what_was_lost_before_it() -> None:
    stage = await stage_of(insert(ORDERS, {"_id": 1}), drop(ORDERS))
    await stage.restore().run(stage.coordinator)
    stage.forget_proof()
    await stage.capture(insert(ORDERS, {"_id": 2}))
    await stage.draw_fence()
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.unique[ORDERS] == EMAIL


async def test_an_index_that_cannot_be_built_holds_the_cutover_up() -> None:
    stage = Stage()
    stage.store.objects["dump/run/target/manifest.json"] = b"{}"
    stage.target.database.put(ITEMS, raw_id("old"), raw_document({"_id": "old", "email": "old"}))
    stage.target.database.unique[ITEMS] = EMAIL
    progress = stage.coordinator.progress
    async with stage.running(stage.replication()):
        await until(stage.clock, lambda: stage.coordinator.state.ready_at)
        stage.coordinator.state = replace(stage.coordinator.state, phase=Phase.RESTORE)
        stage.coordinator.set_status(Service.RESTORE, Status.RUNNING)
        for op in (*[insert(ORDERS, {"_id": n, "email": "a"}) for n in (1, 2)], rename(ORDERS, ITEMS)):
            stage.cluster.apply(op)
        async with stage.running(stage.restore(is_live=True)) as restore:
            await until(stage.clock, lambda: progress.restore.refused)
            await until(stage.clock, lambda: progress.restore.can_cutover is False)
            assert progress.restore.refused == ("shop.items: index email_1: two documents have one value",)
            restore.cancel()


SERVER = target_server().told
OTHER = replace(SERVER, hosts=("other:27017",), cluster_id="6b0b")


def indexed() -> FakeTarget:
    target = FakeTarget()
    target.database.put(ORDERS, raw_id(1), raw_document({"_id": 1}))
    target.database.unique[ORDERS] = EMAIL
    return target


async def test_they_are_recorded_once_a_run() -> None:
    store, target = FakeObjectStore(), indexed()
    first = await recorded(store, target, run_id="run", server=SERVER, at="now")
    target.database.drop(ORDERS)
    assert await recorded(store, target, run_id="run", server=SERVER, at="later") == first
    assert json.loads(store.objects[specifications_key("run")])["at"] == "now"


async def test_another_target_has_a_record_of_its_own() -> None:
    store, target = FakeObjectStore(), indexed()
    first = await recorded(store, target, run_id="run", server=SERVER, at="now")
    assert first[1]
    second = await recorded(store, FakeTarget(), run_id="run", server=OTHER, at="later")
    assert second == ("reports/run/specifications-2.json", {})
    target.database.drop(ORDERS)
    assert await recorded(store, target, run_id="run", server=SERVER, at="again") == first


async def test_a_record_of_an_earlier_version_is_this_targets() -> None:
    store, target = FakeObjectStore(), indexed()
    key, first = await recorded(store, target, run_id="run", server=SERVER, at="now")
    value = json.loads(store.objects[key])
    del value["target"]
    store.objects[key] = json.dumps(value).encode()
    assert await recorded(store, FakeTarget(), run_id="run", server=OTHER, at="later") == (key, first)


async def test_of_two_records_the_first_is_believed() -> None:
    class Late(FakeObjectStore):
        @override
        async def put_once(self, key: str, body: bytes) -> bool:
            del body
            self.objects[key] = encode_specifications({}, run_id="run", server=SERVER, at="before")
            return False

    key, found = await recorded(Late(), indexed(), run_id="run", server=SERVER, at="now")
    assert (key, dict(found)) == (specifications_key("run"), {})


def test_ttl_is_held_until_it_is_given_back() -> None:
    index = encode({"key": {"at": 1}, "name": "at_1", "expireAfterSeconds": 60})
    plain = encode({"key": {"n": 1}, "name": "n_1"})
    other = encode({"key": {"b": 1}, "name": "b_1", "expireAfterSeconds": 2_147_483_647})
    options = encode({"clusteredIndex": {"unique": True}, "expireAfterSeconds": 5})
    specification = Specification(options=options, indexes=(index, plain, other))
    deleting = ttl_of({ORDERS: specification})
    assert [(ttl.name, ttl.field, ttl.seconds) for ttl in deleting] == [("", "_id", 5), ("at_1", "at", 60)]
    held = with_ttl_held(specification, [replace(ttl, held_as=NEVER - 7) for ttl in deleting])
    assert decode(held.options) == {"clusteredIndex": {"unique": True}}
    assert decode(held.indexes[0]) == {"key": {"at": 1}, "name": "at_1", "expireAfterSeconds": NEVER - 7}
    assert held.indexes[1:] == (plain, other)


async def test_a_ttl_index_is_built_held_where_others_may_write() -> None:
    built: list[Specification] = []

    class Watched(FakeTarget):
        @override
        async def specifications(self) -> Mapping[Namespace, Specification]:
            index = encode({"key": {"at": 1}, "name": "at_1", "expireAfterSeconds": 60})
            return {ORDERS: Specification(options=encode({}), indexes=(index,))}

        @override
        async def build(self, namespace: Namespace, specification: Specification) -> Sequence[str]:
            built.append(specification)
            return await super().build(namespace, specification)

    for obstacle, seconds in (("it is older than 6.0", NEVER - 1), ("", 60)):
        stage = Stage(target=Watched())
        stage.guard.obstacle = obstacle
        await stage.capture(insert(ORDERS, {"_id": 1}), drop(ORDERS), insert(ORDERS, {"_id": 2}))
        await stage.draw_fence()
        await stage.restore().run(stage.coordinator)
        assert decode(built.pop().indexes[0])["expireAfterSeconds"] == seconds


def test_the_file_keeps_bytes_and_can_be_read() -> None:
    found = {ORDERS: Specification(options=encode({"capped": True}), indexes=(encode({"key": {"n": 1}}),))}
    body = encode_specifications(found, run_id="run", server=SERVER, at="now")
    assert decode_specifications(body, key="") == (SERVER, found)
    (row,) = json.loads(body)["collections"]
    assert "capped" in row["readable"]["options"]
    with pytest.raises(CorruptDataError, match="are damaged") as damaged:
        decode_specifications(b"{}", key="reports/run/specifications.json")
    assert damaged.value.facts["key"] == "reports/run/specifications.json"
