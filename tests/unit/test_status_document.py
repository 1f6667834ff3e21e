"""The document of `status --json` and the metrics, as each service fills them: names and types never change."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from d5agent.core.run.horizon import Basis, Retention
from d5agent.core.run.progress import AgentProgress
from d5agent.core.run.read_status import read_status
from d5agent.core.run.services import Phase, PhaseState, Service, ServiceState, Status
from d5agent.core.run.status import status_of
from d5agent.core.run.words import Words, with_words
from d5agent.errors import AgentError, TransientError
from d5agent.plugins.clean import Clean
from d5agent.plugins.monitor_restore import MonitorRestore
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.events import ServiceJournal
from d5agent.runtime.horizon_watch import HorizonWatch
from d5agent.runtime.metrics import metrics_of
from d5agent.runtime.service_context import ServiceContext
from tests.fakes.cluster import delete, insert
from tests.fakes.coordinator import SINCE
from tests.fakes.documents import raw_document, raw_id
from tests.fakes.guard import FakeGuard
from tests.fakes.machine import FakeDumpTool
from tests.fakes.retention import FakeRetention
from tests.fakes.stage import ORDERS, Stage, until
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from d5agent.core.log.operation import ClusterTime
    from d5agent.ports import WriteBlock
    from d5agent.service import Plugin

ROW: Final = {"state": "str", "reason": "str", "since": "str", "error": "str", "hint": "str"}
NOTHING: Final[dict[str, Any]] = {
    "capture": dict.fromkeys(
        [
            "operations",
            "bytes",
            "segments",
            "lag_seconds",
            "last_cluster_time",
            "safe_seconds",
            "retention_seconds",
            "retention_basis",
            "catch_up_rate",
            "caught_up_in_seconds",
            "failing_since",
            "queue_bytes",
        ],
        "null",
    ),
    "restore": {
        **dict.fromkeys(
            [
                "operations_total",
                "operations_applied",
                "documents_written",
                "bytes_total",
                "bytes_applied",
                "operations_per_second",
                "eta_seconds",
                "lag_seconds",
                "lanes",
                "lanes_allowed",
                "mode",
            ],
            "null",
        ),
        "is_paused": "bool",
    },
    "verify": {"compared": "null", "compared_total": "null", "different": "null"},
    "outside": "null",
}
CAPTURED: Final[dict[str, Any]] = {
    "operations": "int",
    "bytes": "int",
    "segments": "int",
    "last_cluster_time": ["int", "int"],
    "queue_bytes": "int",
}
HORIZON: Final = {
    "lag_seconds": "float",
    "safe_seconds": "float",
    "retention_seconds": "int",
    "retention_basis": "str",
    "catch_up_rate": "float",
    "caught_up_in_seconds": "float",
}
REPLAY: Final = {
    "operations_total": "int",
    "operations_applied": "int",
    "documents_written": "int",
    "bytes_total": "int",
    "bytes_applied": "int",
    "operations_per_second": "float",
    "eta_seconds": "float",
    "lanes": "float",
    "lanes_allowed": "int",
}
UNKNOWN: Final = ("operations_per_second", "eta_seconds", "lanes")  # at the beginning
COMPARED: Final = {"compared": "int", "compared_total": "int", "different": "int"}
OUTSIDE: Final = {
    "is_complete": "bool",
    "collections": "int",
    "collections_compared": "int",
    "compared": "int",
    "missing": "int",
    "different": "int",
    "extra": "int",
    "unchecked": "int",
}
MANIFEST: Final = "dump/run/target/manifest.json"


def shape(value: object) -> Any:  # noqa: ANN401 -- a JSON value, of names of types
    """Return the names and types of a JSON document."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return "null" if value is None else type(value).__name__


@dataclass(slots=True, kw_only=True)
class Reporter:
    """Services over fakes with the daemon's own surroundings, and what `status --json` says of them."""

    stage: Stage = field(default_factory=Stage)
    daemon: Daemon = field(init=False)

    def __post_init__(self) -> None:
        self.daemon = Daemon(plugins={}, states=self.stage.states, clock=self.stage.clock, drain_seconds=1)
        self.daemon.file.state = replace(self.stage.coordinator.state, services={})

    def surroundings(self, service: Service) -> ServiceContext:
        """Return what a service that starts knows of its surroundings."""
        row = ServiceState(status=Status.RUNNING, since=SINCE)
        self.daemon.file.state = self.daemon.state.with_service(service, row)
        self.daemon.progress.begin(service)
        return ServiceContext(self.daemon, service, ServiceJournal(service, self.daemon.followers), asyncio.Event())

    async def run(self, service: Service, plugin: Plugin) -> None:
        """Run a service to its end, or to the error that ends it."""
        try:
            await plugin.run(self.surroundings(service))
        except AgentError:
            return

    @asynccontextmanager
    async def running(self, service: Service, plugin: Plugin) -> AsyncGenerator[None]:
        """Run a service beside the block, and stop it, drained, at its end."""
        surroundings = self.surroundings(service)
        async with asyncio.TaskGroup() as group:
            group.create_task(plugin.run(surroundings))
            yield
            surroundings.stopping.set()

    async def captured(self, *, has_fence: bool = True) -> None:
        """Let a log be there, of 40 operations and more, and its fence."""
        for number in range(0, 40, 4):
            await self.stage.capture(*[insert(ORDERS, {"_id": number + i, "text": "x" * 100}) for i in range(4)])
        if has_fence:
            await self.stage.draw_fence()
        self.daemon.file.state = replace(self.stage.coordinator.state, services={})

    @property
    def document(self) -> dict[str, Any]:
        """What `status --json` prints."""
        values = status_of(self.daemon.state, self.daemon.progress, is_up=True)
        found: dict[str, Any] = json.loads(json.dumps(values, default=str))
        again = status_of(self.daemon.state, read_status(found).progress, is_up=True)
        assert json.loads(json.dumps(again)) == found, "what is read back is what was reported"
        return found

    def row(self, service: Service) -> Any:  # noqa: ANN401 -- a JSON value, of names of types
        """Return names and types of what a service has reported."""
        found = shape(self.document["services"][str(service)])
        assert {name: found.pop(name) for name in ROW} == ROW
        return found

    def parts(self) -> Any:  # noqa: ANN401 -- a JSON value, of names of types
        """Return names and types of the parts that services share."""
        found = shape(self.document)
        return {name: found[name] for name in NOTHING}

    def metrics(self) -> dict[str, float]:
        """Return the metrics that have one value each."""
        found = metrics_of(self.daemon.state, self.daemon.progress, agent_version="0")
        single = [metric for metric in found if metric.name not in {"phase", "service_state", "build_info"}]
        return {m.name: value for m in single for _, value in m.samples if value is not None}

    async def cluster_time(self) -> ClusterTime:
        """Return the source's time."""
        return await self.stage.source.now()


class ShownStore(FakeObjectStore):
    """Calls `on_put` before each object that is stored."""

    on_put: Callable[[], None] = staticmethod(lambda: None)

    @override
    async def put(self, key: str, body: bytes, *, replacing: bytes | None = None) -> bool:
        self.on_put()
        return await super().put(key, body, replacing=replacing)


class FarGuard(FakeGuard):
    """Is not reached."""

    @override
    async def write_block(self) -> WriteBlock:
        raise TransientError("the target is not reached")


def test_a_daemon_without_a_run() -> None:
    document = status_of(PhaseState(), AgentProgress(), is_up=True)
    assert shape(document) == {
        "daemon": "str",
        "phase": "str",
        "run_id": "str",
        "ready_at": "str",
        "services": {},
        "fence": "null",
        **NOTHING,
    }


async def test_replication_at_work_with_its_horizon_and_drained() -> None:
    reporter = Reporter()
    retention = FakeRetention(found=Retention(seconds=10_800, basis=Basis.AWS))
    watch = HorizonWatch(
        daemon=reporter.daemon,
        read_retention=retention.read,
        read_cluster_time=reporter.cluster_time,
        is_documentdb=True,
    )
    clock = reporter.stage.clock
    async with reporter.running(Service.REPLICATION, reporter.stage.replication()):
        await until(clock, lambda: reporter.daemon.state.ready_at)
        reporter.stage.cluster.apply(insert(ORDERS, {"_id": 1}))
        await until(clock, lambda: reporter.document["capture"]["operations"] == 2)
        own = {**CAPTURED, "is_caught_up": "bool", "operations_after_fence": "int"}
        assert reporter.row(Service.REPLICATION) == own
        assert reporter.parts() == {**NOTHING, "capture": {**NOTHING["capture"], **CAPTURED}}
        assert set(reporter.metrics()) == {
            "captured_operations_total",
            "captured_bytes_total",
            "captured_segments_total",
            "capture_queue_bytes",
            "capture_failing",
            "replication_ready",
        }
        task = asyncio.ensure_future(watch.keep())
        await until(clock, lambda: reporter.document["capture"]["catch_up_rate"] is not None)
        task.cancel()
        assert reporter.row(Service.REPLICATION) == {**own, **HORIZON}
        assert reporter.parts()["capture"] == {**CAPTURED, **HORIZON, "failing_since": "null"}
        capture, metrics = reporter.document["capture"], reporter.metrics()
        assert metrics == {
            "captured_operations_total": capture["operations"],
            "captured_bytes_total": capture["bytes"],
            "captured_segments_total": capture["segments"],
            "capture_queue_bytes": capture["queue_bytes"],
            "capture_failing": 0,
            "replication_ready": 1,
            "lag_seconds": capture["lag_seconds"],
            "position_safe_seconds": capture["safe_seconds"],
            "retention_seconds": 10_800,
            "catch_up_rate": capture["catch_up_rate"],
        }
    assert reporter.row(Service.REPLICATION) == {**own, **HORIZON, "is_drained": "bool"}
    assert capture["retention_basis"] == "aws"


async def test_a_backup_that_begins_and_that_has_ended() -> None:
    seen: list[Any] = []
    store = ShownStore(page_size=3)
    reporter = Reporter(stage=Stage(store=store))
    target, source = (
        FakeDumpTool(archives={"shop": [b"one", b"two"]}, documents={"shop": {"shop.orders": 7}}) for _ in range(2)
    )
    store.on_put = lambda: seen.append(reporter.row(Service.BACKUP))
    await reporter.run(Service.BACKUP, reporter.stage.backup(target, source))
    names = ("databases", "databases_stored", "documents", "bytes")
    both = {f"{side}_{name}": "int" for side in ("target", "source") for name in names}
    assert reporter.row(Service.BACKUP) == both
    assert both in seen[:-2]
    assert reporter.parts() == NOTHING
    row = reporter.document["services"]["backup"]
    assert [row[f"target_{name}"] for name in names] == [1, 1, 7, 6]


async def test_a_drained_restore_while_it_replays_and_at_its_end() -> None:
    reporter = Reporter()
    await reporter.captured()
    seen: list[dict[str, Any]] = []
    write = reporter.stage.target.write

    async def written(batch: Any) -> Any:  # noqa: ANN401 -- as it is
        await reporter.stage.clock.sleep(2)
        seen.append({"row": reporter.row(Service.RESTORE), "document": reporter.document, **reporter.metrics()})
        return await write(batch)

    reporter.stage.target.write = written  # type: ignore[method-assign]  # it looks on
    await reporter.run(Service.RESTORE, reporter.stage.restore(lanes=1, window_bytes=1))
    middle = seen[20]
    begun = {"step": "str", "target_write_block": "str", **REPLAY}
    assert middle["row"] == {**begun, "outside": OUTSIDE}
    restore = middle["document"]["restore"]
    assert (middle["document"]["services"]["restore"]["step"], restore["documents_written"]) == ("replaying", 20)
    assert shape(restore) == {**REPLAY, "lag_seconds": "null", "is_paused": "bool", "mode": "null"}
    assert {name: value for name, value in middle.items() if name.startswith("restore_")} == {
        "restore_operations": restore["operations_total"],
        "restore_operations_applied": restore["operations_applied"],
        "restore_bytes": restore["bytes_total"],
        "restore_bytes_applied": restore["bytes_applied"],
        "restore_documents_written": 20,
        "restore_operations_per_second": restore["operations_per_second"],
        "restore_eta_seconds": restore["eta_seconds"],
        "restore_lanes": restore["lanes"],
        "restore_lanes_allowed": restore["lanes_allowed"],
    }
    assert reporter.row(Service.RESTORE) == {**begun, **COMPARED, "in_doubt": "int", "outside": OUTSIDE}
    assert reporter.parts()["verify"] == COMPARED
    assert reporter.parts()["outside"] == OUTSIDE
    assert reporter.document["verify"] == {"compared": 40, "compared_total": 40, "different": 0}
    metrics = reporter.metrics()
    assert (metrics["verify_compared"], metrics["verify_different"]) == (40, 0)


async def test_a_restore_that_checks_the_log() -> None:
    reporter = Reporter()
    await reporter.captured()
    stage = reporter.stage
    stage.guard = FarGuard(target=stage.target, changes=stage.changes, server=stage.target_server)
    await reporter.run(Service.RESTORE, reporter.stage.restore(outside=None))
    assert reporter.row(Service.RESTORE) == {"step": "str", "operations_total": "int", "bytes_total": "int"}
    known = {"operations_total": "int", "bytes_total": "int"}
    assert reporter.parts() == {**NOTHING, "restore": {**NOTHING["restore"], **known}}
    assert {name for name in reporter.metrics() if name.startswith("restore")} == {
        "restore_operations",
        "restore_bytes",
    }


async def test_a_live_restore_paused_refused_and_ready() -> None:
    reporter = Reporter()
    stage, daemon = reporter.stage, reporter.daemon
    stage.store.objects[MANIFEST] = b"{}"
    stage.target.is_valid = lambda document: b"bad" not in document
    async with reporter.running(Service.REPLICATION, stage.replication()):
        await until(stage.clock, lambda: daemon.state.ready_at)
        stage.cluster.apply(insert(ORDERS, {"_id": 1, "bad": 1}))
        await until(stage.clock, lambda: reporter.document["capture"]["operations"] == 2)
        daemon.file.state = replace(daemon.state, phase=Phase.RESTORE, is_paused=True)
        task = asyncio.ensure_future(reporter.run(Service.RESTORE, stage.restore(is_live=True, outside=None)))
        await until(stage.clock, lambda: "can_cutover" in reporter.document["services"].get("restore", {}))
        checked = {"step": "str", "target_write_block": "str", "can_cutover": "bool", "bytes_total": "int"}
        assert reporter.row(Service.RESTORE) == {**checked, **REPLAY, **dict.fromkeys(UNKNOWN, "null")}
        daemon.file.state = replace(daemon.state, is_paused=False)
        await until(stage.clock, lambda: "generation" in reporter.row(Service.RESTORE))
        following = {
            **checked,
            **REPLAY,
            "generation": "int",
            "carried": "int",
            "refused_documents": "int",
            "lag_seconds": "float",
            **COMPARED,
        }
        row = reporter.document["services"]["restore"]
        assert (row["can_cutover"], row["refused_documents"]) == (False, 1)
        assert row["refused"] == ["shop.orders 1: Document failed validation"]
        stage.cluster.apply(delete(ORDERS, 1))
        await until(stage.clock, lambda: reporter.document["services"]["restore"]["can_cutover"])
        await until(stage.clock, lambda: reporter.document["restore"]["operations_per_second"] is not None)
        assert reporter.row(Service.RESTORE) == {**following, "refused": []}
        document = reporter.document
        assert document["services"]["restore"]["step"] in {"following", "replaying", "comparing"}
        assert shape(document["restore"]) == {**REPLAY, "lag_seconds": "float", "is_paused": "bool", "mode": "null"}
        assert reporter.metrics()["restore_lag_seconds"] == document["restore"]["lag_seconds"]
        task.cancel()


async def test_verify_and_what_restore_has_compared() -> None:
    reporter = Reporter()
    await reporter.captured()
    await reporter.run(Service.RESTORE, reporter.stage.restore(outside=None))
    reporter.stage.target.database.remove(ORDERS, raw_id(3))
    await reporter.run(Service.VERIFY, reporter.stage.verify())
    assert reporter.row(Service.VERIFY) == COMPARED
    assert reporter.document["verify"] == {"compared": 40, "compared_total": 40, "different": 1}
    assert reporter.metrics()["verify_different"] == 1


async def test_late_operations_reported_by_the_monitor_and_written_by_restore() -> None:
    reporter = Reporter()
    await reporter.captured()
    await reporter.run(Service.RESTORE, reporter.stage.restore())
    certified = reporter.daemon.state
    reporter.stage.coordinator.state = replace(certified, services=reporter.stage.coordinator.state.services)
    await reporter.stage.capture(insert(ORDERS, {"_id": "late"}))
    reporter.daemon.file.state = certified.with_service(Service.RESTORE, ServiceState(status=Status.DONE, since=SINCE))
    await reporter.run(Service.MONITOR_RESTORE, MonitorRestore(late=reporter.stage.reporter()))
    assert reporter.row(Service.MONITOR_RESTORE) == {"step": "str"}
    assert reporter.document["services"]["monitor-restore"]["step"] == "reading late operations"
    words = Words(accept_late="run")
    reporter.daemon.file.state = with_words(reporter.daemon.state, Service.MONITOR_RESTORE, words, now=SINCE)
    await reporter.run(Service.RESTORE, reporter.stage.restore())
    assert reporter.row(Service.RESTORE) == {"step": "str", "pages": "int", "pages_total": "int"}
    assert reporter.document["services"]["restore"]["step"] == "verifying late operations"


async def test_clean_that_compares_archives_and_deletes() -> None:
    reporter = Reporter()
    stage = reporter.stage
    await stage.capture(insert(ORDERS, {"_id": 1}))
    stage.target.database.put(ORDERS, raw_id(1), raw_document({"_id": 1}))
    await stage.prove()
    reporter.daemon.file.state = replace(stage.coordinator.state, services={})

    service = Clean(
        source=stage.source,
        uploads=stage.store,
        hold=stage.hold(),
        store=stage.store,
        states=stage.states,
        kept=stage.kept(),
        state_names=(),
        clock=stage.clock,
        timeout_seconds=60,
        keep_log_days=30,
        open_clusters=lambda: stage.clusters(stage.outside()),
    )
    surroundings = reporter.surroundings(Service.CLEAN)

    async def stop(_: Service) -> None:
        stage.coordinator.stopping.set()

    surroundings.stop = stop  # type: ignore[assignment,method-assign]  # replication runs with surroundings of its own
    async with stage.running(stage.replication()):
        reporter.daemon.file.state = reporter.daemon.state.with_service(
            Service.REPLICATION, ServiceState(status=Status.RUNNING, since=SINCE)
        )
        await service.run(surroundings)
    expected = {"step": "str", "archived": "int", "deleted": "int", "outside": OUTSIDE}
    assert reporter.row(Service.CLEAN) == expected
    assert reporter.document["services"]["clean"]["step"] == "done"
    assert reporter.parts() == {**NOTHING, "verify": {**COMPARED, "compared_total": "null"}, "outside": OUTSIDE}
    assert reporter.document["outside"]["is_complete"]
