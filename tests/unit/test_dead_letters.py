"""What lies in dead-letter/: each refused document with its reason, its place in the log, itself and its holders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from bson import decode_all

from d5agent.core.log.operation import Namespace
from d5agent.core.replay.replay import Failure, Write
from d5agent.errors import OperatorError
from d5agent.steps.log.reader import LogReader
from d5agent.steps.replay import dead_letters
from d5agent.steps.replay.conflicts import Holders
from d5agent.steps.replay.dead_letters import DeadLetters
from tests.fakes.cluster import delete, insert, rename, update
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.indexes import sparse
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeReader

if TYPE_CHECKING:
    from tests.fakes.cluster import Op

LONG: Final = Namespace("shop", "o" * 230)


async def stage_of(*ops: Op) -> Stage:
    """Return a stage whose log holds operations, in a commit each."""
    stage = Stage()
    for op in ops:
        await stage.capture(op)
    return stage


def letters_of(stage: Stage) -> DeadLetters:
    return DeadLetters(
        store=stage.store,
        reader=LogReader(store=stage.store),
        source=FakeReader(stage.cluster),
        holders=Holders(target=stage.target),
        run_id="run",
    )


def refusal(id_: object, *, namespace: Namespace = ORDERS, index: str = "") -> Failure:
    """Return a refused write, as it comes out of settling: without its document."""
    write = Write(id=raw_id(id_), document=None)
    return Failure(namespace=namespace, write=write, reason="it is refused", is_conflict=bool(index), index=index)


async def bury(stage: Stage, *failures: Failure) -> OperatorError:
    with pytest.raises(OperatorError) as raised:
        await letters_of(stage).bury(failures)
    return raised.value


def stored(stage: Stage) -> dict[str, bytes]:
    """Return what lies there, by the last part of its key."""
    folder = "dead-letter/run/"
    return {key.removeprefix(folder): body for key, body in stage.store.objects.items() if key.startswith(folder)}


def letter(stage: Stage, number: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stored(stage)[f"{number:06d}.json"])
    return found


async def test_a_letter_tells_reason_and_place_and_has_the_document_beside_it() -> None:
    stage = await stage_of(insert(ORDERS, {"_id": 1}), update(ORDERS, {"_id": 1, "x": 2}), insert(ORDERS, {"_id": 2}))
    error = await bury(stage, refusal(1))
    reader = LogReader(store=stage.store)
    found = [(link.commit.sequence, o) async for link, o in reader.operations_of(reader.links()) if o is not None]
    sequence, last = [(number, o) for number, o in found if o.document_id == raw_id(1) and not o.is_ours][-1]
    assert letter(stage) == {
        "version": 1,
        "namespace": "shop.orders",
        "id": "1",
        "reason": "it is refused",
        "index": "",
        "holders": [],
        "sequence": sequence,
        "cluster_time": list(last.cluster_time),
        "operation": "update",
        "documents": ["dead-letter/run/000001.bson"],
    }
    assert stored(stage)["000001.bson"] == raw_document({"_id": 1, "x": 2})
    assert error.facts["refused"] == "shop.orders 1: it is refused"
    assert "d5agent start restore" in error.hint


async def test_of_a_conflict_both_documents_are_named_and_stored() -> None:
    stage = await stage_of(insert(ORDERS, {"_id": 1, "email": "a"}))
    stage.target.database.unique[ORDERS] = sparse("email")
    stray = {"_id": 77, "email": "a", "more": "than the index has"}
    stage.target.database.put(ORDERS, raw_id(77), raw_document(stray))
    error = await bury(stage, refusal(1, index="email_1"))
    assert (letter(stage)["holders"], letter(stage)["index"]) == (["77"], "email_1")
    assert letter(stage)["documents"] == ["dead-letter/run/000001.bson", "dead-letter/run/000001.holders.bson"]
    assert decode_all(stored(stage)["000001.holders.bson"]) == [stray]
    assert error.facts["refused"] == "shop.orders 1: it is refused: 77"


async def test_a_conflict_whose_holder_has_gone_meanwhile_names_none() -> None:
    stage = await stage_of(insert(ORDERS, {"_id": 1, "email": "a"}))
    await bury(stage, refusal(1, index="email_1"))
    assert letter(stage)["holders"] == []


async def test_a_document_that_the_source_has_no_more_is_named_without_itself() -> None:
    stage = await stage_of(insert(ORDERS, {"_id": 1}), delete(ORDERS, 1))
    stage.target.database.unique[ORDERS] = sparse("email")
    await bury(stage, refusal(1, index="email_1"))
    assert (letter(stage)["documents"], letter(stage)["operation"]) == ([], "delete")


async def test_a_document_that_came_with_a_renamed_collection_has_no_operation_of_its_own() -> None:
    new = Namespace("shop", "new")
    stage = await stage_of(insert(ORDERS, {"_id": 1}), rename(ORDERS, new))
    await bury(stage, refusal(1, namespace=new))
    assert [letter(stage)[name] for name in ("sequence", "cluster_time", "operation")] == [None, None, None]
    assert stored(stage)["000001.bson"] == raw_document({"_id": 1})


async def test_a_long_collections_operations_are_found_although_its_keys_shorten_it() -> None:
    stage = await stage_of(insert(LONG, {"_id": 1}))
    await bury(stage, refusal(1, namespace=LONG))
    assert letter(stage)["operation"] == "insert"


async def test_only_segments_of_the_refused_documents_collections_are_read() -> None:
    other = Namespace("shop", "other")
    stage = await stage_of(insert(ORDERS, {"_id": 1}), insert(other, {"_id": 1}))
    for key in [key for key in stage.store.objects if key.startswith("replication/shop/other/")]:
        del stage.store.objects[key]
    await bury(stage, refusal(1))
    assert letter(stage)["operation"] == "insert"


async def test_letters_of_healed_documents_are_removed_and_the_last_one_with_all_that_belongs_to_it() -> None:
    stage = await stage_of(insert(ORDERS, {"_id": 1}), insert(ORDERS, {"_id": 2}))
    await bury(stage, refusal(1), refusal(2))
    assert sorted(stored(stage)) == ["000001.bson", "000001.json", "000002.bson", "000002.json"]
    await bury(stage, refusal(2))
    assert sorted(stored(stage)) == ["000001.bson", "000001.json"]
    assert letter(stage)["id"] == "2"
    await letters_of(stage).bury([])
    assert stored(stage) == {}


async def test_so_many_documents_are_stored_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "_MOST_DOCUMENTS", 1)
    stage = await stage_of(insert(ORDERS, {"_id": 1}), insert(ORDERS, {"_id": 2}))
    await bury(stage, refusal(1), refusal(2))
    assert sorted(stored(stage)) == ["000001.bson", "000001.json", "000002.json"]
    assert letter(stage, 2)["documents"] == []
