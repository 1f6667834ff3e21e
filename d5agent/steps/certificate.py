"""Issues the certificate: for machines as JSON, for people as a page, both under `reports/`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from d5agent.core.compare.outside import OFF
from d5agent.core.reports.certificate import (
    certificate_key,
    certificate_of,
    certified_log,
    check_certificate,
    end_of_stream,
    proof_of,
    proved_fence,
    sealed,
)
from d5agent.core.reports.final_report import decode_report, final_report_key
from d5agent.core.reports.html import page_of
from d5agent.errors import AgentError, OperatorError, TransientError
from d5agent.steps.compare.undelivered_report import undelivered_summary
from d5agent.steps.log.late import operations_behind
from d5agent.steps.log.reader import LogReader, link_of

if TYPE_CHECKING:
    from d5agent.core.compare.report import VerifyReport
    from d5agent.core.reports.certificate import Evidence
    from d5agent.core.run.services import PhaseState, Verified
    from d5agent.core.run.timeline import Timeline
    from d5agent.ports import ObjectStore
    from d5agent.steps.capture.kept_changes import KeptChanges


@dataclass(frozen=True, slots=True, kw_only=True)
class Certifier:
    """Issues for one agent. `issuer`: who it is, in the certificate's words."""

    store: ObjectStore
    kept: KeptChanges
    timeline: Timeline
    issuer: dict[str, str]

    async def certify(self, state: PhaseState, proof: Verified, report: VerifyReport, evidence: Evidence) -> Verified:
        """Store the certificate of a proof; return the proof with its key and the hash of the log's last commit.

        OperatorError: no marker proves that the log holds all of the stream, or the stream has a gap.
        """
        fence = proved_fence(state)
        kept_since = await self.kept.prove(state.run_id, sequence=proof.sequence)
        link = await link_of(self.store, proof.sequence)
        certificate = certificate_of(
            report,
            link,
            self.timeline,
            evidence=evidence,
            issuer=self.issuer,
            read_only_since=fence.read_only_at or state.since,
        )
        certificate["issued_at"] = proof.at
        behind = await operations_behind(LogReader(store=self.store), fence, until=proof.sequence)
        certificate["end_of_stream"] = end_of_stream(fence, operations_after=behind, kept_since=kept_since)
        certificate["target_hold"] = evidence.target_hold
        certificate["outside"] = dict(evidence.outside or OFF)
        certificate["overwritten"] = evidence.overwritten
        certificate["undelivered"] = await undelivered_summary(self.store, report.run_id, link)
        key = certificate_key(report.run_id)
        await self.store.put(key, sealed(certificate))
        # The page last: whoever reads it may move applications, and the next start must know of the proof.
        await self._put_page(report.run_id, certificate)
        return replace(proof, certificate=key, digest=link.digest)

    async def issued(self, state: PhaseState) -> Verified | None:
        """Return the proof of a certificate that a daemon issued, and was killed before its state said so.

        None: there is none behind this fence. CorruptDataError, OperatorError: it was altered, or is another log's.
        """
        key = certificate_key(state.run_id)
        body = await self.store.get(key) if state.fence is not None else None
        found = None if body is None or state.fence is None else proof_of(body, state.fence, key=key)
        if found is None:
            return None
        proof, certificate = found
        check_certificate(body, await link_of(self.store, proof.sequence))
        await self._put_page(state.run_id, certificate)
        return proof

    async def _put_page(self, run_id: str, certificate: dict[str, Any]) -> None:
        page = page_of(certificate).encode(errors="backslashreplace")
        await self.store.put(certificate_key(run_id, "html"), page)


async def certificate_state(store: ObjectStore, proof: Verified | None, run_id: str) -> dict[str, object] | None:
    """Return whether the certificate of a proof is there, whole, and this log's; None: nothing was certified.

    Without a proof, since the run is over or restore was started again, the certificate that the run has left.
    """
    key = proof.certificate if proof is not None else certificate_key(run_id)
    if not key or (proof is None and not run_id):
        return None
    try:
        if proof is None:
            return await _left_behind(store, run_id)
        check_certificate(await store.get(key), await link_of(store, proof.sequence))
    except TransientError:
        raise
    except AgentError as error:
        return {"key": key, "valid": False, "reason": error.message}
    return {"key": key, "valid": True, "reason": ""}


async def _left_behind(store: ObjectStore, run_id: str) -> dict[str, object] | None:
    """Return what has become of the certificate of a run that the phase state holds no proof of."""
    key = certificate_key(run_id)
    body, final = await store.get(key), await store.get(final_report_key(run_id))
    if body is None:
        return None
    issued_at, sha256 = certified_log(body)
    if final is None:
        return {"key": key, "valid": True, "reason": f"issued at {issued_at}, before restore was started again"}
    proved = decode_report(final, key=final_report_key(run_id)).get("verified") or {}
    if proved.get("digest", sha256) != sha256:
        raise OperatorError("the certificate belongs to another log, or to another end of it")
    return {"key": key, "valid": True, "reason": f"issued at {issued_at}; its run is over, and its log deleted"}
