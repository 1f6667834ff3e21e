"""Whatever restore overwrites in the target can be read again: in its dump, or where the certificate says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from d5agent.core.backup import Beginning, decode_beginning, encode_beginning
from d5agent.core.log.operation import UNNAMED, ClusterTime, Namespace, Operation
from d5agent.core.replay.overwritten import Look, Overwritten, decode_overwritten
from d5agent.core.reports import html as core_page
from d5agent.core.run.hold import HOLD
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError, LogHeldError, OperatorError
from d5agent.steps.compare import overwritten as steps_overwritten
from tests.fakes.cluster import insert, rename, update
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.kept import kept_by_repairs, kept_documents, kept_index
from tests.fakes.machine import FakeDumpTool, FakeJournal
from tests.fakes.servers import target_server
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeTarget, FakeTargetChanges

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from d5agent.core.log.raw import DocumentId
    from d5agent.core.replay.replay import Failure, WriteBatch

DENIED = OperatorError("a privilege is missing on the target", hint="grant it")
OTHER = Namespace("shop", "other")
FOREIGN = {"_id": 1, "n": "foreign"}


async def dumped(stage: Stage) -> Stage:
    """Capture, and dump both sides: documents 0 to 3 are in the dump of the target, and the outage writes 1 to 4."""
    for number in range(4):
        stage.target.database.put(ORDERS, raw_id(number), raw_document({"_id": number, "n": "before"}))
    await stage.capture(*[insert(ORDERS, {"_id": number, "n": "outage"}) for number in range(1, 5)])
    await back_up(stage)
    await stage.draw_fence()
    return stage


async def back_up(stage: Stage) -> None:
    tool = FakeDumpTool(archives={"shop": [b"archive"]})
    await stage.backup(tool, FakeDumpTool()).run(stage.coordinator)


def write(stage: Stage, *documents: dict[str, Any], namespace: Namespace = ORDERS) -> None:
    for document in documents:
        assert stage.target.database.write_as_another(namespace, document)


async def restored(stage: Stage) -> dict[str, Any]:
    """Restore, and return what the certificate says of overwritten documents."""
    await stage.restore(outside=None).run(stage.coordinator)
    certificate = json.loads(stage.store.objects["reports/run/certificate.json"])
    (report,) = [key for key in stage.store.objects if "/verify-" in key and key.endswith(".json")][-1:]
    assert json.loads(stage.store.objects[report])["overwritten"] == certificate["overwritten"]
    return dict(certificate["overwritten"])


async def test_what_was_written_after_the_dump_is_kept_and_the_certificate_says_where() -> None:
    stage = await dumped(Stage())
    write(stage, FOREIGN, {"_id": 1, "n": "foreign, twice"}, {"_id": 77, "n": "of nobody else"})
    stage.target.database.remove(ORDERS, raw_id(2))
    said = await restored(stage)
    assert (said["state"], said["why"]) == ("complete", "")
    assert (said["documents"], said["deleted"], said["repaired"], said["moved"]) == (2, 1, 0, [])
    assert (said["key"], said["dump"]) == ("reports/run/overwritten/index.json", "dump/run/target/")
    kept = kept_documents(stage.store.objects)
    assert kept == {"shop.orders": [{"_id": 1, "n": "foreign, twice"}, {"_id": 77, "n": "of nobody else"}, ("2",)]}
    told = stage.coordinator.journal.facts_of("target_written_since_dump")
    assert [(facts["kept"], facts["deleted"]) for facts in told] == [(2, 1)]
    assert not stage.coordinator.journal.facts_of("overwritten_not_known")


async def test_a_target_that_nobody_wrote_to_is_known_to_be_so() -> None:
    said = await restored(await dumped(Stage()))
    assert (said["state"], said["documents"], said["deleted"]) == ("complete", 0, 0)


class FailingTarget(FakeTarget):
    """Fails at its first write, or at one after some."""

    def __init__(self, *, after: int = 0) -> None:
        super().__init__()
        self.left: int | None = after
        self.lost: DocumentId | None = None

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        if self.left == 0:
            raise OperatorError("the target refused a command", hint="see what it says")
        self.left = None if self.left is None else self.left - 1
        kept = tuple(write for write in batch.writes if write.id != self.lost)
        if len(kept) < len(batch.writes):
            self.lost = None  # it says that it wrote it, and did not
        return await super().write(replace(batch, writes=kept))


@pytest.mark.parametrize("after", [0, 1])
async def test_a_second_start_keeps_nothing_that_the_agent_wrote(after: int) -> None:
    target = FailingTarget(after=after)
    stage = await dumped(Stage(target=target))
    write(stage, FOREIGN)
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None, window_bytes=200).run(stage.coordinator)
    target.left = None
    said = await restored(stage)
    assert (said["state"], said["documents"]) == ("complete", 1)
    assert kept_documents(stage.store.objects) == {"shop.orders": [FOREIGN]}


async def test_what_is_written_while_restore_is_stopped_is_kept_too() -> None:
    target = FailingTarget(after=1)
    stage = await dumped(Stage(target=target))
    write(stage, FOREIGN)
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None, window_bytes=200).run(stage.coordinator)
    await stage.hold().give_back(FakeJournal())  # d5agent stop restore
    write(stage, {"_id": 1, "n": "foreign, again"})
    target.left = None
    said = await restored(stage)
    assert (said["state"], said["documents"]) == ("complete", 2)
    assert kept_documents(stage.store.objects) == {"shop.orders": [FOREIGN, {"_id": 1, "n": "foreign, again"}]}


async def test_a_look_that_died_before_it_was_noted_is_not_taken_twice() -> None:
    target = FailingTarget(after=1)
    stage = await dumped(Stage(target=target))
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None, window_bytes=200).run(stage.coordinator)
    await stage.hold().give_back(FakeJournal())
    before = stage.states.texts[HOLD]
    write(stage, FOREIGN)
    target.left = 1
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None, window_bytes=200).run(stage.coordinator)
    held = json.loads(stage.states.texts[HOLD])
    stage.states.texts[HOLD] = json.dumps({**held, "opened_at": json.loads(before)["opened_at"]})
    target.left = None
    said = await restored(stage)
    assert (said["state"], said["documents"], len(kept_index(stage.store.objects)["looks"])) == ("complete", 1, 2)


async def test_a_target_whose_stream_cannot_be_read_when_it_is_given_back_is_not_known() -> None:
    target = FailingTarget(after=1)
    stage = await dumped(Stage(target=target))
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None, window_bytes=200).run(stage.coordinator)
    stage.changes.error = DENIED
    await stage.hold().give_back(FakeJournal())
    assert not target.database.is_blocked
    await stage.hold().take("run", FakeJournal())
    stage.changes.error = None
    await stage.hold().give_back(FakeJournal())  # a later position does not cover what came before
    target.left = None
    said = await restored(stage)
    assert said["state"] == "not known"
    assert "open to others for a time" in said["why"]


async def test_a_lost_log_is_no_reason_to_give_the_target_back() -> None:
    stage = await dumped(Stage())
    await stage.hold().take("run", FakeJournal())
    stage.changes.error = LogHeldError("the log is held by another agent", hint="stop it")
    with pytest.raises(LogHeldError):
        await stage.hold().give_back(FakeJournal())
    assert stage.target.database.is_blocked


async def test_a_block_that_somebody_ended_while_no_agent_ran_is_told() -> None:
    target = FailingTarget(after=1)
    stage = await dumped(Stage(target=target))
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None, window_bytes=200).run(stage.coordinator)
    target.database.is_blocked = False
    write(stage, FOREIGN)
    target.left = None
    said = await restored(stage)
    assert (said["state"], "open to others for a time" in said["why"]) == ("not known", True)


async def test_a_block_that_is_another_s_is_left_and_what_comes_after_it_is_kept() -> None:
    target = FailingTarget(after=1)
    stage = await dumped(Stage(target=target))
    target.database.is_blocked = True
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None, window_bytes=200).run(stage.coordinator)
    await stage.hold().give_back(FakeJournal())
    target.database.is_blocked = False
    write(stage, FOREIGN)
    target.left = None
    said = await restored(stage)
    assert (said["state"], said["documents"]) == ("complete", 1)


async def test_a_block_that_somebody_ends_at_the_end_is_told() -> None:
    stage = await dumped(Stage())
    keeper = stage.restore(outside=None)

    def lift() -> None:
        stage.target.database.is_blocked = False

    stage.target.before_each = lift
    await keeper.run(stage.coordinator)
    said = json.loads(stage.store.objects["reports/run/certificate.json"])["overwritten"]
    assert said["state"] == "not known"
    assert "ended the target's write-block mode" in said["why"]


async def test_a_collection_that_was_renamed_is_kept_whole_under_its_new_name() -> None:
    stage = await dumped(Stage())
    write(stage, {"_id": 1, "n": "temporary"}, namespace=OTHER)
    final = Namespace("shop", "final")
    stage.target.database.rename(OTHER, final)  # as $out does
    stage.target.database.rename(ORDERS, OTHER)
    stage.target.database.drop(OTHER)
    said = await restored(stage)
    assert said["state"] == "complete"
    assert said["moved"] == ["shop.other", "shop.final", "shop.orders"]
    kept = kept_documents(stage.store.objects)
    assert (kept["shop.final"], kept["shop.other"]) == ([{"_id": 1, "n": "temporary"}], [("1",)])


@pytest.mark.parametrize(
    "lost", ["position", "beginning", "manifest", "history", "damaged", "damaged token", "server", "database"]
)
async def test_what_cannot_be_known_is_said(lost: str) -> None:
    stage = Stage()
    stage.changes.error = DENIED if lost == "position" else None
    stage = await dumped(stage)
    stage.changes.error = None
    beginning, manifest = "dump/run/target/beginning.json", "dump/run/target/manifest.json"
    if lost in {"beginning", "manifest"}:
        del stage.store.objects[beginning if lost == "beginning" else manifest]
    stage.changes.kept_from = 10_000 if lost == "history" else 0
    if lost == "damaged":
        stage.store.objects[beginning] = b"{}"
    if lost == "damaged token":
        value = json.loads(stage.store.objects[beginning])
        stage.store.objects[beginning] = json.dumps({**value, "position": "no base64"}).encode()
    if lost == "server":
        another = replace(target_server().told, cluster_id="another")
        stage.store.objects[beginning] = encode_beginning(Beginning(position=None, why="", at="", server=another))
    if lost == "database":
        write(stage, {"_id": 1}, namespace=Namespace("left out", "things"))
    said = await restored(stage)
    assert said["state"] == "not known"
    why = {
        "position": "a privilege is missing on the target",
        "beginning": "noted no position",
        "manifest": "no dump of the target is stored",
        "history": "the target refused a command",
        "damaged": "what is known of a backup is damaged",
        "damaged token": "what is known of a backup is damaged",
        "server": "the dump is another target's",
        "database": "no dump holds the databases left out",
    }
    assert why[lost] in said["why"]
    (warned,) = stage.coordinator.journal.facts_of("overwritten_not_known")
    assert str(warned["hint"]).endswith("until the certificate")
    assert len(stage.coordinator.journal.facts_of("target_position_not_noted")) == (lost == "position")
    assert b"not known: " in stage.store.objects["reports/run/certificate.html"]


async def test_a_restore_that_an_older_version_began_is_not_known() -> None:
    target = FailingTarget(after=1)
    stage = await dumped(Stage(target=target))
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None, window_bytes=200).run(stage.coordinator)
    target.left = None
    await stage.restore(outside=None).run(stage.coordinator)
    stage.forget_proof()
    for key in [key for key in stage.store.objects if "/overwritten/" in key]:
        del stage.store.objects[key]
    said = await restored(stage)
    assert (said["state"], "had begun with a version" in said["why"]) == ("not known", True)


async def test_the_moment_before_the_dump_is_kept_once_a_part_of_it_is_stored() -> None:
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    tool = FakeDumpTool(archives={"crm": [b"one"], "shop": [b"two"]}, errors={"shop": OperatorError("ended with 1")})
    for _ in range(2):
        with pytest.raises(OperatorError, match="ended with 1"):
            await stage.backup(tool, FakeDumpTool()).run(stage.coordinator)
        write(stage, FOREIGN)
    key = "dump/run/target/beginning.json"
    begun = decode_beginning(stage.store.objects[key], key)
    assert begun.server.is_same(target_server().told)
    changes = FakeTargetChanges(stage.target)
    assert begun.position != await changes.position()
    tool.errors.clear()
    await stage.backup(tool, FakeDumpTool()).run(stage.coordinator)
    assert decode_beginning(stage.store.objects[key], key) == begun


async def test_nobody_but_the_holder_of_the_log_notes_where_a_dump_begins() -> None:
    stage = Stage()
    stage.changes.error = LogHeldError("the log is held by another agent", hint="stop it")
    with pytest.raises(LogHeldError):
        await back_up(stage)


class InterferingTarget(FakeTarget):
    """Somebody writes to it right after the agent has written document 1."""

    @override
    async def write(self, batch: WriteBatch) -> Sequence[Failure]:
        failures = await super().write(batch)
        if any(write.id == raw_id(1) for write in batch.writes) and not self.database.find(OTHER, raw_id("done")):
            self.database.put(OTHER, raw_id("done"), raw_document({"_id": "done"}))
            self.database.put(ORDERS, raw_id(1), raw_document(FOREIGN))
        return failures


@pytest.mark.parametrize("obstacle", ["the agent's user may not setUserWriteBlockMode", ""], ids=["open", "closed"])
async def test_a_foreign_write_that_a_repair_overwrites_is_kept(obstacle: str) -> None:
    stage = Stage(target=InterferingTarget())
    stage.guard.obstacle = obstacle
    await dumped(stage)
    said = await restored(stage)
    assert (said["state"], said["repaired"], said["documents"]) == ("not known", 1, 1)
    assert ("others could write to the target" in said["why"]) is bool(obstacle)
    assert "no event explains some repairs" in said["why"]
    assert kept_by_repairs(stage.store.objects) == [FOREIGN]
    stage.forget_proof()
    assert (await restored(stage))["repaired"] == 1  # what an earlier start has kept is counted


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_a_repair_of_what_a_look_has_kept_keeps_it_no_second_time(*, is_damaged: bool) -> None:
    target = FailingTarget(after=0)
    stage = await dumped(Stage(target=target))
    with pytest.raises(OperatorError, match="refused a command"):
        await stage.restore(outside=None).run(stage.coordinator)
    target.left = None
    await stage.hold().give_back(FakeJournal())
    write(stage, {"_id": "left", "n": "by somebody"}, FOREIGN)
    target.lost = raw_id(1)
    if is_damaged:
        target.before_each = lambda: damage(stage)
    said = await restored(stage)
    assert (said["state"], said["repaired"]) == (("not known", 1) if is_damaged else ("complete", 0))
    assert said["documents"] == 2 + is_damaged


def damage(stage: Stage) -> None:
    """Let nobody find pages as they were stored."""
    for key in stage.store.objects:
        if "/overwritten/0" in key and key.endswith(".bson"):
            stage.store.objects[key] = b"other"


async def test_repairs_that_the_log_explains_are_kept_only_where_others_could_write() -> None:
    for obstacle in ("", "the agent's user may not setUserWriteBlockMode"):
        stage = Stage()
        stage.guard.obstacle = obstacle
        old, new = Namespace("shop", "old"), Namespace("shop", "new")
        for database in (stage.cluster.database, stage.target.database):
            database.put(old, raw_id(1), raw_document({"_id": 1, "n": "before"}))
        await stage.capture(update(old, {"_id": 1, "n": "after"}), rename(old, new))
        await back_up(stage)
        await stage.draw_fence()
        stage.target.database.put(old, raw_id(2), raw_document({"_id": 2}))
        said = await restored(stage)
        assert said["repaired"] == bool(obstacle), said
        assert said["state"] == ("not known" if obstacle else "complete")


async def test_a_restore_that_is_begun_again_on_a_target_put_back_is_not_known() -> None:
    stage = await dumped(Stage())
    await restored(stage)
    stage.coordinator.state = replace(stage.coordinator.state, verified=None)
    fence = stage.coordinator.state.fence
    assert fence is not None
    marker = "fence-of-another-start"
    stage.cluster.database.put(Namespace("d5agent", "marks"), raw_id(marker), raw_document({"_id": marker}))
    stage.coordinator.state = replace(stage.coordinator.state, fence=replace(fence, marker=marker))
    write(stage, FOREIGN)
    said = await restored(stage)
    assert (said["state"], "--again" in said["why"]) == ("not known", True)


class OddChanges(FakeTargetChanges):
    """Tells once of something that it does not name."""

    has_told = False

    @override
    async def after(self, position: bytes) -> AsyncGenerator[Sequence[Operation]]:
        if not self.has_told:
            self.has_told = True
            yield [Operation("replace", UNNAMED, ClusterTime(1, 1), b"", None, None, None, b"")]
        async for batch in super().after(position):
            yield batch


async def test_an_event_that_does_not_name_its_document_leaves_it_not_known() -> None:
    stage = await dumped(Stage())
    write(stage, FOREIGN)
    stage.changes = OddChanges(stage.target)
    said = await restored(stage)
    assert (said["state"], said["documents"]) == ("not known", 1)
    assert "does not say which document" in said["why"]


async def test_a_log_that_is_lost_while_the_stream_is_read_ends_restore() -> None:
    stage = await dumped(Stage())

    def lose() -> None:
        raise LogHeldError("the log is held by another agent", hint="stop it")

    stage.changes.before_each = lose
    with pytest.raises(LogHeldError):
        await restored(stage)


async def test_memory_is_bounded_and_what_is_forgotten_is_stored_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_overwritten, "_MOST_REMEMBERED", 3)
    monkeypatch.setattr(steps_overwritten, "_PENDING", 2)
    stage = await dumped(Stage())
    for number in range(50):
        write(stage, {"_id": number % 10, "n": number})
        write(stage, {"_id": number % 10, "n": number}, namespace=Namespace("shop", f"c{number % 3}"))
    said = await restored(stage)
    assert said["state"] == "complete"
    kept = kept_documents(stage.store.objects)
    assert {document["_id"] for document in kept["shop.orders"]} == set(range(10))
    assert all(document["n"] >= 40 for document in kept["shop.orders"])


def test_an_index_of_another_version_or_a_damaged_one_is_refused() -> None:
    server = ServerFacts(hosts=("a:1",), cluster_id="one")
    whole = Overwritten(run_id="run", looks=[Look(server=server, at="now", why="x")], open_why="y")
    assert decode_overwritten(whole.encode(), key="k") == whole
    for body in (b"", b"[]", b'{"version": 1}', b'{"version": 2}', whole.encode().replace(b'"hosts"', b'"h"')):
        with pytest.raises(CorruptDataError, match="overwritten documents"):
            decode_overwritten(body, key="k")
    assert whole.summary(ServerFacts(hosts=("b:1",), cluster_id="two"))["why"].startswith("nobody has looked")


def test_of_many_moved_names_only_the_first_are_named() -> None:
    look = Look(server=ServerFacts(hosts=("a:1",)), at="now")
    for number in range(2000):
        look.name_moved((Namespace("shop", f"c{number}"), None))
    assert (len(look.moved), look.moved_total) == (1000, 2000)


def test_a_certificate_of_an_older_version_has_a_page_too() -> None:
    assert core_page._overwritten(None) == []
