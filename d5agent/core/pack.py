"""A pack: the small segments of a thousand commits in one object, so that a trickle's log is read with few requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bson import decode, encode
from bson.errors import BSONError

from d5agent.core.log import ROLLUPS
from d5agent.core.raw import split_documents
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from d5agent.core.log import Commit
    from d5agent.core.segment import SegmentRef

_SMALL_BYTES: Final = 16 * 1024  # a larger segment is worth a request of its own
_MOST_BYTES: Final = 16 * 1024 * 1024


def pack_key(first: int) -> str:
    """Return the key of the pack of the thousand commits from `first` on."""
    return f"{ROLLUPS}{first:012d}.bson"


def to_pack(commits: Iterable[Commit]) -> Iterator[SegmentRef]:
    """Yield those segments of some commits that belong into their pack: small ones, in order, 16 MiB in all."""
    size = 0
    for commit in commits:
        for ref in commit.segments:
            if ref.bytes <= _SMALL_BYTES and size + ref.bytes <= _MOST_BYTES:
                size += ref.bytes
                yield ref


def encode_pack(segments: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a pack of keys and bodies: one BSON document `{key, body}` a segment, in order."""
    return b"".join(encode({"key": key, "body": body}) for key, body in segments)


def decode_pack(pack: bytes, *, key: str) -> dict[str, bytes]:
    """Return the bodies of a pack by their keys; CorruptDataError: it is none."""
    found: dict[str, bytes] = {}
    try:
        for document in split_documents(pack):
            entry: dict[str, Any] = decode(document)
            name, body = entry["key"], entry["body"]
            if not isinstance(name, str) or not isinstance(body, bytes):
                raise damaged_pack(key)
            found[name] = body
    except (BSONError, KeyError, CorruptDataError) as error:
        raise damaged_pack(key) from error
    return found


def damaged_pack(key: str) -> CorruptDataError:
    """Return the error of a pack that does not hold what it should: a copy, which nothing depends on."""
    return CorruptDataError(
        "a pack of segments is damaged",
        hint="delete it: its segments are stored beside it, and the log is read from them",
        key=key,
    )
