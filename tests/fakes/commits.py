"""A first commit and what follows it, for tests of the log's rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bson import encode

from d5agent.core.log.chain import Commit, Link, Total, WriterIdentity, digest, encode_commit
from d5agent.core.log.operation import ClusterTime, Position
from d5agent.core.log.segment import SegmentRef

WRITER: Final = WriterIdentity(run_id="run", agent_id="agent", host="host", since="2026-11-02T08:00:00.000+00:00")
OTHER: Final = WriterIdentity(
    run_id="other run", agent_id="other", host="other host", since="2026-11-02T07:00:00.000+00:00"
)
SECONDS: Final = 1_793_600_000
TOKEN: Final = encode({"_data": "00ff"})
SEGMENT: Final = SegmentRef(
    key="replication/shop/größe/1793600000-0000000001_1.bson",
    count=3,
    bytes=120,
    sha256="ab" * 32,
    first=ClusterTime(SECONDS, 1),
    last=ClusterTime(SECONDS, 2),
)
MARK: Final = replace(SEGMENT, key="replication/d5agent/marks/1793600000-0000000001_1.bson", count=1)
FIRST: Final = Commit(
    sequence=0,
    writer=WRITER,
    written_at="2026-11-02T08:00:01.000+00:00",
    previous=None,
    segments=(SEGMENT, MARK),
    position=Position(cluster_time=ClusterTime(SECONDS, 2), token=TOKEN),
    total=Total(operations=4, bytes=240, segments=2),
)


# What tests/data holds of a segment: its bytes are those of an earlier version.
GOLDEN_SEGMENT: Final = SegmentRef(
    key="replication/shop/orders/1793600000-0000000001_1.bson",
    count=4,
    bytes=753,
    sha256="8ff59a6eb08c2d84b4e2a9d2d92945b53f0ffd91ebbd0d68f9fb69de1d8cde33",
    first=ClusterTime(SECONDS, 1),
    last=ClusterTime(SECONDS, 4),
)


def link(commit: Commit) -> Link:
    return Link(commit=commit, digest=digest(encode_commit(commit)))


def following(before: Commit) -> Commit:
    return replace(before, sequence=before.sequence + 1, previous=link(before).digest, segments=())
