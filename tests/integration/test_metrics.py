"""[metrics] listen: the daemon as a process, scraped over HTTP while it works."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from d5agent.core.run.services import PhaseState, Service, ServiceState, Status
from d5agent.drill.child import free_port
from d5agent.runtime.daemon import Daemon
from d5agent.runtime.metrics import metrics_server
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import a_capture
from tests.fakes.store import FakeStateStore
from tests.integration.agent_rig import PATIENCE_SECONDS, Client, said

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.agent_rig import AgentRig


def listening(rig: AgentRig) -> str:
    """Configure the endpoint, and return its URL."""
    address = f"127.0.0.1:{free_port()}"
    rig.config["metrics"] = {"listen": address}
    return f"http://{address}"


async def fetched(url: str, *, method: str = "GET") -> tuple[int, str, str]:
    """Return status, content type and text."""
    async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def until(url: str, is_so: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Scrape until the samples are so, and return them."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        _, _, text = await fetched(f"{url}/metrics")
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        samples = {name: float(value) for name, value in lines}
        if is_so(samples):
            return samples
        assert asyncio.get_running_loop().time() < deadline, text
        await asyncio.sleep(0.1)


async def test_what_is_captured_and_how_long_its_position_is_safe_can_be_scraped(rig: AgentRig) -> None:
    url = listening(rig)
    rig.config["source"]["retention_seconds"] = 7_200
    agent = await rig.captured_agent()
    async with Client(rig.source_uri) as client:
        await client["shop"]["orders"].insert_many([{"_id": n} for n in range(20)])
    await rig.until_captured(20)
    samples = await until(url, lambda found: "d5agent_position_safe_seconds" in found)
    status = await agent.json("status")
    assert samples["d5agent_captured_operations_total"] == status["capture"]["operations"] >= 20
    assert samples["d5agent_retention_seconds"] == status["capture"]["retention_seconds"] == 7_200
    assert 7_100 < samples["d5agent_position_safe_seconds"] <= 7_200
    assert samples["d5agent_lag_seconds"] < 100
    assert samples["d5agent_replication_ready"] == 1
    assert samples['d5agent_phase{phase="replication"}'] == 1
    assert samples['d5agent_service_state{service="replication",state="running"}'] == 1
    assert status["capture"]["retention_basis"] == "setting"
    assert "the source keeps its changes for 2 h (says [source] retention_seconds)" in said(await agent.run("status"))
    log = agent.log.read_text(encoding="utf-8")
    assert "retention_known" in log
    assert "retention_not_read" not in log


async def test_an_assumed_retention_is_said_to_be_assumed(rig: AgentRig) -> None:
    agent = await rig.captured_agent()
    status = await agent.until(
        lambda values: values["capture"]["safe_seconds"] is not None, what="safe", seconds=PATIENCE_SECONDS
    )
    assert (status["capture"]["retention_seconds"], status["capture"]["retention_basis"]) == (10_800, "default")
    log = agent.log.read_text(encoding="utf-8")
    assert log.count("retention_not_read") == 1
    assert "set [source] retention_seconds" in log


async def test_a_saved_position_is_watched_after_a_restart_though_replication_is_stopped(rig: AgentRig) -> None:
    url = listening(rig)
    agent = await rig.captured_agent()
    await agent.call("stop", "replication")
    await agent.kill()
    path = rig.state / "data_resume_token.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["cluster_time"][0] -= 6_000  # so long the daemon was down
    path.write_text(json.dumps(saved), encoding="utf-8")
    await agent.start()
    samples = await until(url, lambda found: "d5agent_position_safe_seconds" in found)
    assert 4_700 < samples["d5agent_position_safe_seconds"] <= 4_800
    assert samples['d5agent_service_state{service="replication",state="stopped"}'] == 1
    assert "position_is_at_half" in agent.log.read_text(encoding="utf-8")


async def test_health_follows_the_watchdog(rig: AgentRig) -> None:
    url = listening(rig)
    agent = rig.agent()
    await agent.start()
    assert await fetched(f"{url}/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    status, kind, _ = await fetched(f"{url}/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert (await fetched(f"{url}/metrics", method="HEAD"))[0] == 200
    assert (await fetched(f"{url}/metrics", method="POST"))[0] == 405
    assert (await fetched(f"{url}/"))[0] == 404
    await agent.stop()
    assert "daemon_drained exit=0" in agent.log.read_text(encoding="utf-8").replace("event=", "")


async def test_a_capture_that_shows_no_life_is_not_healthy() -> None:
    clock = FakeClock(is_manual=True)
    daemon = Daemon(plugins={}, states=FakeStateStore(), clock=clock, drain_seconds=1)
    row = ServiceState(status=Status.RUNNING, since=SINCE)
    daemon.file.state = PhaseState().with_service(Service.REPLICATION, row)
    daemon.progress.capture = a_capture(seen_at=clock.monotonic())
    listen = f"127.0.0.1:{free_port()}"
    async with metrics_server(listen, daemon):
        alive = await fetched(f"http://{listen}/healthz")
        await clock.advance(61)
        dead = await fetched(f"http://{listen}/healthz")
    assert (alive[0], dead[0]) == (200, 503)
    with pytest.raises(aiohttp.ClientConnectorError):
        await fetched(f"http://{listen}/healthz")


async def refused(rig: AgentRig, listen: str) -> str:
    """Return what serve says of an address; it ends with 78 and has told nobody that it is ready."""
    rig.config["metrics"] = {"listen": listen}
    ended = await rig.agent().run("serve")
    text = said(ended)
    assert ended.code == 78, text
    assert "next:" in text
    assert "Traceback" not in text
    assert "daemon_started" not in text
    return text


async def test_a_port_that_is_taken(rig: AgentRig) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        text = await refused(rig, listen)
    assert "metrics cannot be served" in text
    assert listen in text
    assert "see who has it" in text
    rig.config.pop("metrics")
    await rig.agent().start()  # and nothing is left of it that the next start would meet


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("192.0.2.1:9464", "give [metrics] listen an address of this machine"),
        ("no-such-host.invalid:9464", "a name that this machine can look up"),
        ("9464", "[metrics] listen: it must be HOST:PORT"),
    ],
)
async def test_an_address_that_cannot_be_had(rig: AgentRig, listen: str, words: str) -> None:
    assert words in await refused(rig, listen)


async def test_without_an_address_nothing_is_served(rig: AgentRig) -> None:
    agent = rig.agent()
    await agent.start()
    assert "metrics_served" not in agent.log.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = list((await agent.status())["services"].values())
    assert rows == []
