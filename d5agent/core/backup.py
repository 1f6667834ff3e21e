"""Backups: where the dump of a database stands in the store, and the manifest of a side's dumps, which comes last."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from d5agent.core.log.operation import ClusterTime
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DUMPS: Final = "dump/"
SIDES: Final = ("target", "source")  # in the order in which they are dumped: restore waits for the target's
NOT_INCLUDED: Final = ("users and roles", "the databases admin, config, local and d5agent")
_FORMAT: Final = 1
_RECORD: Final = ".archive.json"
_MEBIBYTE: Final = 1024 * 1024
_SMALL_PARTS: Final = 2_000
_MOST_PARTS: Final = 10_000  # of a multipart upload (S3's limits)


def run_folder(run_id: str) -> str:
    """Return what the keys of a run's backup begin with."""
    return f"{DUMPS}{run_id}/"


def archive_key(run_id: str, side: str, database: str) -> str:
    """Return the key of one database's archive."""
    return f"{run_folder(run_id)}{side}/{quote(database, safe='')}.archive.gz"


def record_key(run_id: str, side: str, database: str) -> str:
    """Return the key of what is known of an archive: with it, the database need not be dumped again."""
    return f"{run_folder(run_id)}{side}/{quote(database, safe='')}{_RECORD}"


def is_record(key: str) -> bool:
    """Whether it is the key of what is known of an archive."""
    return key.endswith(_RECORD)


def manifest_key(run_id: str, side: str) -> str:
    """Return the key of a side's manifest: without it there is no backup of that side."""
    return f"{run_folder(run_id)}{side}/manifest.json"


def beginning_key(run_id: str) -> str:
    """Return the key of where the target's change stream was before the first byte of its dump was read."""
    return f"{run_folder(run_id)}target/beginning.json"


def part_bytes(number: int) -> int:
    """Return the size of an upload's part, from 1; OperatorError: S3 takes no more of them. All are 140 GiB."""
    if number > _MOST_PARTS:
        raise OperatorError(
            "the archive of this database is larger than 140 GiB",
            hint="dump this database by hand (mongodump), and leave it out: [backup] databases",
        )
    return 8 * _MEBIBYTE if number <= _SMALL_PARTS else 16 * _MEBIBYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One database's dump as it was stored. `documents` by collection, as mongodump reported them.

    `operation_time` is the server's before the dump began: all that was written before it is in the dump.
    """

    database: str
    key: str
    bytes: int
    sha256: str
    documents: Mapping[str, int]
    operation_time: ClusterTime
    stored_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A side's backup, whole. `operation_time`: the earliest of its archives'."""

    run_id: str
    side: str
    operation_time: ClusterTime
    stored_at: str
    mongodump: str
    server: str
    archives: Sequence[Archive]

    @property
    def bytes(self) -> int:
        """The archives' bytes."""
        return sum(archive.bytes for archive in self.archives)

    @property
    def documents(self) -> int:
        """The archives' documents."""
        return sum(sum(archive.documents.values()) for archive in self.archives)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "version": _FORMAT,
            **asdict(self),
            "bytes": self.bytes,
            "documents": self.documents,
            "not_included": list(NOT_INCLUDED),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where the target's change stream was before its dump began: what was written later, the dump may not hold.

    `position`: a resume token; None: the stream could not be read, and `why` not. `server`: whose dump it is.
    """

    position: bytes | None
    why: str
    at: str
    server: ServerFacts


def encode_beginning(beginning: Beginning) -> bytes:
    """Return what is stored before the target's first dump begins."""
    position, server = position_to_json(beginning.position), beginning.server.to_json()
    return _encode({"version": _FORMAT, **asdict(beginning), "position": position, "server": server})


def position_to_json(position: bytes | None) -> str | None:
    """Return a position in the target's change stream as text: base64 of its BSON."""
    return None if position is None else base64.b64encode(position).decode()


def position_from_json(value: str | None) -> bytes | None:
    """Return what `position_to_json` was given."""
    return None if value is None else base64.b64decode(value, validate=True)


def decode_beginning(body: bytes, key: str) -> Beginning:
    """Return what `encode_beginning` wrote; CorruptDataError names the key."""
    value = _decode(body, key)
    try:
        return Beginning(
            position=position_from_json(value["position"]),
            why=str(value["why"]),
            at=str(value["at"]),
            server=ServerFacts.from_json(value["server"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(key, error) from error


def encode_archive(archive: Archive) -> bytes:
    """Return what is stored beside an archive."""
    return _encode({"version": _FORMAT, **asdict(archive)})


def decode_archive(body: bytes, key: str) -> Archive:
    """Return what is known of an archive; CorruptDataError names the key."""
    return _archive(_decode(body, key), key)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest as it is stored."""
    return _encode(manifest.to_json())


def decode_manifest(body: bytes, key: str) -> Manifest:
    """Return a stored manifest; CorruptDataError names the key."""
    value = _decode(body, key)
    try:
        return Manifest(
            run_id=str(value["run_id"]),
            side=str(value["side"]),
            operation_time=ClusterTime(*value["operation_time"]),
            stored_at=str(value["stored_at"]),
            mongodump=str(value["mongodump"]),
            server=str(value["server"]),
            archives=tuple(_archive(archive, key) for archive in value["archives"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(key, error) from error


def _archive(value: Mapping[str, Any], key: str) -> Archive:
    try:
        return Archive(
            database=str(value["database"]),
            key=str(value["key"]),
            bytes=int(value["bytes"]),
            sha256=str(value["sha256"]),
            documents={str(name): int(count) for name, count in value["documents"].items()},
            operation_time=ClusterTime(*value["operation_time"]),
            stored_at=str(value["stored_at"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(key, error) from error


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _decode(body: bytes, key: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(body)
        is_known = value["version"] == _FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(key, error) from error
    if not is_known:
        raise CorruptDataError(
            "a backup of another format", hint="use the d5agent that wrote it", key=key, version=value["version"]
        )
    return value


def _damaged(key: str, error: Exception) -> CorruptDataError:
    return CorruptDataError(
        "what is known of a backup is damaged",
        hint="bring the object back (bucket versioning); without it the databases are dumped anew",
        key=key,
        reason=f"{type(error).__name__}: {error}",
    )
