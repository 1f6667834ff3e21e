"""The lease: a living holder is respected, a dead one outlived, a released log taken at once."""

from __future__ import annotations

import json
import uuid
from asyncio import TaskGroup, sleep
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from d5agent.errors import LogHeldError, OperatorError, TransientError
from d5agent.runtime.holder import BEAT_SECONDS, KEY, Holder, Lease
from tests.fakes.clock import FakeClock
from tests.fakes.machine import FakeJournal
from tests.fakes.stage import until
from tests.fakes.store import DownStore, FakeObjectStore

if TYPE_CHECKING:
    from d5agent.errors import AgentError


def lease(
    store: FakeObjectStore, clock: FakeClock, name: str, *, tenures: tuple[str, ...] = (), place: str = "boot disk"
) -> Lease:
    """An agent on a disk that belongs to these tenures; nothing of the record tells it from a copy of that disk."""
    me = Holder(
        agent_id=name,
        host=f"host of {name}",
        pid=1,
        since="2026-11-02T08:00:00+00:00",
        tenure=str(uuid.uuid4()),
        place=place,
    )
    return Lease(store=store, clock=clock, journal=FakeJournal(), me=me, tenures=tenures)


def record(store: FakeObjectStore) -> dict[str, object]:
    found: dict[str, object] = json.loads(store.objects[KEY])
    return found


async def test_a_free_log_is_taken_at_once() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    mine = lease(store, clock, "one")
    await mine.acquire()
    assert clock.monotonic() == 0
    assert record(store) == {"version": 1, **asdict(mine.me)}


async def test_a_living_holder_is_respected_and_named() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    holder = lease(store, clock, "one")
    await holder.acquire()
    async with TaskGroup() as group:
        keeping = group.create_task(holder.keep())
        with pytest.raises(LogHeldError, match="holds this log") as refused:
            await lease(store, clock, "two").acquire()
        keeping.cancel()
    assert refused.value.facts == {"host": "host of one", "pid": 1, "run_id": "", "since": "2026-11-02T08:00:00+00:00"}
    assert clock.monotonic() <= BEAT_SECONDS + 2
    assert record(store)["agent_id"] == "one"


async def test_a_dead_holder_is_outlived() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    await lease(store, clock, "one").acquire()
    second = lease(store, clock, "two")
    await second.acquire()
    assert clock.monotonic() >= 3 * BEAT_SECONDS
    assert record(store)["agent_id"] == "two"
    assert isinstance(second.journal, FakeJournal)
    assert [entry.event for entry in second.journal.entries] == ["log_has_a_holder", "log_taken_over"]


async def test_a_released_log_is_taken_at_once() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    first = lease(store, clock, "one")
    await first.acquire()
    await first.release()
    await lease(store, clock, "two").acquire()
    assert clock.monotonic() == 0
    assert record(store)["agent_id"] == "two"


@pytest.mark.parametrize("way", ["released", "removed"])
async def test_a_log_that_is_given_up_while_one_waits_is_taken_then(way: str) -> None:
    store, clock = FakeObjectStore(), FakeClock()
    first, second = lease(store, clock, "one"), lease(store, clock, "two")
    await first.acquire()
    async with TaskGroup() as group:
        waiting = group.create_task(second.acquire())
        await clock.sleep(5)
        if way == "released":
            await first.release()
        else:
            await store.delete([KEY])
        await until(clock, waiting.done)
    assert clock.monotonic() < 3 * BEAT_SECONDS
    assert record(store)["agent_id"] == "two"


async def test_a_process_on_the_same_disk_takes_its_own_log_at_once() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    before = lease(store, clock, "one")
    await before.acquire()
    again = lease(store, clock, "one", tenures=(before.me.tenure,))
    told: list[str] = []
    again.on_taking = told.append
    await again.acquire()
    assert clock.monotonic() == 0
    assert not again.follows_another
    assert told == [before.me.tenure]
    assert record(store)["agent_id"] == "one"


@pytest.mark.parametrize("tenures", ["the same", "an older one"])
async def test_a_copied_disk_respects_the_agent_that_it_was_copied_from(tenures: str) -> None:
    store, clock = FakeObjectStore(), FakeClock()
    holder = lease(store, clock, "one")
    await holder.acquire()
    copy = lease(
        store, clock, "one", tenures=(holder.me.tenure if tenures == "the same" else "older",), place="boot copy"
    )
    async with TaskGroup() as group:
        keeping = group.create_task(holder.keep())
        with pytest.raises(LogHeldError, match="holds this log"):
            await copy.acquire()
        await holder.confirm()
        keeping.cancel()
    assert record(store)["tenure"] == holder.me.tenure


@pytest.mark.parametrize(
    ("tenures", "place", "follows_another"),
    [("the same", "boot copy", False), ("an older one", "boot disk", True), ("none", "boot disk", True)],
)
async def test_a_copied_disk_outlives_its_original_and_gets_an_id_of_its_own(
    tenures: str, place: str, *, follows_another: bool
) -> None:
    store, clock = FakeObjectStore(), FakeClock()
    first = lease(store, clock, "one")
    await first.acquire()
    known = {"the same": (first.me.tenure,), "an older one": ("older",), "none": ()}[tenures]
    copy = lease(store, clock, "one", tenures=known, place=place)
    await copy.acquire()
    assert clock.monotonic() >= 3 * BEAT_SECONDS
    assert copy.follows_another is follows_another
    assert record(store)["agent_id"] == copy.me.agent_id != "one"
    with pytest.raises(LogHeldError):
        await first.renew()


async def test_a_copied_disk_takes_a_released_log_at_once() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    first = lease(store, clock, "one")
    await first.acquire()
    await first.release()
    copy = lease(store, clock, "one", tenures=(first.me.tenure,), place="boot copy")
    await copy.acquire()
    assert clock.monotonic() == 0
    assert not copy.follows_another, "nobody has written since"
    late = lease(store, clock, "one", tenures=(first.me.tenure,))
    await copy.release()
    await late.acquire()
    assert late.follows_another
    assert late.me.agent_id != "one"


@pytest.mark.parametrize("is_released", [True, False])
async def test_a_record_without_a_tenure_is_told_by_its_agent_and_outlived(*, is_released: bool) -> None:
    store, clock = FakeObjectStore(), FakeClock()
    old = {"agent_id": "one", "host": "h", "pid": 1, "since": "s", "beat": 3, "is_released": is_released}
    store.objects[KEY] = json.dumps({"version": 1, **old}).encode()
    mine = lease(store, clock, "one")
    await mine.acquire()
    assert not mine.follows_another
    assert (clock.monotonic() == 0) is is_released


async def test_a_field_of_a_later_version_is_passed_over() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    mine = lease(store, clock, "one")
    store.objects[KEY] = json.dumps({"version": 1, **asdict(mine.me), "is_released": True, "new": 1}).encode()
    await lease(store, clock, "two").acquire()
    assert record(store)["agent_id"] == "two"


async def test_a_lost_lease_is_an_error_and_is_not_taken_back() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    first = lease(store, clock, "one")
    await first.acquire()
    await lease(store, clock, "two").acquire()
    with pytest.raises(LogHeldError) as lost:
        await first.keep()
    assert lost.value.facts["host"] == "host of two"
    await first.release()
    assert record(store)["agent_id"] == "two"
    assert record(store)["is_released"] is False


@pytest.mark.parametrize(
    "error",
    [
        TransientError("the store does not answer"),
        OperatorError("S3 refused a request", hint="give the instance's role s3:GetObject"),
    ],
)
async def test_a_store_that_does_not_answer_or_refuses_for_a_while_costs_no_lease(error: AgentError) -> None:
    store, clock = DownStore(), FakeClock()
    mine = lease(store, clock, "one")
    await mine.acquire()
    async with TaskGroup() as group:
        keeping = group.create_task(mine.keep())
        store.error = error
        await clock.sleep(2.5 * BEAT_SECONDS)
        store.error = None
        await until(clock, lambda: record(store)["beat"] == 1)
        keeping.cancel()
    assert mine.me.beat == 1
    assert isinstance(mine.journal, FakeJournal)
    assert [entry.event for entry in mine.journal.entries] == ["holder_not_renewed"] * 2


async def test_of_two_that_start_at_the_same_moment_one_takes_the_log() -> None:
    store, clock = FakeObjectStore(), FakeClock()

    class Together(FakeObjectStore):
        """Both have read before one of them writes."""

        @override
        async def get(self, key: str) -> bytes | None:
            body = await store.get(key)
            await sleep(0)
            return body

        @override
        async def put_once(self, key: str, body: bytes) -> bool:
            return await store.put_once(key, body)

    together = Together()
    first, second = lease(together, clock, "one"), lease(together, clock, "two")
    async with TaskGroup() as group:
        ends = [group.create_task(_end_of(each)) for each in (first, second)]
    lost = [end.result() for end in ends]
    assert [error is None for error in lost] == [True, False]
    assert lost[1] is not None
    assert lost[1].facts["host"] == "host of one"
    assert record(store)["agent_id"] == "one"
    assert [each.is_fresh for each in (first, second)] == [True, False]


async def _end_of(each: Lease) -> LogHeldError | None:
    try:
        await each.acquire()
    except LogHeldError as error:
        return error
    return None


async def test_a_lease_is_fresh_for_less_than_another_agent_waits() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    mine = lease(store, clock, "one")
    await mine.acquire()
    await clock.sleep(2.4 * BEAT_SECONDS)
    fresh = [mine.is_fresh]
    await clock.sleep(0.2 * BEAT_SECONDS)
    fresh.append(mine.is_fresh)
    await mine.confirm()
    fresh.append(mine.is_fresh)
    assert fresh == [True, False, True]
    assert record(store)["beat"] == 1
    await mine.confirm()
    assert record(store)["beat"] == 1, "it is fresh: nobody need ask"


async def test_a_lease_that_was_lost_is_fresh_no_more_and_stays_lost() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    mine = lease(store, clock, "one")
    await mine.acquire()
    await lease(store, clock, "two").acquire()
    with pytest.raises(LogHeldError):
        await mine.confirm()
    with pytest.raises(LogHeldError):
        await mine.renew()
    assert not mine.is_fresh


async def test_the_record_names_the_run_that_it_is_about() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    mine = lease(store, clock, "one")
    await mine.acquire()
    mine.run_id = lambda: "a run"
    await mine.renew()
    assert record(store)["run_id"] == "a run"
    other = lease(store, clock, "two")
    async with TaskGroup() as group:
        keeping = group.create_task(mine.keep())
        with pytest.raises(LogHeldError) as refused:
            await other.acquire()
        keeping.cancel()
    assert refused.value.facts["run_id"] == "a run"


async def test_a_record_of_the_version_before_is_taken_over() -> None:
    store, clock = FakeObjectStore(), FakeClock()
    old = {"agent_id": "one", "host": "h", "pid": 1, "since": "s", "beat": 3, "is_released": True}
    store.objects[KEY] = json.dumps({"version": 1, **old}).encode()
    mine = lease(store, clock, "two")
    await mine.acquire()
    assert record(store)["agent_id"] == "two"
    assert mine.follows_another
