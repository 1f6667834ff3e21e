"""Clock, power switch and dump tool: the fakes, and what this machine has."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import AsyncMongoClient

from d5agent.adapters.clock import SystemClock
from d5agent.adapters.mongo import open_mongo
from d5agent.adapters.mongodump import MongoDump
from d5agent.adapters.power import CommandPowerSwitch
from d5agent.core.log.operation import ClusterTime
from d5agent.drill.tools import find_tool
from d5agent.errors import OperatorError
from tests.fakes.clock import FakeClock
from tests.fakes.machine import FakeDumpTool, FakePowerSwitch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from d5agent.drill.servers import Mongod
    from d5agent.ports import Clock, DumpTool, PowerSwitch


@pytest.fixture(params=["fake", "system"])
def clock(request: pytest.FixtureRequest) -> Clock:
    return FakeClock() if request.param == "fake" else SystemClock()


async def test_time_passes_while_somebody_sleeps_and_never_goes_back(clock: Clock) -> None:
    for seconds in (0.02, 0, -1):
        monotonic, now = clock.monotonic(), clock.now()
        await clock.sleep(seconds)
        assert clock.monotonic() >= monotonic + max(seconds, 0)
        assert clock.now() >= now
        assert clock.now().tzinfo is UTC


@pytest.mark.parametrize(
    "switch", [FakePowerSwitch(), CommandPowerSwitch(["true"], timeout_seconds=10)], ids=["fake", "command"]
)
async def test_a_power_off_that_was_asked_for_returns(switch: PowerSwitch) -> None:
    await switch.off()


@pytest.mark.parametrize("switch", [FakePowerSwitch(), CommandPowerSwitch(["true"], timeout_seconds=10)])
async def test_a_boot_has_the_same_name_as_long_as_it_lasts(switch: PowerSwitch) -> None:
    boot_id = await switch.boot_id()
    assert boot_id
    assert await switch.boot_id() == boot_id


async def test_a_power_off_that_hangs_is_ended_and_told(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    switch = CommandPowerSwitch(["sh", "-c", f"echo $$ > {pid}; exec sleep 1000"], timeout_seconds=0.5)
    with pytest.raises(OperatorError, match="the power-off hangs") as failed:
        await switch.off()
    assert "d5agent start monitor-clean" in failed.value.hint
    assert failed.value.facts == {"command": "sh", "after_seconds": 0.5}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="ascii")), 0)


@pytest.mark.parametrize(
    "switch",
    [FakePowerSwitch(error=OperatorError("no right to")), CommandPowerSwitch(["false"], timeout_seconds=10)],
    ids=["fake", "command"],
)
async def test_a_power_off_that_fails_is_an_operators_matter(switch: PowerSwitch) -> None:
    with pytest.raises(OperatorError):
        await switch.off()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumps:
    """A tool, one that fails, a database, and its documents by collection."""

    tool: DumpTool
    broken: DumpTool
    database: str
    documents: dict[str, int]


@pytest.fixture(params=["fake", "mongodump"])
async def dumps(request: pytest.FixtureRequest, mongod: Mongod, fresh_name: str) -> AsyncIterator[Dumps]:
    documents = {f"{fresh_name}.orders": 3, f"{fresh_name}.items": 1}
    if request.param == "fake":
        yield Dumps(
            tool=FakeDumpTool(archives={fresh_name: [gzip.compress(b"archive")]}, documents={fresh_name: documents}),
            broken=FakeDumpTool(archives={fresh_name: []}, errors={fresh_name: OperatorError("mongodump failed")}),
            database=fresh_name,
            documents=documents,
        )
        return
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongod.uri)
    async with client:
        await client[fresh_name].orders.insert_many([{"_id": number} for number in range(3)])
        await client[fresh_name].items.insert_one({"_id": 1})
    async with open_mongo(mongod.uri, side="target") as opened:

        def tool(program: str) -> MongoDump:
            return MongoDump(
                opened,
                side="target",
                uri=mongod.uri,
                program=program,
                flavor="mongodb",
                databases=(),
                stall_seconds=30,
                clock=SystemClock(),
            )

        yield Dumps(
            tool=tool(str(find_tool("mongodump"))), broken=tool("false"), database=fresh_name, documents=documents
        )


async def test_a_dump_is_an_archive_and_tells_its_documents(dumps: Dumps) -> None:
    async with dumps.tool.dump(dumps.database) as dump:
        archive = b"".join([chunk async for chunk in dump.chunks()])
        assert dump.documents() == dumps.documents
        assert dump.documents_so_far() == 4
    assert gzip.decompress(archive)


async def test_a_dump_that_fails_says_so_at_its_end(dumps: Dumps) -> None:
    async with dumps.broken.dump(dumps.database) as dump:
        with pytest.raises(OperatorError):
            async for _ in dump.chunks():
                pass


async def test_a_dump_may_be_given_up(dumps: Dumps) -> None:
    async with dumps.tool.dump(dumps.database):
        pass


async def test_a_tool_tells_its_version_the_databases_and_the_time(dumps: Dumps) -> None:
    assert (await dumps.tool.version()).number.count(".") >= 2
    databases = await dumps.tool.databases()
    assert dumps.database in databases
    assert not {"admin", "local", "config", "d5agent"} & set(databases)
    assert isinstance(await dumps.tool.operation_time(), ClusterTime)
    assert await dumps.tool.operation_time() > ClusterTime(0, 0)
    assert (await dumps.tool.server_version()).count(".") == 2


async def test_sleepers_on_a_fake_clock_wake_in_the_order_of_their_times() -> None:
    clock = FakeClock()
    before = clock.now()
    await clock.sleep(3600)
    assert clock.now() - before == timedelta(hours=1)
