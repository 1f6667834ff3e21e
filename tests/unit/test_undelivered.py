"""Writes that DMS had not delivered, on documents that the outage touched: named beside the target's dump."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from typing_extensions import override

from d5agent.core.log.operation import Namespace
from d5agent.errors import LogHeldError, TransientError
from d5agent.steps.compare.undelivered_report import undelivered_key
from tests.fakes.cluster import drop, insert, update
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.machine import FakeDumpTool
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.core.log.operation import ClusterTime
    from d5agent.core.log.raw import DocumentId
    from d5agent.errors import AgentError

OTHERS: Final = Namespace("shop", "others")


async def diverged(count: int = 0) -> Stage:
    """A stage on which MongoDB wrote one document and deleted another, undelivered, and the outage touched both."""
    stage = Stage()
    for id_ in ("written", "deleted", *range(count)):
        for database in (stage.cluster.database, stage.target.database):
            database.put(ORDERS, raw_id(id_), raw_document({"_id": id_, "a": 1}))
    stage.target.database.put(ORDERS, raw_id("written"), raw_document({"_id": "written", "a": 999}))
    stage.target.database.remove(ORDERS, raw_id("deleted"))
    stage.cluster.database.put(OTHERS, raw_id(1), raw_document({"_id": 1}))
    await stage.capture(
        *[update(ORDERS, {"_id": id_, "a": 1, "b": 2}) for id_ in ("written", "deleted", *range(count))],
        insert(ORDERS, {"_id": "new"}),
        update(OTHERS, {"_id": 1, "x": 1}),
        drop(OTHERS),
    )
    return stage


async def backed_up(stage: Stage, **changed: Any) -> dict[str, Any] | None:  # noqa: ANN401 -- fields
    """Run the backup, whose dump of the target takes a minute; return what was reported."""

    class MinuteDumpTool(FakeDumpTool):
        @override
        async def operation_time(self) -> ClusterTime:
            await stage.clock.sleep(60)
            return await super().operation_time()

    tools = MinuteDumpTool(archives={"shop": [b"archive"]}), FakeDumpTool()
    backup = stage.backup(*tools)
    for name, value in changed.items():
        setattr(backup.undelivered, name, value)
    await backup.run(stage.coordinator)
    body = stage.store.objects.get(undelivered_key("run"))
    return None if body is None else json.loads(body)


async def test_undelivered_writes_are_named_before_restore_overwrites_them() -> None:
    stage = await diverged(30)
    found = await backed_up(stage)
    assert found is not None
    rows = {row["id"]: (row["kind"], row["fields"]) for row in found["undelivered"]}
    assert rows == {"written": ("different", ["a"]), "deleted": ("missing", [])}
    assert (found["state"], found["undelivered_total"], found["compared"]) == ("complete", 2, 33)
    assert found["kept_in"] == "dump/run/target/"
    (told,) = stage.coordinator.journal.facts_of("undelivered_writes_found")
    assert told == {"documents": 2, "report": "reports/run/undelivered.json", "kept_in": "dump/run/target/"}


async def test_nothing_is_looked_for_without_a_log() -> None:
    assert await backed_up(Stage()) is None


async def test_without_undelivered_writes_nothing_is_told() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": "new"}))
    found = await backed_up(stage)
    assert found is not None
    assert (found["undelivered"], found["state"]) == ([], "complete")
    assert stage.coordinator.journal.facts_of("undelivered_writes_found") == []


class SlowReader(FakeReader):
    """Takes an hour for each answer."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.cluster)
        self.stage = stage

    @override
    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        await self.stage.clock.sleep(3600)
        return await super().fetch(namespace, ids, most_bytes=most_bytes)


async def test_the_look_ends_with_the_dump_and_says_so() -> None:
    stage = await diverged(30)
    found = await backed_up(stage, source=SlowReader(stage))
    assert found is not None
    assert (found["state"], found["compared"], found["undelivered"]) == ("unfinished", 0, [])


async def test_a_stored_dump_is_not_looked_beside_again() -> None:
    stage = await diverged()
    await backed_up(stage)
    del stage.store.objects[undelivered_key("run")]
    assert await backed_up(stage) is None


@pytest.mark.parametrize("error", [TransientError("no answer"), LogHeldError("another agent holds the log")])
async def test_a_failed_look_fails_no_backup_unless_the_log_is_lost(error: AgentError) -> None:
    class Failing(FakeReader):
        @override
        async def fetch(
            self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
        ) -> Mapping[DocumentId, bytes]:
            raise error

    stage = await diverged()
    if isinstance(error, LogHeldError):
        with pytest.raises(LogHeldError):
            await backed_up(stage, source=Failing(stage.cluster))
        return
    assert await backed_up(stage, source=Failing(stage.cluster)) is None
    assert stage.coordinator.journal.facts_of("undelivered_writes_not_looked_for") == [
        {"error": "no answer", "hint": ""}
    ]
    assert "dump/run/target/manifest.json" in stage.store.objects


async def certificate_of(stage: Stage) -> dict[str, Any]:
    """Issue a certificate up to the log's end; return it."""
    await stage.draw_fence()
    await stage.prove()
    found: dict[str, Any] = json.loads(stage.store.objects["reports/run/certificate.json"])
    return found


def page_of(stage: Stage) -> str:
    return stage.store.objects["reports/run/certificate.html"].decode()


async def test_certificate_names_undelivered_writes_and_what_was_not_looked_at() -> None:
    stage = await diverged()
    found = await backed_up(stage)
    assert found is not None
    certified = await certificate_of(stage)
    assert certified["undelivered"] == {
        "state": "complete",
        "documents": 2,
        "sequence": found["sequence"],
        "operations_since": 0,
        "report": "reports/run/undelivered.json",
    }
    assert "2 documents named in reports/run/undelivered.json; the look is complete<" in page_of(stage)


async def test_certificate_says_that_later_documents_were_not_looked_at() -> None:
    stage = await diverged()
    await backed_up(stage)
    await stage.capture(insert(ORDERS, {"_id": 1}), insert(ORDERS, {"_id": 2}))
    certified = await certificate_of(stage)
    assert certified["undelivered"]["operations_since"] == 3  # with the marker of the start
    assert "one of the 3 later operations (markers included) touched first were not looked at" in page_of(stage)


@pytest.mark.parametrize(("body", "state"), [(None, "not looked for"), (b"{", "not known"), (b"[]", "not known")])
async def test_certificate_says_that_nobody_has_looked(body: bytes | None, state: str) -> None:
    stage = await diverged()
    if body is not None:
        stage.store.objects[undelivered_key("run")] = body
    certified = await certificate_of(stage)
    assert certified["undelivered"]["state"] == state
    assert certified["undelivered"]["operations_since"] is None
    assert f"{state}: no document was looked at before restore wrote" in page_of(stage)
