"""The state directory as such: its agent's id, the tenures that it belongs to, and where it is."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from d5agent.errors import CorruptDataError
from d5agent.runtime.disk import Disk

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_disk_keeps_its_agent_and_its_tenures(tmp_path: Path) -> None:
    disk = Disk.open(tmp_path)
    assert disk.tenures == ()
    disk.keep(disk.agent_id, "before", "now")
    again = Disk.open(tmp_path)
    assert (again.agent_id, again.tenures) == (disk.agent_id, ("before", "now"))


def test_a_disk_of_an_earlier_version_belongs_to_no_tenure(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text(json.dumps({"version": 1, "agent_id": "one"}), encoding="utf-8")
    disk = Disk.open(tmp_path)
    assert (disk.agent_id, disk.tenures) == ("one", ())


def test_a_damaged_identity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text('{"version": 1}', encoding="utf-8")
    with pytest.raises(CorruptDataError, match="a state file is damaged") as refused:
        Disk.open(tmp_path)
    assert refused.value.facts["path"] == tmp_path / "agent.json"


def test_a_copy_and_another_boot_are_other_places(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    disk = Disk.open(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = Disk.open(tmp_path / "two")
    assert copy.agent_id == disk.agent_id
    assert disk.place("boot") == Disk.open(tmp_path / "one").place("boot")
    assert len({disk.place("boot"), copy.place("boot"), disk.place("another boot")}) == 3
