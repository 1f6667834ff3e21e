"""A restore after the proof: it reports, waits for the operator's word, and overwrites nothing that was changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from bson import decode, decode_all
from typing_extensions import override

from d5agent.core.log.chain import digest, encode_commit, grown
from d5agent.core.log.operation import Namespace
from d5agent.core.log.segment import encode_segment
from d5agent.core.run.late import LateDocument, LateState
from d5agent.core.run.services import Service, Status
from d5agent.core.run.words import Words, with_words
from d5agent.errors import CorruptDataError, OperatorError
from d5agent.plugins.monitor_restore import MonitorRestore
from d5agent.steps.log.late_pages import PageWriter, read_page
from d5agent.steps.log.reader import LogReader
from tests.fakes.cluster import delete, drop, drop_database, insert, rename, update
from tests.fakes.documents import FakeDatabase, raw_document, raw_id
from tests.fakes.events import operation
from tests.fakes.indexes import sparse
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeTarget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Write
    from tests.fakes.cluster import Op

ITEMS = Namespace("shop", "items")
OLD = Namespace("shop", "old")
NOW = "2026-11-02T09:00:00.000+00:00"


@dataclass(slots=True, kw_only=True)
class Late:
    """A stage after its certificate, at which applications write to the target."""

    stage: Stage = field(default_factory=Stage)

    async def certified(self, *ops: Op, untouched: Sequence[tuple[Namespace, dict[str, Any]]] = ()) -> Late:
        """Capture operations, restore them, and move the applications over."""
        for namespace, fields in untouched:
            self.put(namespace, fields)
            self.stage.database.put(namespace, raw_id(fields["_id"]), raw_document(fields))
        await self.stage.capture(*(ops or (insert(ORDERS, {"_id": 1, "n": 1}), insert(ORDERS, {"_id": 77}))))
        await self.stage.draw_fence()
        await self.stage.restore().run(self.stage.coordinator)
        self.stage.coordinator.set_status(Service.RESTORE, Status.DONE)
        return self

    def put(self, namespace: Namespace, fields: dict[str, Any]) -> None:
        """Let an application write a document to the target."""
        assert self.stage.target.database.put(namespace, raw_id(fields["_id"]), raw_document(fields)) is None

    def remove(self, namespace: Namespace, id_: object) -> None:
        """Let an application delete a document of the target."""
        self.stage.target.database.remove(namespace, raw_id(id_))

    def found(self, namespace: Namespace, id_: object) -> dict[str, Any] | None:
        """Return what the target has."""
        document = self.stage.target.database.find(namespace, raw_id(id_))
        return None if document is None else decode(document)

    async def come(self, *ops: Op) -> None:
        """Let operations reach the source, and the log."""
        await self.stage.capture(*ops)

    async def restore(self) -> None:
        """Run restore, as `d5agent start restore` does."""
        await self.stage.restore().run(self.stage.coordinator)

    async def reported(self) -> dict[str, Any]:
        """Run restore, which writes nothing and asks for a word; return its report."""
        before = self.stage.target.database.contents()
        with pytest.raises(OperatorError, match="reached the source after the certificate"):
            await self.restore()
        assert self.stage.target.database.contents() == before
        shown = self.stage.coordinator.state.late.shown
        assert shown is not None
        report: dict[str, Any] = json.loads(self.stage.store.objects[shown.report])
        return report

    async def states(self) -> dict[str, str]:
        """Return how the target stands to what was certified, by `_id`."""
        return {row["id"]: row["state"] for row in (await self.reported())["documents"]}

    def say(self, **words: str) -> None:
        """Give the operator's word."""
        coordinator = self.stage.coordinator
        coordinator.state = with_words(coordinator.state, Service.MONITOR_RESTORE, Words(**words), now=NOW)

    async def accept(self) -> None:
        """Accept what was reported, and have it written."""
        self.say(accept_late="run")
        await self.restore()

    def result(self) -> dict[str, Any]:
        """Return what became of the last accepted report."""
        key = self.stage.coordinator.state.late.words[-1].result
        found: dict[str, Any] = json.loads(self.stage.store.objects[key])
        return found

    async def versions(self, side: str) -> list[dict[str, Any]]:
        """Return the documents of one side that reports have kept."""
        objects = sorted(self.stage.store.objects.items())
        found = [body for key, body in objects if key.startswith("reports/run/late/") and key.endswith(f"{side}.bson")]
        return [document for body in found for document in decode_all(body)]


async def test_a_restore_after_the_proof_reverts_nothing() -> None:
    late = await Late().certified()
    late.put(ORDERS, {"_id": 1, "n": 999})
    late.remove(ORDERS, 77)
    await late.come(insert(ITEMS, {"_id": "stray"}))
    assert await late.states() == {"stray": "as certified"}
    assert late.found(ORDERS, 1) == {"_id": 1, "n": 999}
    assert late.found(ORDERS, 77) is None
    await late.accept()
    assert late.found(ITEMS, "stray") == {"_id": "stray"}
    assert late.found(ORDERS, 1) == {"_id": 1, "n": 999}
    assert late.found(ORDERS, 77) is None
    word = late.stage.coordinator.state.late.words[0]
    assert (word.is_accepted, word.at, word.different, word.shown.operations) == (True, NOW, 0, 1)
    assert late.stage.coordinator.journal.facts_of("document_repaired") == []


async def test_a_restore_after_the_proof_without_late_operations_does_nothing() -> None:
    late = await Late().certified()
    late.put(ORDERS, {"_id": 1, "n": 999})
    objects = dict(late.stage.store.objects)
    await late.restore()
    assert late.found(ORDERS, 1) == {"_id": 1, "n": 999}
    assert late.stage.store.objects == objects
    (said,) = late.stage.coordinator.journal.facts_of("restore_already_certified")
    assert said["certificate"] == "reports/run/certificate.json"
    assert "d5agent start restore --again run" in str(said["hint"])


async def test_late_operations_whose_result_is_there_already_need_no_word() -> None:
    late = await Late().certified()
    late.remove(ORDERS, 77)  # as its TTL index does on both sides
    await late.come(delete(ORDERS, 77))
    late.stage.target.before_each = _must_not_write
    await late.restore()
    last = (await late.stage.commits())[-1].sequence
    assert late.stage.coordinator.state.late.settled == last
    (facts,) = late.stage.coordinator.journal.facts_of("late_operations_already_in_target")
    assert facts["operations"] == 1
    await late.restore()


def _must_not_write() -> None:
    raise AssertionError("the target was written to")


async def test_a_document_that_the_target_changed_stays_as_the_target_has_it() -> None:
    late = await Late().certified()
    late.put(ORDERS, {"_id": 1, "n": 999})
    late.remove(ORDERS, 77)
    await late.come(update(ORDERS, {"_id": 1, "n": 2}), update(ORDERS, {"_id": 77, "n": 2}))
    changed = str(LateState.CHANGED)
    assert await late.states() == {"1": changed, "77": changed}
    assert late.stage.coordinator.state.late.shown is not None
    assert late.stage.coordinator.state.late.shown.documents == 0
    assert await late.versions("target") == [{"_id": 1, "n": 999}]
    assert await late.versions("source") == [{"_id": 1, "n": 2}, {"_id": 77, "n": 2}]
    await late.accept()
    assert late.found(ORDERS, 1) == {"_id": 1, "n": 999}
    assert late.found(ORDERS, 77) is None
    assert (late.result()["left_alone"], late.result()["different"]) == (2, 0)


async def test_a_document_that_the_log_never_told_is_written_on_the_word_only_as_it_was_shown() -> None:
    untouched = [(ITEMS, {"_id": number, "n": 0}) for number in (1, 2)]
    late = await Late().certified(untouched=untouched)
    await late.come(update(ITEMS, {"_id": 1, "n": 5}), delete(ITEMS, 2))
    assert await late.states() == {"1": "not known", "2": "not known"}
    assert await late.versions("target") == [{"_id": 1, "n": 0}, {"_id": 2, "n": 0}]
    late.put(ITEMS, {"_id": 2, "n": "changed after the report"})
    with pytest.raises(OperatorError, match="1 documents of the accepted late operations are not") as stopped:
        await late.accept()
    assert "--accept-differences run" in stopped.value.hint
    assert late.found(ITEMS, 1) == {"_id": 1, "n": 5}
    assert late.found(ITEMS, 2) == {"_id": 2, "n": "changed after the report"}
    (named,) = late.result()["documents"]
    assert (named["id"], named["reason"]) == ("2", "it was changed in the target")


async def test_differences_of_an_accepted_report_stop_restore_until_they_are_accepted() -> None:
    late = await Late().certified()
    await late.come(insert(ITEMS, {"_id": "a"}))
    await late.reported()
    late.put(ITEMS, {"_id": "a", "mine": True})
    with pytest.raises(OperatorError):
        await late.accept()
    coordinator = late.stage.coordinator
    for service in (late.stage.restore(), MonitorRestore(late=late.stage.reporter())):
        with pytest.raises(OperatorError, match="are not what was accepted"):
            await service.run(coordinator)
    accepted = Words(accept_differences="run")
    later = late.stage.clock.now().isoformat()
    coordinator.state = with_words(coordinator.state, Service.CLEAN, accepted, now=later)
    await late.restore()
    await MonitorRestore(late=late.stage.reporter()).run(coordinator)
    assert coordinator.started == [Service.CLEAN, Service.MONITOR_CLEAN]
    assert late.found(ITEMS, "a") == {"_id": "a", "mine": True}


async def test_a_document_that_the_target_refuses_is_named() -> None:
    late = Late(stage=Stage(target=FakeTarget(FakeDatabase(unique={ITEMS: sparse("email")}))))
    await late.certified()
    late.put(ITEMS, {"_id": "mine", "email": "a"})
    await late.come(insert(ITEMS, {"_id": "late", "email": "a"}))
    await late.reported()
    with pytest.raises(OperatorError):
        await late.accept()
    (named,) = late.result()["documents"]
    assert "unique index" in named["reason"]
    assert late.found(ITEMS, "mine") == {"_id": "mine", "email": "a"}


async def test_what_the_target_changes_right_after_the_write_is_named_and_stays() -> None:
    class Busy(FakeTarget):
        """An application writes to a document as soon as it is written."""

        @override
        async def exchange(self, namespace: Namespace, write: Write, *, expected: bytes | None) -> str:
            answer = await super().exchange(namespace, write, expected=expected)
            self.database.remove(namespace, write.id)
            return answer

    late = Late(stage=Stage(target=Busy()))
    await late.certified()
    await late.come(insert(ITEMS, {"_id": "a"}))
    await late.reported()
    with pytest.raises(OperatorError):
        await late.accept()
    assert late.result()["documents"][0]["reason"] == "MongoDB has none"
    assert late.found(ITEMS, "a") is None


async def test_discarded_operations_stay_readable_and_the_target_as_it_is() -> None:
    late = await Late().certified()
    await late.come(insert(ITEMS, {"_id": "stray"}), delete(ORDERS, 77))
    report = await late.reported()
    late.stage.target.before_each = _must_not_write
    late.say(discard_late="run")
    coordinator = late.stage.coordinator
    await MonitorRestore(late=late.stage.reporter()).run(coordinator)
    assert coordinator.started == [Service.CLEAN, Service.MONITOR_CLEAN]
    assert not coordinator.state.late.words[0].is_accepted
    (events,) = report["events"]
    ((key, _),) = events.items()
    assert [event["operationType"] for event in decode_all(late.stage.store.objects[key])] == ["insert", "delete"]


async def test_a_word_does_not_cover_what_came_after_the_report() -> None:
    late = await Late().certified()
    await late.come(insert(ITEMS, {"_id": "first"}))
    await late.reported()
    await late.come(insert(ITEMS, {"_id": "second"}))
    late.say(accept_late="run")
    with pytest.raises(OperatorError, match="1 operations reached the source after the certificate"):
        await late.restore()
    assert late.found(ITEMS, "first") == {"_id": "first"}
    assert late.found(ITEMS, "second") is None
    await late.accept()
    assert late.found(ITEMS, "second") == {"_id": "second"}
    assert [word.shown.operations for word in late.stage.coordinator.state.late.words] == [1, 1]


async def test_a_late_drop_removes_only_what_was_certified() -> None:
    late = await Late().certified(untouched=[(ORDERS, {"_id": "old"})])
    late.put(ORDERS, {"_id": 1, "n": 999})
    late.put(ORDERS, {"_id": "new", "by": "the application"})
    await late.come(drop(ORDERS))
    assert await late.states() == {
        "1": str(LateState.CHANGED),
        "77": "as certified",
        "old": "not certified",
        "new": "not certified",
    }
    await late.accept()
    assert late.found(ORDERS, 77) is None
    assert late.found(ORDERS, 1) == {"_id": 1, "n": 999}
    assert late.found(ORDERS, "new") is not None
    assert late.found(ORDERS, "old") is not None
    assert late.result()["left_alone"] == 3


async def test_a_late_rename_and_a_late_drop_of_a_database_destroy_nothing_else() -> None:
    late = await Late().certified(insert(OLD, {"_id": 1}), insert(ITEMS, {"_id": 5, "n": 1}))
    late.put(ITEMS, {"_id": 6, "by": "the application"})
    await late.come(rename(OLD, ITEMS))
    await late.reported()
    await late.accept()
    assert late.found(OLD, 1) is None
    assert late.found(ITEMS, 1) == {"_id": 1}
    assert late.found(ITEMS, 5) is None
    assert late.found(ITEMS, 6) == {"_id": 6, "by": "the application"}
    await late.come(drop_database("shop"))
    report = await late.reported()
    assert {row["kind"] for row in report["operations"]} == {"drop", "dropDatabase"}
    await late.accept()
    assert late.found(ITEMS, 6) == {"_id": 6, "by": "the application"}


async def test_a_report_is_written_page_by_page_and_a_restart_goes_on_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("d5agent.steps.log.late_pages._PAGE_DOCUMENTS", 2)
    monkeypatch.setattr("d5agent.steps.late.report._OPERATIONS_BYTES", 1)
    late = await Late().certified()
    await late.come(*[insert(ITEMS, {"_id": number}) for number in range(5)])
    report = await late.reported()
    assert (len(report["pages"]), len(report["events"])) == (3, 5)
    shown = late.stage.coordinator.state.late.shown
    assert shown is not None
    late.say(accept_late="run")
    await late.stage.states.save("restore_late", {"version": 1, "report": shown.digest, "pages": 2})
    with pytest.raises(OperatorError, match="4 documents"):
        await late.restore()  # the fourth of them are pages that it takes for written
    assert late.found(ITEMS, 4) == {"_id": 4}
    assert late.found(ITEMS, 0) is None
    assert "restore_late" not in late.stage.states.texts


@pytest.mark.parametrize("fault", ["missing", "not what was stored"])
async def test_a_report_that_was_altered_is_not_carried_out(fault: str) -> None:
    late = await Late().certified()
    await late.come(insert(ITEMS, {"_id": "a"}))
    report = await late.reported()
    late.say(accept_late="run")
    key = next(key for key in report["pages"][0] if key.endswith("source.bson"))
    if fault == "missing":
        del late.stage.store.objects[key]
    else:
        late.stage.store.objects[key] += b"x"
    late.stage.target.before_each = _must_not_write
    with pytest.raises(CorruptDataError, match=fault) as error:
        await late.restore()
    assert error.value.facts == {"key": key}
    assert "d5agent start monitor-restore" in error.value.hint


async def test_a_word_that_comes_while_the_report_is_made_again_is_carried_out_first() -> None:
    late = await Late().certified()
    await late.come(insert(ITEMS, {"_id": "a"}))
    await late.reported()
    fetch = late.stage.target.fetch

    async def speak(
        namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        late.stage.target.fetch = fetch  # type: ignore[method-assign]  # once
        late.say(accept_late="run")
        return await fetch(namespace, ids, most_bytes=most_bytes)

    late.stage.target.fetch = speak  # type: ignore[method-assign]  # a moment in which the operator speaks
    coordinator = late.stage.coordinator
    await late.stage.reporter().look(coordinator)
    assert coordinator.state.late.pending is not None
    assert coordinator.state.late.shown is None
    await late.restore()
    assert late.found(ITEMS, "a") == {"_id": "a"}


async def test_operations_of_an_unknown_type_are_named_and_wait_for_a_discarding_word() -> None:
    late = await Late().certified()
    await late.come(insert(ITEMS, {"_id": "a"}))
    await _make_unknown(late.stage)
    with pytest.raises(OperatorError) as stopped:
        await late.restore()
    assert stopped.value.facts["unknown"] == 1
    assert "--accept-late" not in stopped.value.hint
    assert "--discard-late run" in stopped.value.hint


async def _make_unknown(stage: Stage) -> None:
    """Give the last operation of the log a type that nobody knows."""
    reader = LogReader(store=stage.store)
    last = await reader.last()
    assert last is not None
    links = [link async for link in reader.links()]
    at, link = next((n, link) for n, link in enumerate(links) if any("/items/" in r.key for r in link.commit.segments))
    segment = encode_segment([operation("split", 1, namespace=ITEMS)])
    old = next(ref for ref in link.commit.segments if "/items/" in ref.key)
    stage.store.objects[old.key] = segment.body
    refs = tuple(segment.ref(old.key) if ref is old else ref for ref in link.commit.segments)
    before = links[at - 1]
    previous, total = before.digest, before.commit.total
    for old_link in links[at:]:
        own = refs if old_link is link else old_link.commit.segments
        total = grown(total, own)
        commit = replace(old_link.commit, segments=own, previous=previous, total=total)
        body = encode_commit(commit)
        stage.store.objects[commit.key] = body
        previous = digest(body)


async def test_a_collection_in_which_too_much_differs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d5agent.core.replay.replay._MANY_DOUBTS", 2)
    late = await Late().certified()
    await late.come(*[insert(ITEMS, {"_id": number}) for number in range(4)])
    report = await late.reported()
    assert report["too_many_differ"] == ["shop.items"]
    await late.accept()
    assert late.found(ITEMS, 0) is None


async def test_pages_come_back_as_they_were_written_with_names_that_are_not_utf_8() -> None:
    stage = Stage()
    namespace = Namespace("shop", "a\udcff")
    documents = [
        LateDocument(namespace, raw_id(1), LateState.NOT_KNOWN, None, raw_document({"_id": 1})),
        LateDocument(namespace, raw_id("ñ"), LateState.CHANGED, raw_document({"_id": "ñ"}), None),
    ]
    writer = PageWriter(store=stage.store, folder="reports/run/late/x/")
    for document in documents:
        await writer.add(document)
    await writer.flush()
    (page,) = writer.pages
    assert list(await read_page(stage.store, page)) == documents
