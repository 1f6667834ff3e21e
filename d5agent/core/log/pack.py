"""A pack: the small segments of a thousand commits in one object, so that a trickle's log is read with few requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bson import decode, encode
from bson.errors import BSONError

from d5agent.core.log.chain import ROLLUPS
from d5agent.core.log.raw import split_documents
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from d5agent.core.log.chain import Commit
    from d5agent.core.log.segment import SegmentRef

_SMALL_BYTES: Final = 16 * 1024  # a larger segment is worth a request of its own
_MOST_BYTES: Final = 16 * 1024 * 1024


def pack_key(first: int, part: int = 1) -> str:
    """Return the key of the pack of the thousand commits from `first` on, or of a further part of it."""
    return f"{ROLLUPS}{first:012d}{'' if part == 1 else f'_{part}'}.bson"


def is_small(ref: SegmentRef) -> bool:
    """Whether a segment belongs into a pack."""
    return ref.bytes <= _SMALL_BYTES


def to_packs(commits: Iterable[Commit]) -> list[list[SegmentRef]]:
    """Return the small segments of some commits by the parts of their pack, in order: 16 MiB a part, one at least."""
    parts: list[list[SegmentRef]] = [[]]
    size = 0
    for ref in (ref for commit in commits for ref in commit.segments if is_small(ref)):
        if size + ref.bytes > _MOST_BYTES:
            parts.append([])
            size = 0
        size += ref.bytes
        parts[-1].append(ref)
    return parts


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
