"""What is needed at the end is asked for at the beginning: a role without a right is named before hours of work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from d5agent.errors import OperatorError, TransientError
from d5agent.plugins.clean import Clean
from d5agent.plugins.monitor_clean import MonitorClean
from d5agent.steps.backups import list_backups
from d5agent.steps.probes import require_deleting, require_place
from tests.fakes.cluster import insert
from tests.fakes.machine import FakePowerSwitch, shop_tool
from tests.fakes.stage import ORDERS, Stage
from tests.fakes.store import DownStore, RefusingStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d5agent.service import Plugin


class Untouched:
    """A database that nobody may ask."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever is asked of it
        raise AssertionError(f"the work has begun: {name}")


async def refused(stage: Stage, plugin: Plugin, words: str) -> None:
    """Run a service that must end with these words, before it has put anything."""
    store = stage.store
    assert isinstance(store, RefusingStore)
    store.put_keys.clear()
    before = dict(store.objects)
    with pytest.raises(OperatorError, match=f"{words} could not be stored at the end, so nothing was begun") as raised:
        await plugin.run(stage.coordinator)
    assert raised.value.hint == "give the role s3:PutObject"
    assert store.objects == before
    assert [key for key in store.put_keys if not key.endswith("/.probe")] == []


async def proved(stage: Stage) -> Stage:
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.prove()
    return stage


def clean(stage: Stage) -> Clean:
    return Clean(
        source=stage.source,
        store=stage.store,
        uploads=stage.store,
        states=stage.states,
        state_names=(),
        hold=stage.hold(),
        open_clusters=stage.clusters,
        kept=stage.kept(),
        clock=stage.clock,
        timeout_seconds=60,
    )


@pytest.mark.parametrize("is_full", [True, False])
async def test_verify_reads_nothing_when_its_report_cannot_be_stored(is_full: bool) -> None:  # noqa: FBT001 -- a case
    stage = Stage(store=RefusingStore(puts=["reports/"]))
    service = stage.verify()
    service.source = service.target_reader = service.states = Untouched()
    with pytest.raises(OperatorError, match="the report of the comparison could not be stored"):
        await service.compare("run", is_full=is_full, on_progress=lambda _: None)


@pytest.mark.parametrize(
    ("folder", "words"),
    [("reports/", "the certificate"), ("dead-letter/", "a document that the target refuses")],
)
async def test_restore_writes_nothing_when_its_end_cannot_be_stored(folder: str, words: str) -> None:
    stage = Stage(store=RefusingStore())
    await stage.capture(insert(ORDERS, {"_id": 1}))
    await stage.draw_fence()
    assert isinstance(stage.store, RefusingStore)
    stage.store.puts = [folder]
    await refused(stage, stage.restore(target=Untouched(), target_reader=Untouched(), source=Untouched()), words)


async def test_backup_dumps_nothing_when_its_manifest_cannot_be_stored() -> None:
    stage = Stage(store=RefusingStore(puts=["dump/"]))
    tools = shop_tool(), shop_tool()
    await refused(stage, stage.backup(*tools), "the manifest of a backup")
    assert [tool.ended for tool in tools] == [[], []]


@pytest.mark.parametrize("keeps", ["replication", "monitor-clean"])
async def test_clean_deletes_nothing_when_its_report_cannot_be_stored(keeps: str) -> None:
    stage = await proved(Stage(store=RefusingStore()))
    assert isinstance(stage.store, RefusingStore)
    stage.store.puts = ["reports/"]
    power = FakePowerSwitch()
    monitor = MonitorClean(power=power, store=stage.store, clock=stage.clock, timeout_seconds=30)
    await refused(stage, clean(stage) if keeps == "replication" else monitor, "the final report")
    assert stage.source.is_enabled
    assert stage.coordinator.stopped == []
    assert power.requests == 0


async def test_clean_stops_nothing_when_it_may_not_delete() -> None:
    stage = await proved(Stage(store=RefusingStore(deletes=["replication/"])))
    with pytest.raises(OperatorError, match="S3 refused access"):
        await clean(stage).run(stage.coordinator)
    assert stage.source.is_enabled
    assert stage.coordinator.stopped == []
    assert not stage.coordinator.state.is_clearing


@pytest.mark.parametrize("deletes", [(), ("",)])
async def test_probe_harms_nobody(deletes: Sequence[str]) -> None:
    store = RefusingStore(deletes=deletes)
    await require_place(store, "dump/run/", what="it")
    assert (store.objects == {}) == (not deletes)
    assert await list_backups(store) == []


async def test_store_that_does_not_answer_is_no_refusal() -> None:
    store = DownStore()
    store.error = TransientError("S3 is not reached")
    with pytest.raises(TransientError):
        await require_place(store, "reports/", what="it")
    store = DownStore()
    store.objects["replication/a"] = b""
    await require_deleting(store, "replication/")
    assert list(store.objects) == ["replication/a"]
