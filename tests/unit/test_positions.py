"""The time beside a position never goes back: what a server says of silence may be later than what it sends next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bson import encode

from d5agent.core.log import Writer
from d5agent.core.operation import ClusterTime, Position
from d5agent.steps.log_reader import LogReader
from d5agent.steps.log_writer import LogWriter
from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeObjectStore

if TYPE_CHECKING:
    from d5agent.core.log import Commit

WRITER = Writer(run_id="run", agent_id="agent", host="host", since="2026-11-02T08:00:00+00:00")


async def commit_at(writer: LogWriter, increment: int, token: str) -> Commit:
    position = Position(cluster_time=ClusterTime(1_793_600_000, increment), token=encode({"_data": token}))
    commit = await writer.publish((), position)
    assert commit is not None
    return commit


async def test_events_older_than_the_time_of_a_silence_leave_a_log_that_is_whole() -> None:
    store = FakeObjectStore()
    writer = LogWriter(store=store, clock=FakeClock(), writer=WRITER, last=None)
    await commit_at(writer, 540, "silence")  # the reply's operationTime was ahead of events that were not read yet
    after = await commit_at(writer, 521, "insert")
    last = await commit_at(writer, 600, "later")
    assert after.position.cluster_time == ClusterTime(1_793_600_000, 540)
    assert after.position.token == encode({"_data": "insert"}), "the stream goes on where it really is"
    assert last.position.cluster_time == ClusterTime(1_793_600_000, 600)
    summary = await LogReader(store=store).check()
    assert summary.last is not None
    assert summary.last.commit == last
