"""The StateStore: in memory, and as files with a mirror."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from d5agent.adapters.state import MirroredStateStore
from d5agent.errors import LogHeldError
from tests.fakes.mortal import DiedError, Life, mortal
from tests.fakes.store import FakeObjectStore, FakeStateStore

if TYPE_CHECKING:
    from collections.abc import Sequence
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


async def taken_over(
    directory: Path,
    mirror: FakeObjectStore,
    owner: str,
    *,
    names: Sequence[str] = ("phase",),
    from_another: bool = False,
    is_lost: bool = False,
) -> MirroredStateStore:
    """A store that has taken the mirror over; `is_lost`: by now another agent has the log."""
    await asyncio.to_thread(directory.mkdir, exist_ok=True)
    states = MirroredStateStore(directory, mirror)

    async def confirm() -> None:
        if is_lost:
            raise LogHeldError("another agent holds this log")

    await states.take_over(names, owner=owner, confirm=confirm, from_another=from_another)
    return states


async def test_a_mirror_says_whose_it_is_and_the_state_does_not(tmp_path: Path) -> None:
    mirror = FakeObjectStore()
    states = await taken_over(tmp_path / "one", mirror, "one")
    await states.save("phase", STATE)
    assert json.loads(mirror.objects["state/phase.json"]) == {**STATE, "revision": 1, "mirrored_by": "one"}
    assert await states.load("phase") == STATE
    assert await MirroredStateStore(tmp_path, mirror).load("phase") == STATE


async def test_a_mirror_that_another_has_taken_over_is_not_overwritten(tmp_path: Path) -> None:
    mirror = FakeObjectStore()
    first = await taken_over(tmp_path / "one", mirror, "one", is_lost=True)
    await first.save("phase", STATE)
    second = await taken_over(tmp_path / "two", mirror, "two", from_another=True)
    with pytest.raises(LogHeldError):
        await first.save("phase", {"version": 1, "stale": True})
    assert json.loads(mirror.objects["state/phase.json"]) == {**STATE, "revision": 1, "mirrored_by": "two"}
    await second.save("phase", {"version": 1, "n": 2})
    assert json.loads(mirror.objects["state/phase.json"]) == {
        "version": 1,
        "n": 2,
        "revision": 2,
        "mirrored_by": "two",
    }


async def test_whoever_holds_the_log_replaces_what_a_ghost_has_left(tmp_path: Path) -> None:
    mirror = FakeObjectStore()
    states = await taken_over(tmp_path / "one", mirror, "one")
    await states.save("phase", STATE)
    mirror.objects["state/phase.json"] = b'{"version": 1, "mirrored_by": "a ghost"}'
    await states.save("phase", {"version": 1, "n": 2})
    assert json.loads(mirror.objects["state/phase.json"]) == {
        "version": 1,
        "n": 2,
        "revision": 2,
        "mirrored_by": "one",
    }


@pytest.mark.parametrize("from_another", [False, True])
async def test_of_disk_and_mirror_the_newer_one_is_taken(tmp_path: Path, *, from_another: bool) -> None:
    mirror = FakeObjectStore()
    first = await taken_over(tmp_path / "one", mirror, "one")
    await first.save("phase", {"version": 1, "n": "mirrored"})
    await first.save("phase", {"version": 1, "n": "on disk"}, mirrors=False)
    again = await taken_over(tmp_path / "one", mirror, "again", from_another=from_another)
    wanted = {"version": 1, "n": "mirrored" if from_another else "on disk"}
    assert await again.load("phase") == wanted
    assert json.loads(mirror.objects["state/phase.json"]) == {
        **wanted,
        "revision": 1 if from_another else 2,
        "mirrored_by": "again",
    }


async def test_a_new_disk_has_the_state_at_once(tmp_path: Path) -> None:
    mirror = FakeObjectStore()
    await (await taken_over(tmp_path / "one", mirror, "one")).save("phase", STATE)
    second = await taken_over(tmp_path / "two", mirror, "two", from_another=True)
    mirror.objects.clear()
    assert await second.load("phase") == STATE


async def copied(directory: Path, to: Path) -> Path:
    """Copy a state directory, as a snapshot of its disk does."""
    await asyncio.to_thread(shutil.copytree, directory, to)
    return to


def states_in(directory: Path) -> dict[str, object]:
    return {path.stem: json.loads(path.read_bytes())["n"] for path in directory.glob("*.json")}


NAMES = ("phase", "restore_checkpoint", "stream_gap")


async def test_a_disk_that_is_older_than_its_mirrors_becomes_what_they_are(tmp_path: Path) -> None:
    mirror = FakeObjectStore()
    first = await taken_over(tmp_path / "one", mirror, "one", names=NAMES)
    for name in NAMES[:2]:
        await first.save(name, {"version": 1, "n": "at the snapshot"})
    snapshot = await copied(tmp_path / "one", tmp_path / "two")
    await first.delete("restore_checkpoint")
    await first.save("phase", {"version": 1, "n": "later"})
    await first.save("stream_gap", {"version": 1, "n": "later"})
    second = await taken_over(snapshot, mirror, "two", names=NAMES)
    assert states_in(snapshot) == {"phase": "later", "stream_gap": "later"}
    assert await second.load("restore_checkpoint") is None
    assert await second.load("phase") == {"version": 1, "n": "later"}


async def test_a_disk_that_is_newer_than_its_mirrors_keeps_what_they_lack(tmp_path: Path) -> None:
    mirror = FakeObjectStore()
    first = await taken_over(tmp_path / "one", mirror, "one", names=NAMES)
    await first.save("phase", {"version": 1, "n": 1})
    await first.save("stream_gap", {"version": 1, "n": "only on disk"}, mirrors=False)
    again = await taken_over(tmp_path / "one", mirror, "again", names=NAMES)
    assert await again.load("stream_gap") == {"version": 1, "n": "only on disk"}
    assert json.loads(mirror.objects["state/stream_gap.json"])["n"] == "only on disk"


async def test_a_disk_that_dies_while_it_becomes_what_the_mirrors_are_is_still_the_older_one(tmp_path: Path) -> None:
    for deaths in range(1, 12):
        folder = tmp_path / str(deaths)
        await asyncio.to_thread(folder.mkdir)
        mirror = FakeObjectStore()
        first = await taken_over(folder / "one", mirror, "one", names=NAMES)
        for name in NAMES[:2]:
            await first.save(name, {"version": 1, "n": "at the snapshot"})
        snapshot = await copied(folder / "one", folder / "two")
        await first.save("phase", {"version": 1, "n": "later"})
        await first.delete("restore_checkpoint")
        await first.save("stream_gap", {"version": 1, "n": "later"})
        with suppress(DiedError):
            await taken_over(snapshot, mortal(mirror, Life(deaths)), "two", names=NAMES)
        await taken_over(snapshot, mirror, "three", names=NAMES)
        assert states_in(snapshot) == {"phase": "later", "stream_gap": "later"}


@pytest.mark.parametrize("from_another", [False, True])
async def test_states_without_a_number_are_told_by_their_tenure_alone(tmp_path: Path, *, from_another: bool) -> None:
    mirror = FakeObjectStore()
    mirror.objects["state/phase.json"] = b'{"version": 1, "n": "mirrored", "mirrored_by": "an earlier version"}'
    (tmp_path / "phase.json").write_text('{"version": 1, "n": "on disk"}', encoding="utf-8")
    states = await taken_over(tmp_path, mirror, "one", from_another=from_another)
    assert await states.load("phase") == {"version": 1, "n": "mirrored" if from_another else "on disk"}


async def test_a_bucket_without_any_state_takes_nothing_from_the_disk(tmp_path: Path) -> None:
    states = await taken_over(tmp_path / "one", FakeObjectStore(), "one")
    await states.save("phase", STATE)
    moved = await taken_over(tmp_path / "one", FakeObjectStore(), "two", from_another=True)
    assert await moved.load("phase") == STATE
