"""A segment: consecutive operations of one namespace, as one object of concatenated BSON events."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d5agent.core.naming import segment_key
from d5agent.core.operation import ClusterTime, Namespace, Operation, parse_event
from d5agent.core.raw import DocumentId, split_documents
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


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
    """Operations of one namespace, ready to be stored. The body is what the server sent, joined."""

    namespace: Namespace
    document_id: DocumentId | None
    count: int
    first: ClusterTime
    last: ClusterTime
    body: bytes

    def key(self, *, ordinal: int = 1) -> str:
        """Return the key to store it under; the ordinal tells apart what shares time and document."""
        return segment_key(self.namespace, self.first, self.document_id, ordinal=ordinal)

    def ref(self, key: str) -> SegmentRef:
        """Return what the commit will say of it, stored under `key`."""
        digest = hashlib.sha256(self.body).hexdigest()
        return SegmentRef(
            key=key, count=self.count, bytes=len(self.body), sha256=digest, first=self.first, last=self.last
        )


def encode_segment(operations: Sequence[Operation]) -> Segment:
    """Return the segment of some operations, all of one namespace and in order; there is at least one."""
    return Segment(
        namespace=operations[0].namespace,
        document_id=operations[0].document_id,
        count=len(operations),
        first=operations[0].cluster_time,
        last=operations[-1].cluster_time,
        body=b"".join(operation.raw for operation in operations),
    )


def decode_segment(ref: SegmentRef, body: bytes) -> Iterator[Operation]:
    """Yield the operations of a stored segment, in order.

    Raises CorruptDataError, before the first one, when the bytes are not those that the commit tells of.
    """
    if len(body) != ref.bytes or hashlib.sha256(body).hexdigest() != ref.sha256:
        raise CorruptDataError(
            "a segment is not what its commit says",
            hint="restore the object's version whose sha256 the commit names (bucket versioning), then run it again",
            key=ref.key,
            bytes=len(body),
            expected=ref.bytes,
        )
    events = list(split_documents(body))
    if len(events) != ref.count:
        raise CorruptDataError(
            "a segment holds another number of operations than its commit says",
            hint="d5agent log verify shows the extent of it",
            key=ref.key,
            count=len(events),
            expected=ref.count,
        )
    yield from map(parse_event, events)
