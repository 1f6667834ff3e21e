"""The certificate that a restore ends with: what was compared, on which log. It shows when it was altered.

It names the log's last commit by its sha256. Each commit holds the sha256 of the one before, so this one number stands
for the whole log: the certificate belongs to that log and to no other. A sha256 over itself seals it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from d5agent.core.log.naming import REPORTS, commit_key
from d5agent.core.run.services import Verified
from d5agent.core.servers import ServerFacts
from d5agent.errors import CorruptDataError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from d5agent.core.compare.comparison import Comparison
    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.log.chain import Link
    from d5agent.core.log.operation import ClusterTime
    from d5agent.core.run.services import Fence, PhaseState
    from d5agent.core.run.timeline import Timeline

VERSION: Final = 2
_WITHOUT_EVIDENCE: Final = 1  # of agents that named neither the servers nor when what was compared
_SEAL: Final = "sha256"
_HINT: Final = (
    "nothing was deleted; bring the certificate's object back (bucket versioning), then type: d5agent start"
    " monitor-restore; without it the log goes only by d5agent start clean --force RUN"
)


def certificate_key(run_id: str, form: str = "json") -> str:
    """Return where the certificate of a run is; `form`: json or html."""
    return f"{REPORTS}{run_id}/certificate.{form}"


def proved_fence(state: PhaseState) -> Fence:
    """Return the fence that a certificate may rest on. OperatorError: it is not proved that the stream is drained."""
    fence = state.fence
    if fence is None:
        raise OperatorError(
            "restore has no fence: it is not proved that the stream is drained",
            hint="type: d5agent start restore, which starts monitor-replication first",
        )
    if not fence.marker:
        raise OperatorError(
            "the fence was drawn without a marker: it is not proved that the stream is drained",
            hint="type: d5agent start restore; in live mode then d5agent cutover",
            at=fence.at,
        )
    return fence


def end_of_stream(fence: Fence, *, operations_after: int, kept_since: ClusterTime | None = None) -> dict[str, Any]:
    """Return how it was proved that the log holds all that happened on the source before the fence.

    `operations_after`: so many operations of others the certified log holds behind the marker. `kept_since`: from when
    on it is proved that the stream has no gap; None: from the log's beginning.
    """
    return {
        "proof": "marker",
        "marker": fence.marker,
        "commit": commit_key(fence.sequence),
        "cluster_time": list(fence.cluster_time),
        "at": fence.at,
        "operations_after": operations_after,
        "kept_since": None if kept_since is None else list(kept_since),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a certificate rests on beside its report: both clusters, the log's first commit, when what was compared.

    `target_hold`: how others were kept from writing to the target. `outside`: what is known of the documents that the
    log does not touch; None: they were not compared. `overwritten`: where the documents are that no dump holds.
    """

    source: ServerFacts
    target: ServerFacts
    first: Link
    comparison: Comparison
    target_hold: Mapping[str, object] | None = None
    outside: Mapping[str, Any] | None = None
    overwritten: Mapping[str, Any] | None = None


def certificate_of(
    report: VerifyReport,
    link: Link,
    timeline: Timeline,
    *,
    evidence: Evidence,
    issuer: Mapping[str, str],
    read_only_since: str,
) -> dict[str, Any]:
    """Return the certificate, neither dated nor sealed yet. `link`: the last commit that was applied."""
    commit, first = link.commit, evidence.first
    return {
        "version": VERSION,
        "kind": "certificate",
        "run_id": report.run_id,
        "issued_by": dict(issuer),
        "log": {
            "sequence": commit.sequence,
            "key": commit.key,
            "sha256": link.digest,
            "cluster_time": list(commit.position.cluster_time),
            "operations": commit.total.operations,
            "segments": commit.total.segments,
            "bytes": commit.total.bytes,
            "first": {
                "sequence": first.commit.sequence,
                "key": first.commit.key,
                "sha256": first.digest,
                "cluster_time": list(first.commit.position.cluster_time),
            },
        },
        "servers": {"source": evidence.source.to_json(), "target": evidence.target.to_json()},
        "comparison": evidence.comparison.to_json(),
        "read_only_since": read_only_since,
        "result": report.to_json(),
        "timeline": timeline.to_json(),
    }


def sealed(certificate: Mapping[str, Any]) -> bytes:
    """Return the certificate's bytes, with the seal."""
    body = {**certificate, _SEAL: _seal_of(certificate)}
    return json.dumps(body, ensure_ascii=False, indent=1).encode(errors="backslashreplace") + b"\n"


def certified_log(body: bytes) -> tuple[str, str]:
    """Return when a certificate was issued, and the sha256 of the log's last commit that it names.

    OperatorError: it does not say that both databases are equal. CorruptDataError: it was altered.
    """
    certificate = _opened(body)
    if certificate["result"]["equal"] is not True:
        raise OperatorError("the certificate does not say that both databases are equal", hint=_HINT)
    return str(certificate.get("issued_at", "")), certificate["log"]["sha256"]


def check_certificate(body: bytes | None, link: Link) -> None:
    """Raise unless these bytes certify that both databases were equal at the end of this log.

    `link`: the log's commit with the sequence that the proof names; its hash stands for all before it. What came later
    is for the caller to look for. OperatorError: there is no certificate, or it does not say so. CorruptDataError: it
    was altered.
    """
    if body is None:
        raise OperatorError("there is no certificate that both databases are equal", hint=_HINT)
    certificate = _opened(body)
    if certificate["result"]["equal"] is not True:
        raise OperatorError("the certificate does not say that both databases are equal", hint=_HINT)
    log = certificate["log"]
    if (log["sequence"], log["sha256"]) != (link.commit.sequence, link.digest):
        raise OperatorError(
            "the certificate belongs to another log, or to another end of it",
            hint=_HINT,
            certified=log["key"],
            found=link.commit.key,
        )


def proof_of(body: bytes, fence: Fence, *, key: str) -> tuple[Verified, dict[str, Any]] | None:
    """Return the proof that a certificate states, and the certificate, if it was issued behind this fence.

    None: it belongs to an earlier fence, whose proof an operator has revoked. CorruptDataError: it was altered.
    """
    certificate = _opened(body)
    if certificate.get("end_of_stream", {}).get("marker") != fence.marker:
        return None
    proof = Verified(
        sequence=certificate["log"]["sequence"],
        operations=certificate["result"]["operations"],
        compared=certificate["result"]["compared"],
        at=certificate["issued_at"],
        certificate=key,
        digest=certificate["log"]["sha256"],
    )
    return proof, certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedClusters:
    """The clusters that a certificate is about; None: not known.

    `marker`: the `_id` of the fence marker that the source holds; empty: not known.
    """

    source: ServerFacts | None
    target: ServerFacts | None
    marker: str


def certified_clusters(body: bytes) -> CertifiedClusters | None:
    """Return the clusters that a certificate names; None: an agent issued it that named none.

    CorruptDataError: it was altered.
    """
    certificate = _opened(body)
    if certificate["version"] == _WITHOUT_EVIDENCE:
        return None
    named = certificate["servers"]
    return CertifiedClusters(
        source=ServerFacts.from_json(named["source"]),
        target=ServerFacts.from_json(named["target"]),
        marker=str(certificate.get("end_of_stream", {}).get("marker", "")),
    )


def _opened(body: bytes) -> dict[str, Any]:
    try:
        certificate: dict[str, Any] = json.loads(body)
        seal = certificate.pop(_SEAL)
        if certificate["version"] not in {_WITHOUT_EVIDENCE, VERSION}:
            raise OperatorError(
                "the certificate is of another version", hint="run the d5agent version that wrote it, or a newer one"
            )
        is_whole = seal == _seal_of(certificate) and certificate["kind"] == "certificate"
        log = certificate["log"]
        _ = certificate["result"]["equal"], log["sequence"], log["sha256"]
        if certificate["version"] != _WITHOUT_EVIDENCE:
            servers, comparison = certificate["servers"], certificate["comparison"]
            _ = servers["source"]["hosts"], servers["target"]["hosts"], comparison["parts"][0], log["first"]["sha256"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptDataError("the certificate is damaged", hint=_HINT, reason=type(error).__name__) from error
    if not is_whole:
        raise CorruptDataError("the certificate was altered after it was issued", hint=_HINT)
    return certificate


def _seal_of(certificate: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical form: one line, keys in order, no space, UTF-8."""
    canonical = json.dumps(certificate, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode(errors="backslashreplace")).hexdigest()
