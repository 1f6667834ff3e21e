"""After a certificate, whatever compares or deletes uses the clusters that the certificate names, or refuses."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from d5agent.core.log.operation import OWN_DATABASE
from d5agent.core.reports.certificate import certificate_key, sealed
from d5agent.core.run.services import Service, Status
from d5agent.core.servers import ServerFacts
from d5agent.errors import OperatorError
from d5agent.plugins.monitor_restore import MonitorRestore
from d5agent.steps.replay.checkpoint import CHECKPOINT
from d5agent.steps.servers import MARKS
from tests.fakes.cluster import insert
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.target import FakeTarget
from tests.unit.test_plugin_monitors import clean, log_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from d5agent.service import Plugin

CERTIFICATE = certificate_key("run")
SERVICES: dict[str, Callable[[Stage], Plugin]] = {
    "start monitor-restore": lambda stage: stage.restore(),
    "start monitor-restore ": lambda stage: MonitorRestore(late=stage.reporter()),
    "start clean": clean,
    "start verify": lambda stage: stage.verify(),
}
"""The services that ask, by what their hint says."""


async def certified() -> Stage:
    """Return a stage whose restore has its certificate, and whose target must not be written to."""
    stage = Stage()
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.draw_fence()
    await stage.restore().run(stage.coordinator)
    stage.coordinator.set_status(Service.RESTORE, Status.DONE)
    stage.target.before_each = _must_not_write
    return stage


def _must_not_write() -> None:
    raise AssertionError("the target was written to")


def _another_target(stage: Stage) -> None:
    stage.target = FakeTarget(before_each=_must_not_write)
    stage.target_server.told = replace(stage.target_server.told, cluster_id="7c1b")


def _target_elsewhere(stage: Stage) -> None:
    stage.target_server.told = ServerFacts(hosts=("new:27017",), set_name="rs0")


def _target_of_another_set(stage: Stage) -> None:
    stage.target_server.told = replace(stage.target_server.told, set_name="rs1", cluster_id="")


def _source_elsewhere(stage: Stage) -> None:
    stage.source_server.told = ServerFacts(hosts=("clone:27017",), set_name="rs0")


def _source_without_marker(stage: Stage) -> None:
    stage.database.drop(MARKS)


OTHERS: list[tuple[Callable[[Stage], None], str]] = [
    (_another_target, "the target is not the cluster that the certificate names"),
    (_target_elsewhere, "the target is not the cluster that the certificate names"),
    (_target_of_another_set, "the target is not the cluster that the certificate names"),
    (_source_elsewhere, "the source is not the cluster that the certificate names"),
    (_source_without_marker, "the source does not hold the fence marker that the certificate names"),
]


@pytest.mark.parametrize("asked", SERVICES)
@pytest.mark.parametrize(("become_another", "message"), OTHERS)
async def test_another_cluster_than_the_certified_is_refused(
    asked: str, become_another: Callable[[Stage], None], message: str
) -> None:
    stage = await certified()
    become_another(stage)
    before = log_of(stage)
    with pytest.raises(OperatorError, match=message) as refused:
        await SERVICES[asked](stage).run(stage.coordinator)
    hint = refused.value.hint
    assert "nothing was written or deleted" in hint
    assert f"then type: d5agent {asked.strip()}" in hint
    assert CERTIFICATE in hint
    assert log_of(stage) == before
    assert stage.coordinator.started == []


async def test_refusal_names_both_clusters_and_url() -> None:
    stage = await certified()
    _another_target(stage)
    servers = replace(stage.servers(), url_of=lambda key: f"s3://bucket/{key}")
    with pytest.raises(OperatorError) as refused:
        await servers.require_certified(stage.coordinator.state, again="d5agent verify")
    assert refused.value.facts == {
        "certified": "set rs0; id 6b0a; hosts target:27017",
        "now": "set rs0; id 7c1b; hosts target:27017",
    }
    assert f"s3://bucket/{CERTIFICATE} names both clusters; correct [target] uri" in refused.value.hint


@pytest.mark.parametrize("asked", SERVICES)
async def test_new_host_names_of_certified_clusters_pass(asked: str) -> None:
    stage = await certified()
    stage.target_server.told = replace(stage.target_server.told, hosts=("renamed:27017",), set_name="rs7")
    stage.source_server.told = replace(stage.source_server.told, hosts=("source:27017", "added:27017"))
    stage.coordinator.set_status(Service.REPLICATION, Status.RUNNING)
    async with stage.running(stage.replication()) as replication:

        async def end_replication() -> None:
            stage.coordinator.stopping.set()
            await asyncio.wait([replication])

        stage.coordinator.on_stop = end_replication
        await SERVICES[asked](stage).run(stage.coordinator)


async def test_removed_markers_are_not_asked_for_while_clearing() -> None:
    stage = await certified()
    await stage.source.close_stream(switches_off=False)
    assert not stage.database.names(OWN_DATABASE)
    state = replace(stage.coordinator.state, is_clearing=True)
    await stage.servers().require_certified(state, again="")
    _another_target(stage)
    with pytest.raises(OperatorError, match="the target is not the cluster"):
        await stage.servers().require_certified(state, again="")


def _lose(stage: Stage) -> None:
    stage.store.objects.pop(CERTIFICATE)


def _alter(stage: Stage) -> None:
    stage.store.objects[CERTIFICATE] = stage.store.objects[CERTIFICATE].replace(b"6b0a", b"7c1b")


def _make_older(stage: Stage) -> None:
    """Let it be a certificate of the version that named no clusters."""
    value = json.loads(stage.store.objects[CERTIFICATE])
    for name in ("sha256", "servers", "comparison"):
        value.pop(name)
    value["log"].pop("first")
    stage.store.objects[CERTIFICATE] = sealed({**value, "version": 1})


@pytest.mark.parametrize("spoil", [_lose, _alter, _make_older])
@pytest.mark.parametrize("become_another", [_another_target, _source_without_marker])
async def test_another_cluster_is_refused_although_the_certificate_names_none(
    spoil: Callable[[Stage], None], become_another: Callable[[Stage], None]
) -> None:
    stage = await certified()
    spoil(stage)
    await stage.servers().require_certified(stage.coordinator.state, again="")
    become_another(stage)
    for service in (stage.verify(), MonitorRestore(late=stage.reporter())):
        with pytest.raises(OperatorError, match="that the certificate names"):
            await service.run(stage.coordinator)
    assert stage.coordinator.state.late.settled == -1


async def test_late_operations_are_not_settled_with_another_target() -> None:
    stage = await certified()
    await stage.capture(insert(ORDERS, {"_id": "late"}))
    _lose(stage)
    _another_target(stage)
    stage.target = FakeTarget(stage.database)  # it would have all of them
    with pytest.raises(OperatorError, match="the target is not the cluster"):
        await MonitorRestore(late=stage.reporter()).run(stage.coordinator)
    assert stage.coordinator.state.late.settled == -1


async def test_a_run_of_an_earlier_version_names_no_cluster() -> None:
    stage = await certified()
    _make_older(stage)
    await stage.states.delete(CHECKPOINT)
    stage.coordinator.state = replace(stage.coordinator.state, fence=None)
    _another_target(stage)
    await stage.servers().require_certified(stage.coordinator.state, again="")


async def test_without_a_certificate_any_cluster_will_do() -> None:
    stage = await certified()
    _another_target(stage)
    stage.forget_proof()
    await stage.servers().require_certified(stage.coordinator.state, again="")
