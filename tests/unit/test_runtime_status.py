"""What status says, and how a signal asks the daemon to end."""

from __future__ import annotations

import asyncio
import os
import signal

from d5agent.core.log.operation import ClusterTime
from d5agent.core.run.progress import AgentProgress
from d5agent.core.run.services import Fence, Phase, PhaseState, Service, ServiceState, Status, Verified
from d5agent.core.run.status import status_of
from d5agent.runtime.stopping import drained, on_signals
from tests.fakes.coordinator import SINCE
from tests.fakes.progress import a_capture, a_horizon


def test_a_status_has_a_row_for_each_service_and_what_was_reported() -> None:
    row = ServiceState(status=Status.FAILED, since=SINCE, reason="r", error="e", hint="h")
    state = PhaseState(phase=Phase.REPLICATION, run_id="run").with_service(Service.REPLICATION, row)
    progress = AgentProgress(capture=a_capture(operations=3, seen_at=17.0), horizon=a_horizon(lag_seconds=0.5))
    status = status_of(state, progress, is_up=True)
    assert (status["daemon"], status["phase"], status["run_id"]) == ("up", "replication", "run")
    expected = {"state": "failed", "reason": "r", "since": SINCE, "error": "e", "hint": "h"}
    row = status["services"]["replication"]
    assert {name: row[name] for name in expected} == expected
    assert (row["operations"], row["lag_seconds"]) == (3, 0.5)
    assert "seen_at" not in row
    assert (status["capture"]["operations"], status["capture"]["safe_seconds"]) == (3, None)
    assert status["verify"] == {"compared": None, "compared_total": None, "different": None}
    assert status["fence"] is None


def test_a_proof_stands_in_the_status_after_the_daemon_that_made_it_has_gone() -> None:
    state = PhaseState(
        fence=Fence(sequence=4, cluster_time=ClusterTime(1, 2), at=SINCE),
        verified=Verified(sequence=4, operations=9, compared=7, at=SINCE),
    )
    status = status_of(state, AgentProgress(), is_up=False)
    assert status["daemon"] == "down"
    assert status["fence"] == {"sequence": 4, "at": SINCE}
    assert status["verify"] == {"compared": 7, "compared_total": None, "different": 0}


async def test_a_signal_acts_while_the_block_runs() -> None:
    asked = asyncio.Event()
    with on_signals(asked.set):
        os.kill(os.getpid(), signal.SIGTERM)
        await asked.wait()


async def test_a_task_that_ends_by_itself_is_not_cancelled_and_one_that_does_not_is() -> None:
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        ending = group.create_task(asyncio.sleep(0))
        deaf = group.create_task(_wait_for(event))
        await drained(ending, may_drain=True, seconds=5)
        await drained(deaf, may_drain=True, seconds=0.01)
    assert not ending.cancelled()
    assert deaf.cancelled()


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()
