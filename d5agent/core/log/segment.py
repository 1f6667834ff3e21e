"""A segment: consecutive operations of one namespace, or of several quiet ones, as one object of BSON events."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeVar

from d5agent.core.log.glance import Change, Event, Touch, change_at, touch_at
from d5agent.core.log.naming import segment_key
from d5agent.core.log.operation import ClusterTime, Namespace, Operation, parse_event
from d5agent.core.log.raw import DocumentId, document_ends
from d5agent.errors import CorruptDataError

if sys.version_info >= (3, 14):  # pragma: no cover -- tests run on 3.11, the oldest that is supported
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Parsed = TypeVar("_Parsed")
_time_of: Final = attrgetter("cluster_time")

_PLAIN: Final = ".bson"
_COMPRESSED: Final = ".bson.zst"
_LOOK: Final = "d5agent log verify shows the extent of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRef:
    """What a commit says of one of its segments. `bytes` is the size of the object, `sha256` of its content."""

    key: str
    count: int
    bytes: int
    sha256: str
    first: ClusterTime
    last: ClusterTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Operations ready to be stored. The body is what the server sent, joined; namespace None: it holds several."""

    namespace: Namespace | None
    document_id: DocumentId | None
    count: int
    first: ClusterTime
    last: ClusterTime
    body: bytes
    is_compressed: bool = False

    def key(self, *, ordinal: int = 1) -> str:
        """Return the key to store it under; the ordinal tells apart what shares time and document."""
        suffix = _COMPRESSED if self.is_compressed else _PLAIN
        return segment_key(self.namespace, self.first, self.document_id, ordinal=ordinal, suffix=suffix)

    def ref(self, key: str) -> SegmentRef:
        """Return what the commit will say of it, stored under `key`."""
        digest = hashlib.sha256(self.body).hexdigest()
        return SegmentRef(
            key=key, count=self.count, bytes=len(self.body), sha256=digest, first=self.first, last=self.last
        )


def encode_segment(operations: Sequence[Operation | Event]) -> Segment:
    """Return the segment of some operations, all of one namespace and in order; there is at least one."""
    return Segment(
        namespace=operations[0].namespace,
        document_id=operations[0].document_id,
        count=len(operations),
        first=operations[0].cluster_time,
        last=operations[-1].cluster_time,
        body=b"".join([operation.raw for operation in operations]),
    )


def mixed_segment(parts: Sequence[Sequence[Operation | Event]]) -> Segment:
    """Return one segment of the operations of several namespaces; no two parts have one in common.

    A part is in order, not always by time: before a barrier joined its collections, these had no order.
    """
    operations = [operation for part in parts for operation in part]
    earliest = min(operations, key=_time_of)
    return Segment(
        namespace=None,
        document_id=earliest.document_id,
        count=len(operations),
        first=earliest.cluster_time,
        last=max(map(_time_of, operations)),
        body=b"".join([operation.raw for operation in operations]),
    )


def compressed(segment: Segment) -> Segment:
    """Return the segment with its body as one Zstandard frame (RFC 8878)."""
    return replace(segment, body=zstd.compress(segment.body), is_compressed=True)


def is_intact(ref: SegmentRef, body: bytes) -> bool:
    """Whether these bytes are those that a commit tells of."""
    return len(body) == ref.bytes and hashlib.sha256(body).hexdigest() == ref.sha256


def decode_segment(ref: SegmentRef, body: bytes) -> Iterator[Operation]:
    """Yield the operations of a stored segment, in order.

    Raises CorruptDataError, before the first one, when the bytes are not those that the commit tells of.
    """
    return _decode(ref, body, lambda events, start, end: parse_event(events[start:end]))


def decode_changes(ref: SegmentRef, body: bytes) -> Iterator[Change | Operation]:
    """Yield what replay needs of a stored segment's operations, in order. CorruptDataError: as above."""
    return _decode(ref, body, change_at)


def touches_of(ref: SegmentRef, body: bytes) -> Iterator[Touch]:
    """Yield what the operations of a stored segment touch, in order. CorruptDataError: as above."""
    return _decode(ref, body, touch_at)


def _decode(ref: SegmentRef, body: bytes, parse: Callable[[bytes, int, int], _Parsed]) -> Iterator[_Parsed]:
    if not is_intact(ref, body):
        raise CorruptDataError(
            "a segment is not what its commit says",
            hint="restore the object's version whose sha256 the commit names (bucket versioning), then run it again",
            key=ref.key,
            bytes=len(body),
            expected=ref.bytes,
        )
    content = _content(ref, body)
    try:
        ends = list(document_ends(content))
        if len(ends) == ref.count:
            for start, end in zip([0, *ends], ends, strict=False):
                yield parse(content, start, end)
            return
    except CorruptDataError as error:
        raise CorruptDataError("a segment holds what is no event", hint=_LOOK, key=ref.key) from error
    raise CorruptDataError(
        "a segment holds another number of operations than its commit says",
        hint=_LOOK,
        key=ref.key,
        count=len(ends),
        expected=ref.count,
    )


def _content(ref: SegmentRef, body: bytes) -> bytes:
    if not ref.key.endswith(_COMPRESSED):
        return body
    try:
        return zstd.decompress(body)
    except zstd.ZstdError as error:
        raise CorruptDataError("a compressed segment cannot be read", hint=_LOOK, key=ref.key) from error
