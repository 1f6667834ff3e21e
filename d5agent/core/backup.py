"""Backups: where a dump stands in the store, its manifest, and which versions of mongodump may be used."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.operation import ClusterTime

DUMPS: Final = "dump/"
_DONE: Final = re.compile(r"done dumping (?P<collection>.+) \((?P<count>\d+) documents?\)$")
_VERSION: Final = re.compile(r"mongodump version: (?P<version>\S+)")
_FAILS_ON_DOCUMENTDB: Final = ((100, 7, 0), (100, 7, 3))  # asks for atlasVersion; mended in 100.7.4


def archive_key(run_id: str, side: str, database: str) -> str:
    """Return the key of one database's archive."""
    return f"{DUMPS}{run_id}/{side}/{quote(database, safe='')}.archive.gz"


def manifest_key(run_id: str, side: str) -> str:
    """Return the key of a side's manifest: without it there is no backup of that side."""
    return f"{DUMPS}{run_id}/{side}/manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One database's dump as it was stored. `documents` by collection, as mongodump reported them."""

    database: str
    key: str
    bytes: int
    sha256: str
    documents: Mapping[str, int]


def encode_manifest(
    *, run_id: str, side: str, operation_time: ClusterTime, tool_version: str, archives: list[Archive]
) -> bytes:
    """Return the manifest of a side. `operation_time` is the server's before the first dump began."""
    body = {
        "version": 1,
        "run_id": run_id,
        "side": side,
        "operation_time": operation_time,
        "mongodump": tool_version,
        "archives": [asdict(archive) for archive in archives],
    }
    return json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"


def parse_progress(line: str) -> tuple[str, int] | None:
    """Return (collection, documents) of a line that says that a collection is done; None for any other line."""
    match = _DONE.search(line)
    return None if match is None else (match["collection"], int(match["count"]))


def parse_version(text: str) -> str:
    """Return the version that `mongodump --version` tells; OperatorError when it tells none."""
    match = _VERSION.search(text)
    if match is None:
        raise OperatorError("this is no mongodump", hint="install MongoDB Database Tools 100.11.0")
    return match["version"]


def check_version(version: str, *, flavor: str) -> None:
    """Raise OperatorError for a version that cannot dump a server of this flavor (AWS: up to 100.11)."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    lowest, highest = _FAILS_ON_DOCUMENTDB
    if flavor == "documentdb" and lowest <= numbers <= highest:
        raise OperatorError(
            f"mongodump {version} fails on Amazon DocumentDB",
            hint="install MongoDB Database Tools 100.11.0 (100.7.0 to 100.7.3 ask for what DocumentDB has not)",
        )
