"""The StateStore: in memory, and as files with a mirror."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from d5agent.adapters.state import MirroredStateStore
from tests.fakes.store import FakeObjectStore, FakeStateStore

if TYPE_CHECKING:
    from pathlib import Path

    from d5agent.ports import StateStore

STATE: dict[str, Any] = {
    "version": 1,
    "text": 'é\n"quoted" 漢',
    "numbers": [0, -1, 2**53, 1.5],
    "nothing": None,
    "rows": {"a": {"is_there": True}, "b": []},
}


@pytest.fixture(params=["fake", "mirrored"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> StateStore:
    return FakeStateStore() if request.param == "fake" else MirroredStateStore(tmp_path, FakeObjectStore())


async def test_a_state_that_was_never_saved_is_none(states: StateStore) -> None:
    assert await states.load("phase") is None


async def test_a_state_comes_back_as_it_was_saved(states: StateStore) -> None:
    await states.save("phase", STATE)
    assert await states.load("phase") == STATE


async def test_a_state_is_replaced_as_a_whole_and_others_stay(states: StateStore) -> None:
    await states.save("phase", STATE)
    await states.save("checkpoint", {"version": 2})
    await states.save("phase", {"version": 1, "new": True})
    assert await states.load("phase") == {"version": 1, "new": True}
    assert await states.load("checkpoint") == {"version": 2}


async def test_what_was_saved_does_not_change_with_the_value_it_was_made_of(states: StateStore) -> None:
    value: dict[str, Any] = {"version": 1, "rows": [1]}
    await states.save("phase", value)
    value["rows"].append(2)
    loaded = await states.load("phase")
    assert loaded == {"version": 1, "rows": [1]}
    loaded["rows"].append(3)
    assert await states.load("phase") == {"version": 1, "rows": [1]}


async def test_a_tuple_is_saved_as_a_list(states: StateStore) -> None:
    await states.save("phase", {"version": 1, "cluster_time": (5, 6)})
    assert await states.load("phase") == {"version": 1, "cluster_time": [5, 6]}


async def test_a_deleted_state_is_gone_and_may_be_deleted_again(states: StateStore) -> None:
    await states.save("phase", STATE)
    await states.delete("phase")
    await states.delete("phase")
    assert await states.load("phase") is None


async def test_a_new_disk_takes_the_mirror(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    mirror = FakeObjectStore()
    await MirroredStateStore(tmp_path / "old", mirror).save("phase", STATE)
    new = MirroredStateStore(tmp_path / "new", mirror)
    assert await new.load("phase") == STATE
    await new.delete("phase")
    assert await MirroredStateStore(tmp_path / "new", mirror).load("phase") is None
    assert not mirror.objects
