"""mongodump, as it is told what to do and as it speaks: which versions may be used, its output."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from d5agent.errors import OperatorError

SUPPORTED: Final = "100.11.0"  # AWS: MongoDB Database Tools up to this one
INSTALL: Final = (
    f"install MongoDB Database Tools {SUPPORTED} (package mongodb-database-tools), or name the program: "
    "[backup] mongodump"
)
_VERSION: Final = re.compile(r"mongodump version: (?P<version>\S+)")
_FAILS_ON_DOCUMENTDB: Final = ((100, 7, 0), (100, 7, 3))  # they ask for atlasVersion; mended in 100.7.4
_LAST_SUPPORTED: Final = (100, 11)
_STAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\S+\t")
_DONE: Final = re.compile(r"done dumping (?P<collection>.+) \((?P<count>\d+) documents?\)$", re.DOTALL)
_BAR: Final = re.compile(r"^\[[#.]+\]\s+(?P<collection>\S.*?)\s+(?P<count>\d+)/\d+\s+\([\d.]+%\)$", re.DOTALL)


def parse_version(text: str) -> str:
    """Return the version that `mongodump --version` tells; OperatorError when it tells none."""
    match = _VERSION.search(text)
    if match is None:
        raise OperatorError("this is no mongodump", hint=INSTALL)
    return match["version"]


def check_version(version: str, *, flavor: str) -> str:
    """Return what is to be said against dumping a server of this flavor with it, or nothing.

    OperatorError: it fails there.
    """
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    lowest, highest = _FAILS_ON_DOCUMENTDB
    if flavor != "documentdb":
        return ""
    if lowest <= numbers <= highest:
        raise OperatorError(
            f"mongodump {version} fails on Amazon DocumentDB",
            hint=f"{INSTALL} (100.7.0 to 100.7.3 use a parameter that DocumentDB lacks)",
        )
    if numbers[:2] > _LAST_SUPPORTED:
        return f"AWS supports MongoDB Database Tools up to {SUPPORTED} on DocumentDB; this is {version}"
    return ""


@dataclass(slots=True)
class DumpProgress:
    """What a running mongodump has said on its standard error, line by line. Documents by collection."""

    done: dict[str, int] = field(default_factory=dict)
    under_way: dict[str, int] = field(default_factory=dict)
    _said: str = ""

    @property
    def documents(self) -> int:
        """How many documents it has dumped so far."""
        return sum(self.done.values()) + sum(self.under_way.values())

    def feed(self, line: str) -> None:
        """Take one line; a name with a line break in it comes as two, and only the first bears a time."""
        stamp = _STAMP.match(line)
        self._said = line[stamp.end() :] if stamp else f"{self._said}\n{line}"
        if (match := _DONE.match(self._said)) is not None:
            self.done[match["collection"]] = int(match["count"])
            self.under_way.pop(match["collection"], None)
        elif (match := _BAR.match(self._said)) is not None:
            self.under_way[match["collection"]] = int(match["count"])
