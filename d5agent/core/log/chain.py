"""The log: commits that publish segments, chained by hash. What no commit names does not exist."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from bson import decode, encode
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps, loads

from d5agent.core.log.naming import LOG, SEGMENTS, commit_key
from d5agent.core.log.operation import OWN_DATABASE, ClusterTime, Position
from d5agent.core.log.segment import SegmentRef
from d5agent.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

VERSION: Final = 1
VERSION_WITH_RENAMES: Final = 2
"""Of a commit in which a rename stands beside other operations. Readers before this version refuse it by name: one that
dies right after such a rename would pass over the operations that follow it in the commit (ADR 46)."""
ROLLUP_SIZE: Final = 1000
ROLLUPS: Final = f"{LOG}rollup/"
_OWN: Final = f"{SEGMENTS}{OWN_DATABASE}/"
_BROKEN: Final = "nothing was written; the stored operations stay as they are: d5agent log verify names each fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What the log holds from its beginning up to and including a commit."""

    operations: int = 0
    bytes: int = 0
    segments: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterIdentity:
    """Who wrote a commit: the run (one failback), the agent's own id, its host, and since when it writes."""

    run_id: str
    agent_id: str
    host: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One step of the log: these segments exist, and the stream goes on at this position.

    `begins_after`: the source's time when the log was begun; what happened up to then does not belong to it (ADR 32).
    `renames_within`: it holds a rename and other operations.
    """

    sequence: int
    writer: WriterIdentity
    written_at: str
    previous: str | None
    segments: tuple[SegmentRef, ...]
    position: Position
    total: Total
    begins_after: ClusterTime | None = None
    renames_within: bool = False

    @property
    def key(self) -> str:
        """Its name in the store."""
        return commit_key(self.sequence)


def token_to_json(token: bytes | None) -> Any:  # noqa: ANN401 -- a JSON value of the server's making
    """Return a resume token as canonical Extended JSON, so that an operator can paste it into a shell."""
    return None if token is None else json.loads(dumps(decode(token), json_options=CANONICAL_JSON_OPTIONS))


def token_from_json(value: object) -> bytes | None:
    """Return the raw BSON of a token that `token_to_json` wrote."""
    return None if value is None else encode(loads(json.dumps(value), json_options=CANONICAL_JSON_OPTIONS))


def encode_commit(commit: Commit) -> bytes:
    """Return the commit's bytes: one line of JSON, the same for the same commit."""
    body: dict[str, Any] = {
        "version": VERSION_WITH_RENAMES if commit.renames_within else VERSION,
        "sequence": commit.sequence,
        **asdict(commit.writer),
        "written_at": commit.written_at,
        "previous": commit.previous,
        "segments": [asdict(ref) for ref in commit.segments],
        "position": {
            "cluster_time": commit.position.cluster_time,
            "token": token_to_json(commit.position.token),
        },
        "total": asdict(commit.total),
    }
    if commit.begins_after is not None:
        body["begins_after"] = commit.begins_after
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def decode_commit(body: bytes, *, key: str) -> Commit:
    """Return the commit that these bytes are; CorruptDataError when they are none of a version that we read."""
    try:
        fields = json.loads(body)
        if fields["version"] not in {VERSION, VERSION_WITH_RENAMES}:
            raise CorruptDataError(
                "a commit of another version",
                hint="run the d5agent version that wrote it, or a newer one",
                key=key,
                version=fields["version"],
            )
        return Commit(
            sequence=fields["sequence"],
            writer=WriterIdentity(**{name: fields[name] for name in ("run_id", "agent_id", "host", "since")}),
            written_at=fields["written_at"],
            previous=fields["previous"],
            segments=tuple(
                SegmentRef(**{**ref, "first": ClusterTime(*ref["first"]), "last": ClusterTime(*ref["last"])})
                for ref in fields["segments"]
            ),
            position=Position(
                cluster_time=ClusterTime(*fields["position"]["cluster_time"]),
                token=token_from_json(fields["position"]["token"]),
            ),
            total=Total(**fields["total"]),
            begins_after=ClusterTime(*fields["begins_after"]) if "begins_after" in fields else None,
            renames_within=fields["version"] == VERSION_WITH_RENAMES,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError("an object of the log is no commit", hint=_BROKEN, key=key) from error


def digest(body: bytes) -> str:
    """Return the sha256 that the next commit names as its `previous`."""
    return hashlib.sha256(body).hexdigest()


def grown(total: Total, segments: Iterable[SegmentRef]) -> Total:
    """Return the total with some more segments."""
    refs = tuple(segments)
    return Total(
        operations=total.operations + sum(ref.count for ref in refs),
        bytes=total.bytes + sum(ref.bytes for ref in refs),
        segments=total.segments + len(refs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A commit as it was read, with the hash of its bytes."""

    commit: Commit
    digest: str


def is_own(ref: SegmentRef) -> bool:
    """Whether a segment holds the agent's own marks."""
    return ref.key.startswith(_OWN)


def foreign_operations(commit: Commit) -> int:
    """Return how many of a commit's operations are not the agent's own marks."""
    return sum(ref.count for ref in commit.segments if not is_own(ref))


def check_link(before: Link | None, link: Link) -> None:
    """Raise CorruptDataError unless `link` is what follows `before` in the chain (None: the beginning).

    A log begins with the commit that has none before it. Its number goes on from the run before.
    """
    commit = link.commit
    expected = commit.sequence if before is None else before.commit.sequence + 1
    if before is None and commit.previous is not None and commit.sequence:
        expected = commit.sequence - 1
    if commit.sequence != expected:
        raise CorruptDataError(
            "a commit is missing in the log", hint=_BROKEN, missing=commit_key(expected), found=commit.key
        )
    if commit.previous != (None if before is None else before.digest):
        raise CorruptDataError("the chain of commits is broken", hint=_BROKEN, key=commit.key, previous=commit.previous)
    if commit.total != grown(Total() if before is None else before.commit.total, commit.segments):
        raise CorruptDataError("a commit's totals do not add up", hint=_BROKEN, key=commit.key)
    if before is not None and commit.position.cluster_time < before.commit.position.cluster_time:
        raise CorruptDataError("a commit goes back in time", hint=_BROKEN, key=commit.key)


def rollup_key(first: int) -> str:
    """Return the key of the roll-up that holds ROLLUP_SIZE commits from `first` on."""
    return f"{ROLLUPS}{first:012d}.jsonl"


def is_rollup_due(sequence: int) -> bool:
    """Whether this commit completes a thousand."""
    return (sequence + 1) % ROLLUP_SIZE == 0


def encode_rollup(bodies: Sequence[bytes]) -> bytes:
    """Return a roll-up: the commits' own lines, unchanged, one after the other."""
    return b"".join(bodies)


def decode_rollup(body: bytes) -> Iterator[bytes]:
    """Yield the bytes of each commit of a roll-up."""
    yield from body.splitlines(keepends=True)


def is_commit_key(key: str) -> bool:
    """Whether a key below the log's is a commit's."""
    name = key.removeprefix(LOG)
    return name.endswith(".json") and name[:12].isdigit()


def key_before(sequence: int) -> str:
    """Return the key after which a listing begins with the commit of that number."""
    return commit_key(sequence - 1) if sequence else LOG


def sequence_of(key: str) -> int:
    """Return a commit's sequence number, from its key."""
    return int(key.removeprefix(LOG).split(".")[0])


def first_of_rollup(key: str) -> int:
    """Return the first sequence number in a roll-up, from its key."""
    return int(key.removeprefix(ROLLUPS).split(".")[0])
