"""`[metrics] listen`: what `d5agent status` says, as metrics for Prometheus, and whether the agent is alive.

The HTTP is aiohttp's, which is here for S3 already; the text is ours: a name, labels and a number a line (ADR 13).
Only an agent that serves metrics imports this module (ADR 50).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
from aiohttp import web

from d5agent.core.run.services import Phase, Service, Status
from d5agent.core.run.status import last_comparison
from d5agent.runtime.listening import refusal
from d5agent.settings import parse_address

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

    from d5agent.core.run.progress import (
        AgentProgress,
        CaptureProgress,
        ComparisonProgress,
        HorizonProgress,
        ReplayProgress,
        RestoreProgress,
    )
    from d5agent.core.run.services import PhaseState
    from d5agent.runtime.daemon import Daemon

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_DRAIN_SECONDS: Final = 2.0  # a scrape that runs when the daemon ends may finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: its samples are labels and a value; without one it is absent."""

    name: str
    help: str
    is_counter: bool = False
    samples: tuple[tuple[Mapping[str, str], float | None], ...] = field(default=())


# Name, help, and how it is read from what is reported. What counts up ends in `_total`.
_CAPTURE: Final[tuple[tuple[str, str, Callable[[CaptureProgress], float]], ...]] = (
    ("captured_operations_total", "Operations in the log of this run.", lambda capture: capture.operations),
    (
        "captured_bytes_total",
        "Bytes of operations in the log of this run, uncompressed.",
        lambda capture: capture.bytes,
    ),
    ("captured_segments_total", "Segments in the log of this run.", lambda capture: capture.segments),
    ("capture_queue_bytes", "Bytes read from the source and not yet stored.", lambda capture: capture.queue_bytes),
)
_HORIZON: Final[tuple[tuple[str, str, Callable[[HorizonProgress], float | None]], ...]] = (
    ("lag_seconds", "How far capture is behind the source.", lambda horizon: horizon.lag_seconds),
    (
        "position_safe_seconds",
        "How long the saved position can still be resumed from if nothing moves it.",
        lambda horizon: horizon.safe_seconds,
    ),
    ("retention_seconds", "How long the source keeps its log of changes.", lambda horizon: horizon.retention_seconds),
    (
        "catch_up_rate",
        "Seconds of the source's history read in a second, last minute.",
        lambda horizon: horizon.catch_up_rate,
    ),
)
_RESTORE: Final[tuple[tuple[str, str, Callable[[RestoreProgress], float | None]], ...]] = (
    ("restore_operations", "Operations that restore has to apply.", lambda restore: restore.operations_total),
    ("restore_bytes", "Bytes of operations that restore has to apply.", lambda restore: restore.bytes_total),
    ("restore_lag_seconds", "How far the target is behind the source, live.", lambda restore: restore.lag_seconds),
)
_REPLAY: Final[tuple[tuple[str, str, Callable[[ReplayProgress], float | None]], ...]] = (
    ("restore_operations_applied", "Operations that restore has applied.", lambda replay: replay.operations_applied),
    ("restore_bytes_applied", "Bytes of operations that restore has applied.", lambda replay: replay.bytes_applied),
    (
        "restore_documents_written",
        "Documents that restore has written or deleted.",
        lambda replay: replay.documents_written,
    ),
    (
        "restore_operations_per_second",
        "Applied in a second, over ten.",
        lambda replay: replay.operations_per_second,
    ),
    ("restore_eta_seconds", "How long restore will still replay.", lambda replay: replay.eta_seconds),
    ("restore_lanes", "Lanes that write at the same time, over ten seconds.", lambda replay: replay.lanes),
    ("restore_lanes_allowed", "Lanes that may write at this moment.", lambda replay: replay.lanes_allowed),
)
_COMPARISON: Final[tuple[tuple[str, str, Callable[[ComparisonProgress], float]], ...]] = (
    ("verify_compared", "Documents compared by the last comparison.", lambda comparison: comparison.compared),
    (
        "verify_different",
        "Documents that the last comparison found different.",
        lambda comparison: comparison.different,
    ),
)
_Progress = TypeVar("_Progress")


def _read(
    readings: Sequence[tuple[str, str, Callable[[_Progress], float | None]]], progress: _Progress | None
) -> Iterator[Metric]:
    for name, text, read in readings:
        value = None if progress is None else read(progress)
        yield Metric(name=name, help=text, is_counter=name.endswith("_total"), samples=(({}, value),))


def metrics_of(state: PhaseState, progress: AgentProgress, *, agent_version: str) -> Iterator[Metric]:
    """Yield the metrics of the phase state and of what services have reported."""
    yield from _read(_CAPTURE, progress.capture)
    yield from _read(_HORIZON, progress.horizon)
    yield Metric(
        name="capture_failing",
        help="Whether capture fails and is tried again, since its last commit.",
        samples=(({}, progress.failing_since is not None),),
    )
    yield from _read(_RESTORE, progress.restore)
    yield from _read(_REPLAY, progress.restore.replay)
    yield from _read(_COMPARISON, last_comparison(state, progress))
    yield Metric(
        name="replication_ready",
        help="Whether every change is captured from now on.",
        samples=(({}, bool(state.ready_at)),),
    )
    yield Metric(
        name="phase",
        help="1 for the phase that the failback is in.",
        samples=tuple(({"phase": str(phase)}, state.phase is phase) for phase in Phase),
    )
    yield Metric(
        name="service_state",
        help="1 for the state that a service is in; none before it is asked for in this run.",
        samples=tuple(
            ({"service": str(service), "state": str(status)}, state.status(service) is status)
            for service in Service
            for status in Status
        ),
    )
    yield Metric(name="build_info", help="The agent's version.", samples=(({"version": agent_version}, 1),))


def exposition(metrics: Iterator[Metric]) -> str:
    """Return metrics in the text format 0.0.4."""
    lines = []
    for metric in metrics:
        samples = [(labels, value) for labels, value in metric.samples if value is not None]
        if samples:
            name = f"d5agent_{metric.name}"
            lines.append(f"# HELP {name} {_escaped(metric.help)}")
            lines.append(f"# TYPE {name} {'counter' if metric.is_counter else 'gauge'}")
            lines += [f"{name}{_labels(labels)} {value + 0}" for labels, value in samples]  # + 0: True is 1
    return "\n".join([*lines, ""])


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{_escaped(value, quoted=True)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def _escaped(text: str, *, quoted: bool = False) -> str:
    plain = text.replace("\\", "\\\\").replace("\n", "\\n")
    return plain.replace('"', '\\"') if quoted else plain


@asynccontextmanager
async def metrics_server(listen: str, daemon: Daemon) -> AsyncGenerator[None]:
    """Serve /metrics and /healthz while the block runs. OperatorError: the address cannot be had."""
    application = web.Application()
    application.router.add_get("/metrics", _Endpoint(daemon).metrics)
    application.router.add_get("/healthz", _Endpoint(daemon).healthz)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_DRAIN_SECONDS)
    await runner.setup()
    try:
        host, port = parse_address(listen)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise refusal(error, listen) from error
        address = runner.addresses[0]
        structlog.get_logger().info("metrics_served", host=address[0], port=address[1])
        yield
    finally:
        await runner.cleanup()


class _Endpoint:
    """Answers requests."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def metrics(self, _: web.Request) -> web.Response:
        """Answer with how things are now."""
        metrics = metrics_of(self._daemon.state, self._daemon.progress, agent_version=version("d5agent"))
        text = exposition(metrics)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(self, _: web.Request) -> web.Response:
        """Answer as systemd's watchdog is fed: 503 when what captures has shown no sign of life for a minute."""
        if self._daemon.is_fed():
            return web.Response(text="ok\n")
        return web.Response(text="replication shows no sign of life\n", status=503)
