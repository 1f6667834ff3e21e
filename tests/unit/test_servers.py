"""Source and target are two clusters, and log, checkpoint and comparisons belong to them, or nothing is written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from d5agent.core.compare.comparison import Comparison, Part
from d5agent.core.servers import ServerFacts, hosts_of
from d5agent.errors import OperatorError
from d5agent.steps.log.reader import LogReader
from d5agent.steps.servers import MARKS
from tests.fakes.cluster import insert, update
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeTarget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from d5agent.core.log.operation import Namespace
    from d5agent.core.log.raw import DocumentId

HERE = ServerFacts(hosts=("one:27017", "two:27017"), set_name="rs0", version="6.0.5")


async def captured() -> Stage:
    """Return a stage that is ready for its restore, and must not write to the target."""
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1, "n": 0}), update(ORDERS, {"_id": 1, "n": 1}))
    await stage.draw_fence()
    stage.target.before_each = _must_not_write
    return stage


def _must_not_write() -> None:
    raise AssertionError("the target was written to")


def _may_write() -> None:
    """Let it."""


async def refused(stage: Stage, message: str) -> OperatorError:
    """See that restore refuses before it writes, and say how."""
    with pytest.raises(OperatorError, match=message) as raised:
        await stage.restore().run(stage.coordinator)
    assert "nothing was written" in raised.value.hint
    return raised.value


async def test_a_target_with_a_host_of_the_source_is_refused_by_name() -> None:
    stage = await captured()
    stage.target_server.told = ServerFacts(hosts=("target:27017", "source:27017"), set_name="another")
    error = await refused(stage, "source and target name the same host")
    assert error.facts["hosts"] == "source:27017"
    assert "[target] uri" in error.hint


class Behind(FakeTarget):
    """Another member of the source's set: it has what was written there, a moment later."""

    looks = 0

    @override
    async def fetch(
        self, namespace: Namespace, ids: Sequence[DocumentId], *, most_bytes: int | None = None
    ) -> Mapping[DocumentId, bytes]:
        self.looks += 1
        return await super().fetch(namespace, ids, most_bytes=most_bytes) if self.looks > 1 else {}


@pytest.mark.parametrize("kind", [FakeTarget, Behind])
async def test_a_target_that_holds_the_sources_marker_is_refused(kind: type[FakeTarget]) -> None:
    stage = await captured()
    stage.target = kind(stage.database, before_each=_must_not_write)  # the same server by another name
    await refused(stage, "the same cluster")


async def test_a_source_that_takes_no_marker_is_refused() -> None:
    stage = await captured()
    stage.source.may_write = False
    with pytest.raises(OperatorError, match="the fence marker cannot be written"):
        await stage.restore().run(stage.coordinator)


@pytest.mark.parametrize("has_fence", [True, False])
async def test_the_log_of_another_cluster_is_refused(*, has_fence: bool) -> None:
    stage = await captured()
    stage.database.drop(MARKS)  # what another cluster has: none of these markers
    reader = LogReader(store=stage.store)
    fence = stage.coordinator.state.fence if has_fence else None
    with pytest.raises(OperatorError, match="the log is another cluster's") as raised:
        await stage.servers().require_own_log(reader, fence)
    assert "[source] uri" in raised.value.hint
    await refused(stage, "the log is another cluster's")


async def test_a_later_marker_of_the_log_is_enough() -> None:
    stage = await captured()
    stage.database.drop(MARKS)  # somebody dropped the agent's database
    await stage.capture()  # the next start of replication writes another
    await stage.servers().require_own_log(LogReader(store=stage.store), None)


async def test_a_log_without_markers_is_left_to_the_fence() -> None:
    stage = Stage()
    stage.source.may_write = False
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.servers().require_own_log(LogReader(store=stage.store), None)


async def test_a_checkpoint_of_another_target_counts_for_nothing() -> None:
    stage = await captured()
    stage.target.before_each = _may_write
    await stage.restore().run(stage.coordinator)
    stage.forget_proof()
    stage.target = FakeTarget()
    stage.target_server.told = replace(stage.target_server.told, hosts=("new:27017",), cluster_id="7c1b")
    await stage.restore().run(stage.coordinator)
    assert stage.target.database.contents() == stage.foreign_contents()
    assert not stage.coordinator.journal.facts_of("document_repaired")
    assert stage.coordinator.journal.facts_of("target_is_another")


async def test_another_target_is_refused_although_the_certificate_is_lost() -> None:
    stage = await captured()
    stage.target.before_each = _may_write
    await stage.restore().run(stage.coordinator)
    stage.store.objects.pop("reports/run/certificate.json")
    stage.target = FakeTarget(before_each=_must_not_write)
    stage.target_server.told = replace(stage.target_server.told, hosts=("new:27017",), cluster_id="7c1b")
    error = await refused(stage, "the target is not the cluster that the certificate names")
    assert error.facts["now"] == "set rs0; id 7c1b; hosts new:27017"


async def test_a_checkpoint_of_an_earlier_version_is_taken_up() -> None:
    stage = await captured()
    stage.target.before_each = _may_write
    await stage.restore().run(stage.coordinator)
    value = json.loads(stage.states.texts["restore_checkpoint"])
    assert value.pop("target") == stage.target_server.told.to_json()
    await stage.states.save("restore_checkpoint", value)
    stage.target.before_each = _must_not_write
    await stage.restore().run(stage.coordinator)


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (replace(HERE, hosts=("two:27017", "three:27017")), True),
        (replace(HERE, hosts=("three:27017",)), False),
        (replace(HERE, hosts=("three:27017",), cluster_id="a"), True),
        (replace(HERE, cluster_id="b"), False),
    ],
)
def test_a_cluster_is_known_by_its_id_or_by_a_host(other: ServerFacts, *, is_same: bool) -> None:
    here = replace(HERE, cluster_id="a") if other.cluster_id else HERE
    assert here.is_same(other) is is_same
    assert ServerFacts.from_json(json.loads(json.dumps(other.to_json()))) == other


def test_a_name_that_means_the_servers_own_machine_is_no_evidence() -> None:
    told = ["localhost:27017", "127.0.0.1:27017", "[::1]:27017", "DB1:27017"]
    assert hosts_of(["127.0.0.1:9", "Db2:1"], told) == ("127.0.0.1:9", "db2:1", "db1:27017")


def test_parts_of_a_long_restore_are_joined_without_a_gap() -> None:
    comparison = Comparison()
    for number in range(1_000):
        at = f"{number:04d}"
        comparison.add(Part(first=number, last=number, documents=1, began_at=at, ended_at=at))
    assert len(comparison.parts) <= 50
    assert sum(part.documents for part in comparison.parts) == 1_000
    assert (comparison.parts[0].began_at, comparison.parts[-1].ended_at) == ("0000", "0999")
    following = zip(comparison.parts, comparison.parts[1:], strict=False)
    assert all(one.last + 1 == two.first for one, two in following)
    again = Comparison.parts_from_json(comparison.to_json()["parts"])
    assert again.parts == comparison.parts
