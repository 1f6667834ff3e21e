"""The state directory as such: whose it is, in which tenure of the log it was written, and where it is.

A copy of it, such as a disk restored from a snapshot, holds the same files. So the agent's id tells nothing: the copy
belongs to an older tenure, or is in another place, and it is a stranger then.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from d5agent.adapters.state import read_state_file, write_state_file
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from pathlib import Path

_IDENTITY: Final = "agent.json"
_VERSION: Final = 1


@dataclass(slots=True, kw_only=True)
class Disk:
    """One state directory. `tenures`: those in which its states were the newest; the last one may never have begun."""

    directory: Path
    agent_id: str
    tenures: tuple[str, ...] = ()

    @classmethod
    def open(cls, directory: Path) -> Disk:
        """Return what the directory says of itself; a new one gets an agent id. CorruptDataError: it is damaged."""
        known = read_state_file(directory / _IDENTITY)
        if known is None:
            disk = cls(directory=directory, agent_id=str(uuid.uuid4()))
            disk.keep(disk.agent_id)
            return disk
        if not known.get("agent_id"):
            path = directory / _IDENTITY
            raise CorruptDataError("a state file is damaged", hint="move it aside: a new one is made", path=path)
        return cls(directory=directory, agent_id=str(known["agent_id"]), tenures=tuple(known.get("tenures", ())))

    def place(self, boot_id: str) -> str:
        """Return where the directory is. A copy is in another place, and so is each after a start of the machine."""
        found = self.directory.stat()
        return f"{boot_id} {found.st_dev}:{found.st_ino}"

    def keep(self, agent_id: str, *tenures: str) -> None:
        """Write down whose the states are from now on."""
        write_state_file(self.directory / _IDENTITY, {"version": _VERSION, "agent_id": agent_id, "tenures": [*tenures]})
        self.agent_id, self.tenures = agent_id, tenures
